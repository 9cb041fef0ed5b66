"""How operations ended.

Knows: what a continuation gets. Must not know: when it is called.
"""


cdef class Outcome:
    """How an operation ended, as its continuation gets it: error is None or the exception.

    buffer: what was sent, of a batch a tuple; pool: of a control request.
    """

    def __init__(self, operation, channel, error=None, buffer=None, pool=None):
        self.operation = operation
        self.channel = channel
        self.error = error
        self.buffer = buffer
        self.pool = pool

    @property
    def buffers(self):
        """The buffers of a transfer that the peer refused, or had not taken when the channel ended; () without any."""
        return () if self.missed is None else tuple(self.missed)

    cdef int miss(self, object buffer) except -1:
        """The peer did not take this one."""
        if self.missed is None:
            self.missed = []
        self.missed.append(buffer)
        return 0

    def __repr__(self):
        return f"<Outcome of {self.operation}: {'done' if self.error is None else repr(self.error)}>"
