"""Attacks with too much of something: bells, messages, descriptors, silence."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import struct
import threading

import bulktransfer as bulk
from adversary import raw
from adversary.arena import COUNT, resident_bytes, until
from adversary.registry import BOUNDED, BY_VALUE, IGNORED, SHM, VIOLATION, attack
from adversary.transfers import with_pool
from bulktransfer import Direction, EventKind
from forking import fork
from worlds import PATIENCE_S, take


@attack(SHM, VIOLATION)
def messages_that_nothing_announces(arena):
    """Fill the victim's memory with control messages for which there is no ring entry."""
    channel, end = with_pool(arena)
    before = resident_bytes()
    for _ in range(40):
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                end.send(raw.message(raw.WITHDRAW, "I", 9))
        arena.victim.serve()
    arena.broken(channel, "more control messages than it announced")
    assert resident_bytes() - before < 16 << 20


@attack(SHM, IGNORED)
def a_flood_of_bells(arena):
    """Keep the victim at the socket for ever: ring while it reads, from another process."""
    channel, end = with_pool(arena)

    def ring(pipe):
        pipe.send("ringing")
        with contextlib.suppress(OSError):
            while True:
                end.sock.send(b"\1")

    children = [fork(ring) for _ in range(2)]
    try:
        for child in children:
            assert child.receive() == "ringing"
        for _ in range(20):
            arena.friends_go_on()
            arena.goes_on(channel, end)
    finally:
        for child in children:
            child.kill()


@attack(SHM, BOUNDED)
def questions_whose_answers_nobody_reads(arena):
    """Fill the victim's memory with what it has to say: ask for what is refused, again and again, and read nothing."""
    channel, end = with_pool(arena)
    end.give(raw.MOVE, end.first_slot, 0, b"mine")
    mine = take(channel, EventKind.MOVE_RECEIVED).buffer
    before = resident_bytes()
    number = 2
    with contextlib.suppress(bulk.BulkError, BlockingIOError, ConnectionError):
        while number < 60_000:
            for _ in range(50):
                end.say(end.request(request=number, slot=end.first_slot + 2, pool=bytes(16), size=1))
                number += 1
            arena.serve(lambda: end.load(raw.CONSUMED) == end.tail or channel.ended is not None)
            if channel.ended is not None:
                break
    arena.broken(channel, "does not read")
    assert resident_bytes() - before < 200 << 20, (resident_bytes() - before) >> 20
    assert mine.tobytes()[:4] in (b"mine", bytes(4))
    arena.note(f"after {number} questions")


@attack(SHM, BOUNDED)
def refusals_that_nobody_reads(arena):
    """The same with transfers: copies of what the victim owns, each of which it has to refuse."""
    channel, end = with_pool(arena)
    end.give(raw.MOVE, end.first_slot, 0)
    take(channel, EventKind.MOVE_RECEIVED)
    before = resident_bytes()
    for _ in range(200):
        for _ in range(1000):
            end.put(raw.COPY, slot=end.first_slot, index=0, bell=False, serial=end.staged)
        with contextlib.suppress(bulk.WouldBlock, bulk.ProtocolViolation):
            channel.receive_nowait()
        if channel.ended is not None:
            break
        assert end.load(raw.CONSUMED) == end.tail
    arena.broken(channel, "does not read")
    assert resident_bytes() - before < 200 << 20, (resident_bytes() - before) >> 20
    arena.note(f"after {end.tail} entries")


@attack(SHM, BOUNDED)
def a_peer_that_stops_reading(arena):
    """Hold the victim's calls up by never taking anything: sends are accepted, destroy has its deadline."""
    channel, end = arena.meet(Direction.TX, limits=bulk.Limits(slot_count=4))
    alloc, _ = arena.lend_pool(channel, end, count=64)
    for buffer in alloc.alloc_many(64):
        channel.move(buffer)
    try:
        channel.destroy(timeout=0.2)
    except (bulk.BrokenChannelError, TimeoutError) as error:
        arena.note(type(error).__name__)
    else:
        raise AssertionError("destroyed in order")
    arena.broken(channel, "", bulk.BulkError)


