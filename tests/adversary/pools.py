"""Attacks with pools: descriptions, memory, leases, and answers to what nobody asked."""

from __future__ import annotations

import fcntl
import os
import socket

import bulktransfer as bulk
from adversary import raw
from adversary.arena import COUNT
from adversary.registry import BOUNDED, BY_VALUE, IGNORED, KERNEL, REFUSED, SHARED, SHM, SPOILT, VIOLATION, attack
from bulktransfer import EventKind
from worlds import take

SIZE = COUNT * raw.PAGE


def memories():
    """What a pool's memory must not be."""
    regular = os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.posix_fallocate(regular, 0, SIZE)
    in_tmpfs = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.posix_fallocate(in_tmpfs, 0, SIZE)
    yield from [regular, in_tmpfs, os.open("/dev/null", os.O_RDWR), os.open("/dev/zero", os.O_RDWR)]
    yield from [os.open("/tmp", os.O_RDONLY), *os.pipe(), *(end.detach() for end in socket.socketpair())]
    yield raw.memory(SIZE, 0)
    for missing in (raw.SEAL_SHRINK, raw.SEAL_GROW, raw.SEAL_SEAL):
        yield raw.memory(SIZE, raw.POOL_SEALS & ~missing)
    for wrong in (0, SIZE - 1, SIZE - 4096, SIZE + 4096, SIZE + (1 << 40)):
        yield raw.memory(wrong, sparse=wrong > SIZE)
    yield raw.memory(SIZE, sparse=True)
    holed = raw.memory(SIZE + (4 << 20), 0)  # reserved beyond its end instead of before it
    os.ftruncate(holed, SIZE)
    punched = raw.memory(SIZE, 0)
    punch(punched, 4096, 4096)
    for fd in (holed, punched):
        fcntl.fcntl(fd, raw.F_ADD_SEALS, raw.POOL_SEALS)
    yield punched
    if os.fstat(holed).st_blocks * 512 != SIZE:  # else it is as good as any
        yield holed
    else:
        os.close(holed)


def punch(fd, offset, length):
    """Take the pages away from under a memfd. Raises: OSError."""
    libc = raw.libc()
    if libc.fallocate(fd, 3, offset, length):  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
        raise OSError(raw.errno(), "fallocate")


@attack(SHARED, VIOLATION)
def memory_that_is_none(arena):
    """Have the victim map a pool that can shrink, stall or lie under it: files, devices, pipes, sockets; memfds that
    lack a seal, are short, huge, empty, sparse or holed."""
    tried = 0
    for fd in memories():
        channel, end = arena.meet()
        arena.keep(fd)
        arena.offer(channel, end)
        _, lease = arena.pool_memory()
        end.say(raw.message(raw.ASSIGN_MEMORY, "I", 1), [fd, lease])
        arena.broken(channel, "the memory of pool")
        tried += 1
    arena.saw[:] = [f"ProtocolViolation for each of {tried} kinds"]


