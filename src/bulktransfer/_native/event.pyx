"""What arrives at a channel, as the user gets it.

Knows: the kinds of events and what each carries. Must not know: how it arrived.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize

from bulktransfer import states

cdef tuple KINDS = tuple(states.EventKind)  # in the order of their numbers

cdef bint building = False  # only new_event makes events


cdef Event new_event(int number, object channel):
    global building
    building = True
    cdef Event event = Event.__new__(Event)
    building = False
    event.number = number
    event.channel = channel
    return event


def make_event(kind, channel, pool=None, bint present=False, buffers=(), error=None, buffer=None):
    """An event that is not a transfer."""
    cdef Event event = new_event(KINDS.index(kind), channel)
    event.rest = (pool, present, tuple(buffers), error)
    event.buffer = buffer
    return event


@cython.final
@cython.freelist(128)
cdef class Event:
    """Something that arrived: its kind, the channel, and what it is about (I-6.2.2).

    buffer: of transfers and refusals; meta: the bytes as they were sent; pool: in pool events only; present: the
    domain had the pool already; buffers: what had not come home when the channel ended; error: of a refusal.
    As a context manager it gives its buffer back at the end.
    """

    def __cinit__(self):
        if not building:
            raise TypeError("events come from a channel")

    @property
    def kind(self):
        """An EventKind."""
        return KINDS[self.number]

    @property
    def meta(self):
        """The meta data, exactly as sent."""
        if self.meta_size == 0:
            return b""
        if self.rest is not None:
            return self.rest
        return PyBytes_FromStringAndSize(<char*> self.short_meta, self.meta_size)

    cdef object part(self, int index, object otherwise):
        return self.rest[index] if type(self.rest) is tuple else otherwise

    @property
    def pool(self):
        """The pool, in pool events only."""
        return self.part(0, None)

    @property
    def present(self):
        """Whether the domain had the pool before it was assigned on this channel."""
        return self.part(1, False)

    @property
    def buffers(self):
        """The buffers that had not come home when the channel ended."""
        return self.part(2, ())

    @property
    def error(self):
        """Why an operation was refused, or the channel broke."""
        return self.part(3, None)

    def __enter__(self):
        if self.buffer is None:
            raise TypeError(f"{self!r} carries no buffer")
        return self.buffer

    def __exit__(self, *exc):
        if self.buffer.owned or self.buffer.is_copy:  # else it was sent on already
            if self.channel.ended is None:
                self.channel.give_back(self.buffer, when_unused=True)
            elif not self.buffer.pool.home:
                self.buffer.let_go(self.channel)  # its lease tells the assigner
        return False

    def __reduce__(self):
        raise TypeError("pickling an event: it belongs to its channel")

    def __repr__(self):
        what = [f"{self.kind}"]
        if self.buffer is not None:
            what.append(f"buffer {self.buffer.index} of pool {self.buffer.pool.name}")
        elif self.pool is not None:
            what.append(f"pool {self.pool.name}")
        if self.meta_size:
            what.append(f"{self.meta_size} bytes of meta")
        if self.error is not None:
            what.append(repr(self.error))
        return f"<Event {', '.join(what)}>"


cdef extern from *:
    """
    #include <structmember.h>
    #define BT_EVENT struct __pyx_obj_12bulktransfer_7_native_5event_Event
    static PyMemberDef bt_event_members[] = {
        {"channel", T_OBJECT_EX, 0, READONLY, "The channel over which it came."},
        {"buffer", T_OBJECT_EX, 0, READONLY, "The buffer, of transfers and refusals; else None."},
    };
    /* Members, and not properties as Cython would make them: the interpreter reads them with one load (LOAD_ATTR_SLOT),
     * which saves 130 of the instructions of a transfer. */
    static int bt_add_event_members(PyTypeObject *type, Py_ssize_t channel, Py_ssize_t buffer) {
        bt_event_members[0].offset = channel;
        bt_event_members[1].offset = buffer;
        for (int i = 0; i < 2; i++) {
            PyObject *member = PyDescr_NewMember(type, &bt_event_members[i]);
            if (!member) return -1;
            int failed = PyDict_SetItemString(type->tp_dict, bt_event_members[i].name, member);
            Py_DECREF(member);
            if (failed) return -1;
        }
        PyType_Modified(type);
        return 0;
    }
    #define BT_ADD_EVENT_MEMBERS(type) \\
        bt_add_event_members((PyTypeObject *)(type), offsetof(BT_EVENT, channel), offsetof(BT_EVENT, buffer))
    """
    int BT_ADD_EVENT_MEMBERS(object type) except -1

BT_ADD_EVENT_MEMBERS(Event)
Transfer = Event  # what receive_buffer returns; the stub knows that its buffer is never None