@attack(SHM, IGNORED)
def a_peer_that_wakes_for_nothing(arena):
    """Make the victim's descriptor readable without news, so that it spins."""
    channel, end = with_pool(arena)
    channel.fileno()
    for _ in range(50):
        end.bell()
        arena.victim.serve()
        with contextlib.suppress(bulk.WouldBlock):
            channel.receive_nowait()
    arena.goes_on(channel, end)


@attack(SHM, VIOLATION)
def descriptors_beside_what_needs_none(arena):
    """Fill the victim's descriptor table: 253 of them beside one byte, garbage, a message."""
    junk = arena.keep(raw.memory(4096))
    for words in (b"\1", b"garbage", raw.message(raw.WITHDRAW, "I", 1)):
        channel, end = arena.meet()
        before = len(os.listdir("/proc/self/fd"))
        end.send(words, [junk] * 253)
        end.put(raw.CONTROL, serial=end.messages)
        arena.broken(channel, "descriptors beside|control message from the peer|that did not come")
        assert len(os.listdir("/proc/self/fd")) <= before


@attack(SHM, VIOLATION)
def control_data_that_is_cut(arena):
    """Lose a descriptor on the way, so that the victim takes the next one for it: messages longer than any, with and
    without descriptors."""
    junk = arena.keep(raw.memory(4096))
    for count in (0, 1, 253):
        channel, end = arena.meet()
        end.say(raw.message(raw.WITHDRAW, "I", 1) + bytes(5000), [junk] * count)
        arena.broken(channel, "lost on the way")


@attack(("FULL", "HALF"), "LimitError at the peer; nothing of it stays")
def memory_when_no_descriptor_is_left(arena):
    """Assign a pool to a victim whose descriptor table is full: its memory is lost on the way."""
    import resource

    channel, end = arena.meet()
    arena.offer(channel, end)
    given = arena.pool_memory()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    end.say(raw.message(raw.ASSIGN_MEMORY, "I", 1), given)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fill = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
        with contextlib.suppress(OSError):
            while True:
                fill.append(os.open("/dev/null", os.O_RDONLY))
        arena.serve(lambda: end.load(raw.CONSUMED) == end.tail)
    finally:
        for fd in fill:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    arena.answered(channel, end, raw.ASSIGN_DONE, 1, None)
    assert channel.pools == ()
    arena.note("refused")


def sticky(arena):
    """A TCP socket whose last owner waits for minutes in close(): it lingers, and nobody reads what it has sent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
        other = arena.keep(server.accept()[0])
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 30))
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(1 << 16))
    return sock, other


def held_up(arena, act):
    """Whether the victim still hangs when its patience is over; the attacker lets go then."""
    sock, other = sticky(arena)
    free = threading.Event()

    def let_go():
        if not free.wait(5):
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            other.close()  # resets the connection: whoever waits goes on

    watch = threading.Thread(target=let_go)
    watch.start()
    try:
        act(sock)
        hung = not watch.is_alive()
    finally:
        free.set()
        watch.join()
        if other.fileno() >= 0:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            other.close()
    assert not hung, "closing the attacker's socket held the victim up"
    arena.note("not held up")


@attack(SHM, BOUNDED)
def a_descriptor_that_sticks(arena):
    """Hang the victim in close(): beside a message, as a pool's memory, hand it a TCP socket that lingers, whose last
    owner it becomes."""
    for words in (raw.message(raw.ASSIGN_MEMORY, "I", 1), raw.message(raw.WITHDRAW, "I", 1), b"garbage"):
        channel, end = arena.meet()

        def strike(sock, words=words, channel=channel, end=end):
            end.say(words, [sock.fileno()] * 2)
            sock.close()
            arena.broken(channel, "")

        held_up(arena, strike)


@attack(SHM, BOUNDED)
def a_descriptor_that_sticks_in_an_unread_message(arena):
    """Hang the victim where it ends a channel: leave such a socket unread in the channel's own."""
    channel, end = arena.meet()

    def strike(sock):
        end.send(raw.message(raw.WITHDRAW, "I", 1), [sock.fileno()])
        sock.close()
        channel.close()

    held_up(arena, strike)