@attack(SHARED, "refused with a typed error, since it cannot be mapped for writing; the channel goes on")
def memory_that_cannot_be_written(arena):
    """Have the victim fault at its first write: memory sealed against writing, or open for reading only."""
    for number, seals in enumerate((raw.SEAL_WRITE, raw.SEAL_FUTURE_WRITE, None), 1):
        channel, end = arena.meet()
        arena.offer(channel, end)
        fd = arena.keep(raw.memory(SIZE, raw.POOL_SEALS | (seals or 0)))
        if seals is None:
            fd = arena.keep(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
        end.say(raw.message(raw.ASSIGN_MEMORY, "I", 1), [fd, arena.pool_memory()[1]])
        arena.answered(channel, end, raw.ASSIGN_DONE, 1, None)
        assert channel.pools == ()
        arena.note(f"{number} refused")
        given = arena.pool_memory()
        end.say(end.request(request=2, slot=end.first_slot + 2))
        arena.answered(channel, end, raw.ASSIGN_ANSWER, 2)
        end.say(raw.message(raw.ASSIGN_MEMORY, "I", 2), given)
        for fd in arena.answered(channel, end, raw.ASSIGN_DONE, 2):
            os.close(fd)
        take(channel, EventKind.POOL_ASSIGNED)
        arena.goes_on(channel, end, end.first_slot + 2)


@attack(SHM, VIOLATION)
def too_few_or_too_many_descriptors(arena):
    """Have the victim miscount: an assignment with none, one, 253 descriptors; with some where they have no place."""
    shared = arena.level != "NONE"
    junk = arena.keep(raw.memory(4096))
    for kind, counts in ((raw.ASSIGN_MEMORY, (0, 1, 67, 253) if shared else (1, 2, 253)), (raw.ASSIGN_DONE, (1, 253))):
        for count in counts:
            channel, end = arena.meet()
            arena.offer(channel, end)
            body = raw.message(kind, "I", 1) if kind == raw.ASSIGN_MEMORY else raw.answer(kind, 1)
            end.say(body, [junk] * count)
            arena.broken(channel, "descriptors|never made")
    for words in (raw.message(raw.WITHDRAW, "I", 1), raw.message(raw.TEARDOWN_ANSWER)):
        channel, end = arena.meet()
        end.say(words, [junk] * 253)
        arena.broken(channel, "253 descriptors beside")


@attack(SHM, REFUSED)
def pools_of_impossible_shapes(arena):
    """Overflow the victim's arithmetic: 2^32-1 buffers, buffers of 2^63 or 2^64-4096 bytes, products beyond 2^64, sizes
    of no whole pages, another trust."""
    channel, end = arena.meet()
    other = raw.HALF if end.terms.trust != raw.HALF else raw.FULL
    shapes = [
        {"count": 2**32 - 1}, {"size": 2**63}, {"size": 2**64 - 4096}, {"size": 4095}, {"size": 1},
        {"count": 2**32 - 1, "size": 2**63}, {"count": 2**20, "size": 2**44}, {"count": 3, "size": 2**63},
        {"trust": other}, {"trust": raw.UNINITIALIZED},
    ]  # fmt: skip
    for request, shape in enumerate(shapes, 10):
        end.say(end.request(request=request, pool=os.urandom(16), **shape))
        arena.answered(channel, end, raw.ASSIGN_ANSWER, request, None)
    arena.note(f"{len(shapes)} refused")
    assert not channel.domain.pools or list(channel.domain.pools.values()) == [arena.alloc.pool]
    arena.bring_pool(channel, end)
    arena.goes_on(channel, end)


@attack(SHM, VIOLATION)
def numbers_that_are_not_the_peers(arena):
    """Take pool numbers of the other side, far beyond, or in use; use a request number twice; no count, no size; flags
    that are none."""
    for change in (
        {"slot": 1},
        {"slot": 65535},
        {"slot": 9000},
        {"count": 0},
        {"size": 0},
        {"trust": 9},
        {"exposed": 9},
    ):
        channel, end = arena.meet()
        if "slot" in change:
            change = {"slot": change["slot"] ^ end.first_slot if change["slot"] < 65535 else 65535}
        end.say(end.request(**change))
        arena.broken(channel, "not the peer's|count|size|trust|means")
    for change in ({"request": 1, "slot": 6}, {"request": 2, "slot": 0}):
        channel, end = arena.meet()
        arena.offer(channel, end)
        change["slot"] += end.first_slot
        end.say(end.request(pool=os.urandom(16), **change))
        arena.broken(channel, "is in use")


@attack(SHM, REFUSED)
def the_same_pool_twice(arena):
    """Have one memory counted twice: the same id under another number, with the same and with another shape."""
    channel, end = arena.meet()
    pool, _ = arena.bring_pool(channel, end)
    for request, count in ((2, COUNT), (3, COUNT + 1)):
        end.say(end.request(request=request, slot=end.first_slot + 2, pool=pool.id.bytes, count=count))
        arena.answered(channel, end, raw.ASSIGN_ANSWER, request, None)
    assert len(channel.pools) == 1
    arena.goes_on(channel, end)


@attack(SHM, "refused with a typed error, or a violation; the victim's pool stays as it is")
def a_pool_that_belongs_to_the_victim(arena):
    """Slip other memory under the victim's own pool, or read it, by announcing its id."""
    channel, end = arena.meet()
    mine = arena.alloc.pool
    if arena.level == "FULL":  # trust and shape fit: only the memory tells
        arena.offer(channel, end, pool=mine.id.bytes)
        end.say(raw.message(raw.ASSIGN_MEMORY, "I", 1), arena.pool_memory())
        arena.broken(channel, "not the one that this domain has")
    else:
        end.say(end.request(pool=mine.id.bytes))
        arena.answered(channel, end, raw.ASSIGN_ANSWER, 1, None)
        arena.note("refused")


@attack(SHM, BOUNDED)
def a_flood_of_pools(arena):
    """Exhaust the victim's memory and descriptors with pools: more than the limit, and more bytes than the limit."""
    limits = bulk.Limits(pools=8, total_bytes=16 * SIZE)
    _, end = arena.meet(limits=limits)
    accepted = 0
    for request in range(1, 40):
        slot = end.first_slot + 2 * accepted
        end.say(end.request(request=request, slot=slot, pool=os.urandom(16), count=3 * COUNT))
        data, _ = arena.heard(end)
        if int.from_bytes(data[8:10]) == 0:
            accepted += 1
            end.say(raw.message(raw.ASSIGN_MEMORY, "I", request), arena.pool_memory(3 * SIZE))
            for fd in arena.heard(end)[1]:
                os.close(fd)
    assert accepted == 5, accepted  # 15 of 16 times SIZE
    arena.note(f"{accepted} accepted, 34 refused")


@attack(SHM, BOUNDED)
def pools_that_come_and_go_for_ever(arena):
    """Grow what the victim remembers by assigning and withdrawing, with requests that are never completed."""
    channel, end = arena.meet()
    for request in range(1, 2000):
        end.say(end.request(request=request, pool=os.urandom(16)))
        end.say(raw.message(raw.WITHDRAW, "I", request))
        if request % 20 == 0:
            arena.serve(lambda: end.load(raw.CONSUMED) == end.tail)
            for _ in end.entries():
                end.hear()
            while end.hear():
                pass
    arena.serve(lambda: channel.pools == ())
    book = channel.assigning
    assert (len(book.incoming), len(book.asked), len(channel.domain.pools)) == (0, 0, 1)
    assert len(book.removed) <= 256
    arena.note("2000 rounds, nothing kept")


@attack(SHM, VIOLATION)
def memory_for_what_was_not_accepted(arena):
    """Bring memory that nobody asked about, before the answer, twice, after it was withdrawn."""
    for request in (1, 7):
        channel, end = arena.meet()
        if request == 1:
            arena.bring_pool(channel, end)
        end.say(raw.message(raw.ASSIGN_MEMORY, "I", request), arena.pool_memory())
        arena.broken(channel, "which was not accepted|descriptors with the memory")


@attack(SHM, VIOLATION)
def answers_to_what_was_not_asked(arena):
    """Confuse the victim with answers: to assignments and removals that were never made, to a teardown."""
    for kind in (raw.ASSIGN_ANSWER, raw.ASSIGN_DONE, raw.REMOVE_ANSWER):
        for request in (0, 1, 2**32 - 1):
            channel, end = arena.meet()
            end.say(raw.answer(kind, request))
            arena.broken(channel, "never made")
    channel, end = arena.meet()
    end.say(raw.message(raw.TEARDOWN_ANSWER))
    arena.broken(channel, "not asked for")


@attack(SHM, VIOLATION)
def an_answer_about_something_else(arena):
    """Answer the victim's assignment as if it had been a removal."""
    channel, end = arena.meet()
    alloc = arena.world.allocator(arena.victim)
    channel.assign_pool(alloc.pool, done=lambda outcome: None)
    arena.heard(end)
    end.say(raw.answer(raw.REMOVE_ANSWER, 1))
    arena.broken(channel, "an answer about remove")
    assert alloc.alloc().state is bulk.BufferState.READ_WRITE


@attack(SHM, VIOLATION)
def removal_of_what_is_not_there(arena):
    """Have the victim take off what never came on."""
    for slot in (0, 1, 5000, 65535):
        channel, end = arena.meet()
        end.say(raw.message(raw.REMOVE_REQUEST, "IH", 1, slot))
        arena.broken(channel, "which is not assigned")


@attack(SHM, REFUSED)
def removal_while_the_victim_has_a_buffer(arena):
    """Pull the memory from under a buffer that the victim owns and looks at."""
    channel, end = arena.meet()
    arena.bring_pool(channel, end)
    end.give(raw.MOVE, end.first_slot, 0, b"mine")
    got = take(channel, EventKind.MOVE_RECEIVED).buffer
    view, contents = memoryview(got), got.tobytes()
    end.say(raw.message(raw.REMOVE_REQUEST, "IH", 2, end.first_slot))
    arena.answered(channel, end, raw.REMOVE_ANSWER, 2, None)
    end.say(raw.message(raw.WITHDRAW, "I", 1))
    arena.serve(lambda: channel.pools == ())
    end.sock.close()
    arena.broken(channel, "gone", bulk.BrokenChannelError)
    assert bytes(view) == contents
    view.release()
    arena.note("the buffer and its view live on")


@attack(SHM, IGNORED)
def a_withdrawal_of_nothing(arena):
    """Withdraw requests that were never made."""
    channel, end = arena.meet()
    arena.bring_pool(channel, end)
    for request in (0, 2, 2**32 - 1):
        end.say(raw.message(raw.WITHDRAW, "I", request))
    arena.goes_on(channel, end)


@attack(SHM, VIOLATION)
def leases_that_are_none(arena):
    """Hand over leases that are no pipes, without any, beyond all numbers, or where memory is not shared."""
    junk = arena.keep(raw.memory(4096))
    tries = [((raw.message(raw.LEASES, "H", 0), 1)), (raw.message(raw.LEASES, "H", 0), 0), (b"BT\1\x0e\xff\xff", 1)]
    for words, count in tries:
        channel, end = arena.meet()
        arena.bring_pool(channel, end)
        words = words if words[4:] == b"\xff\xff" else raw.message(raw.LEASES, "H", end.first_slot)
        end.say(words, [junk] * count)
        arena.broken(channel, "lease")


@attack(SHARED, "the channel ends with a typed error, since buffers may follow; memory and descriptors as before")
def a_flood_of_leases(arena):
    """Fill the victim's descriptor table with leases."""
    channel, end = arena.meet()
    arena.bring_pool(channel, end)
    pipes = [os.pipe2(os.O_NONBLOCK) for _ in range(80)]
    arena.ends += [fd for pair in pipes for fd in pair]
    for first in range(0, 80, 40):
        end.say(raw.message(raw.LEASES, "H", end.first_slot), [write for _, write in pipes[first : first + 40]])
    arena.broken(channel, "leases could not be kept", bulk.BrokenChannelError)


@attack(SHARED, VIOLATION)
def exposing_where_memory_is_shared(arena):
    """Have the victim look through a window where there is none to be."""
    channel, end = arena.meet()
    end.say(end.request(exposed=1))
    arena.broken(channel, "exposed by a source at trust NONE")


@attack(BY_VALUE, VIOLATION)
def a_window_that_is_none(arena):
    """Expose memory that can shrink, be written by others, is short or sparse."""
    for fd in (
        raw.memory(SIZE, raw.POOL_SEALS), raw.memory(SIZE, 0), raw.memory(SIZE - 4096, raw.BOX_SEALS),
        raw.memory(SIZE, raw.BOX_SEALS, sparse=True), os.open("/dev/zero", os.O_RDWR),
    ):  # fmt: skip
        arena.keep(fd)
        channel, end = arena.meet()
        arena.offer(channel, end, exposed=1)
        _, lease = pipe = os.pipe2(os.O_NONBLOCK)
        arena.ends += pipe
        end.say(raw.message(raw.ASSIGN_MEMORY, "I", 1), [fd, lease])
        arena.broken(channel, "the exposed memory of pool")


@attack(SHARED, f"truncation: {KERNEL}; holes: {SPOILT}")
def memory_pulled_away_after_the_move(arena):
    """Kill the victim with a signal by truncating a pool, or punching holes, under a buffer that it reads."""
    channel, end = arena.meet()
    _, (memfd, _) = arena.bring_pool(channel, end)
    os.pwrite(memfd, b"x" * raw.PAGE, 0)
    end.give(raw.MOVE, end.first_slot, 0, length=raw.PAGE)
    got = take(channel, EventKind.MOVE_RECEIVED).buffer
    assert got.tobytes() == b"x" * raw.PAGE
    for size in (0, SIZE - 1, SIZE + 1):
        try:
            os.ftruncate(memfd, size)
        except PermissionError:
            arena.note("EPERM")
        else:
            raise AssertionError("it could be truncated")
    punch(memfd, 0, SIZE)
    assert got.tobytes() == bytes(raw.PAGE)
    got.put(b"still writable")
    channel.pass_(got)
    arena.goes_on(channel, end)