@attack(BY_VALUE, BOUNDED)
def a_descriptor_that_sticks_to_a_bell(arena):
    """Hang the helper thread: hand such a socket over beside one byte, which it reads as a bell."""
    channel = arena.create()
    end = arena.welcomed(channel)

    def strike(sock):
        end.own.seal()
        end.send(raw.message(raw.CONFIRM), [end.own.fd])
        end.send(b"\1", [sock.fileno()])  # before the helper watches, so that the victim is the last owner
        sock.close()
        arena.serve(lambda: channel.state is bulk.ChannelState.CONNECTED)
        end.own.close_fd()
        end.bell()
        try:
            take(channel, EventKind.BIND_RECEIVED)
            arena.bring_pool(channel, end)
            arena.goes_on(channel, end)
        except (bulk.ProtocolViolation, AssertionError):  # its user may have read it before the helper did
            assert channel.ended is not None
            assert channel.ended[0] is bulk.ProtocolViolation
            arena.note("ProtocolViolation")

    held_up(arena, strike)


@attack(BY_VALUE, BOUNDED)
def contents_that_never_come(arena):
    """Hold a receiver up with the entry of a move whose contents are promised and never staged."""
    channel, end = with_pool(arena)
    end.put(raw.MOVE, slot=end.first_slot, length=raw.PAGE)
    try:
        channel.receive(0.1)
    except TimeoutError:
        arena.note("TimeoutError")
    arena.friends_go_on()
    channel.close()


@attack(BY_VALUE, BOUNDED)
def contents_half_here_when_their_pool_leaves(arena):
    """Have the victim write into memory that is gone: stage half of a buffer, have the pool removed, stage the rest."""
    answers = []

    def later(event):
        answers.append(event.channel.defer(event, lambda outcome: None))

    channel = arena.create(callbacks=bulk.Callbacks(pool_removed=later))
    end = arena.welcomed(channel)
    arena.confirm(end, channel)
    arena.bring_pool(channel, end)
    end.give(raw.MOVE, end.first_slot, 0)
    got = take(channel, EventKind.MOVE_RECEIVED).buffer
    channel.pass_(got)
    for _ in end.entries():
        pass
    end.say(raw.message(raw.REMOVE_REQUEST, "IH", 2, end.first_slot))
    arena.serve(lambda: bool(answers))
    end.put(raw.MOVE, slot=end.first_slot, index=0, length=COUNT * 1024, serial=end.staged)
    end.own.map[end.own.stage_at : end.own.stage_at + 2048] = bytes(2048)
    end.store(raw.FILLED, end.staged + 2048)
    arena.victim.serve()
    del got
    answers[0].accept()
    arena.victim.serve()
    end.store(raw.FILLED, end.staged + 4096)
    end.bell()
    with contextlib.suppress(bulk.ProtocolViolation, TimeoutError):
        channel.receive(0.2)
    arena.note("nothing was touched")
    channel.close()


@attack(SHM, BOUNDED)
def a_buffer_kept_for_ever(arena):
    """Never give a buffer back: the victim closes, and counts what is away until its kernel says that nobody has it."""
    channel, end = arena.meet(Direction.TX)
    alloc, _ = arena.lend_pool(channel, end)
    channel.move(alloc.alloc())
    for _ in end.entries():
        pass
    channel.close()
    if arena.level == "NONE":
        until(lambda: alloc.detached == 0, PATIENCE_S)
        arena.note("free at once")
        return
    assert alloc.detached == 1
    for fd in [thing for thing in arena.ends if isinstance(thing, int)]:
        os.close(fd)
        arena.ends.remove(fd)
    arena.serve(lambda: alloc.detached == 0)
    arena.note("detached until the lease hung up")


@attack(BY_VALUE, VIOLATION)
def more_entries_than_the_ring_while_nobody_looks(arena):
    """Have the helper run round the ring while the victim's user does not call: it copies ahead, and forgets what it
    claimed for the entries that were written over."""
    size = 8 << 20
    channel, end = arena.meet(limits=bulk.Limits(slot_count=2))
    arena.bring_pool(channel, end, size=size)
    before = resident_bytes()
    for index in range(COUNT):
        end.give(raw.MOVE, end.first_slot, index, b"ahead of the ring")
        with contextlib.suppress(AssertionError):
            until(lambda: end.load(raw.EMPTIED) == end.staged, 0.2)
    arena.broken(channel, "beyond its ring|of buffer|with contents at")
    channel.close()
    until(lambda: gc.collect() >= 0 and resident_bytes() < before - 3 * size)
