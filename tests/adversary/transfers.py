"""Attacks with ring entries: numbers beyond everything, transfers that nobody may make, words that cannot be."""

from __future__ import annotations

import mmap
import os

import bulktransfer as bulk
from adversary import raw
from adversary.arena import COUNT
from adversary.registry import BY_VALUE, IGNORED, REFUSED, SHARED, SHM, SPOILT, UNCHANGED, VIOLATION, attack
from bulktransfer import BufferState, Direction, EventKind
from worlds import take

U32, U64 = 2**32 - 1, 2**64 - 1


def with_pool(arena, direction=Direction.RX):
    channel, end = arena.meet(direction)
    arena.bring_pool(channel, end)
    return channel, end


@attack(SHM, VIOLATION)
def numbers_out_of_range(arena):
    """Make the victim reach beyond its tables: pool numbers, buffer numbers, lengths, sizes of meta data and kinds that
    cannot be, one beyond the last and as large as the word allows."""
    cases = [
        {"slot": slot} for slot in (0, 1, 3, 8191, 2**31, U32)
    ] + [{"index": index} for index in (COUNT, COUNT + 1, 2**31, U32)] + [
        {"length": length} for length in (raw.PAGE + 1, 2**32, 2**63, U64, U64 - 4095)
    ] + [{"meta_size": size} for size in (41, 2048, 2049, 65536, U32)] + [
        {"kind": kind} for kind in (0, 7, 8, 255, 65535)
    ]  # fmt: skip
    for case in cases:
        channel, end = with_pool(arena)
        if case.get("slot") in (0, 1):
            case = {"slot": 1 - end.first_slot}
        end.put(**{"kind": raw.MOVE, "slot": end.first_slot, "length": 1, **case})
        arena.broken(channel, "not assigned|of buffer|of buffer|bytes in a buffer|bytes of meta data|an entry of kind")
    for kind in (raw.COPY, raw.MOVE):
        channel, end = with_pool(arena)
        end.put(kind, slot=end.first_slot, index=COUNT - 1, length=raw.PAGE + 1)
        arena.broken(channel, "bytes in a buffer")


@attack(SHM, VIOLATION)
def transfers_of_the_other_end(arena):
    """Send as a source what only sinks send, and the reverse."""
    for kind in (raw.PASS, raw.RELEASE):
        channel, end = with_pool(arena)
        end.put(kind, slot=end.first_slot)
        arena.broken(channel, "from the source")
    for kind in (raw.MOVE, raw.COPY):
        channel, end = arena.meet(Direction.TX)
        _, slot = arena.lend_pool(channel, end)
        end.put(kind, slot=slot)
        arena.broken(channel, "from the sink")


@attack(SHARED, VIOLATION)
def moving_what_one_does_not_own(arena):
    """Give the same buffer away twice, as a whole or as a copy, so that the victim and somebody else own it."""
    for first, second in (("MOVE", "MOVE"), ("MOVE", "COPY"), ("COPY", "COPY")):
        channel, end = with_pool(arena)
        end.give(getattr(raw, first), end.first_slot, 0)
        end.give(getattr(raw, second), end.first_slot, 0)
        if (first, second) == ("MOVE", "COPY"):  # a copy of what the victim owns is refused
            take(channel, EventKind.MOVE_RECEIVED)
            arena.victim.serve()
            arena.goes_on(channel, end)
            continue
        events = arena.broken(channel, "which it does not have")
        assert [event.buffer.index for event in events] == [0]


@attack(BY_VALUE, REFUSED)
def moving_what_one_does_not_own_by_value(arena):
    """The same where each side has memory of its own: overwrite what the victim received."""
    channel, end = with_pool(arena)
    end.give(raw.MOVE, end.first_slot, 0, b"first")
    got = take(channel, EventKind.MOVE_RECEIVED).buffer
    for kind in (raw.MOVE, raw.COPY):
        end.give(kind, end.first_slot, 0, b"second")
    arena.goes_on(channel, end)
    assert got.tobytes() == b"first"
    assert got.state is BufferState.READ_WRITE


@attack(SHM, f"{VIOLATION}, or {REFUSED} where each side has memory of its own")
def giving_back_what_one_never_got(arena):
    """Put somebody else's buffer onto the victim's free list: pass and release what never left."""
    for kind in (raw.PASS, raw.RELEASE):
        channel, end = arena.meet(Direction.TX)
        alloc, slot = arena.lend_pool(channel, end)
        mine = alloc.alloc()
        mine.put(b"mine")
        end.put(kind, slot=slot, index=mine.index)
        if kind == raw.PASS and arena.level == "NONE":
            arena.victim.serve()
            assert channel.ended is None
            arena.note("refused")
        else:
            arena.broken(channel, "which it does not have")
        assert mine.tobytes() == b"mine"
        assert (mine.state, alloc.available) == (BufferState.READ_WRITE, COUNT - 1)


@attack(SHM, VIOLATION)
def giving_back_twice(arena):
    """Return one buffer, or one copy, two times."""
    for kind, send in ((raw.PASS, "move"), (raw.RELEASE, "copy")):
        channel, end = arena.meet(Direction.TX)
        alloc, slot = arena.lend_pool(channel, end)
        buffer = alloc.alloc()
        getattr(channel, send)(buffer)
        for _ in end.entries():
            pass
        end.put(kind, slot=slot, index=buffer.index)
        end.put(raw.RELEASE, slot=slot, index=buffer.index)
        arena.broken(channel, "which it does not have")
        assert buffer.state is BufferState.READ_WRITE


@attack(SHM, VIOLATION)
def refusals_of_nothing(arena):
    """Roll the victim's transfers back: refuse what it never sent, at positions beyond, of kinds that cannot be."""
    for change in (
        {"serial": 99},
        {"serial": U64},
        {"index": COUNT},
        {"slot": U32},
        {"flags": 0},
        {"flags": 4},
        {"flags": U32 & 65535},
    ):
        channel, end = arena.meet(Direction.TX)
        alloc, slot = arena.lend_pool(channel, end)
        mine = alloc.alloc()
        end.put(raw.REFUSE, **{"slot": slot, "flags": raw.MOVE, "length": 19, **change})
        arena.broken(channel, "a refusal of")
        assert mine.state is BufferState.READ_WRITE


@attack(SHM, VIOLATION)
def refusals_without_end(arena):
    """Fill the victim's queue with refusals of one and the same transfer."""
    channel, end = arena.meet(Direction.TX)
    alloc, slot = arena.lend_pool(channel, end)
    channel.move(alloc.alloc())
    for _ in end.entries():
        pass
    for _ in range(900):
        end.put(raw.REFUSE, slot=slot, index=0, flags=raw.MOVE, length=19, serial=end.head - 1, bell=False)
    events = arena.broken(channel, "refus")
    assert len(events) <= end.head


@attack(SHM, VIOLATION)
def indices_that_jump(arena):
    """Drive the victim's rings out of step: a tail beyond the ring, far beyond, gone back; entries taken that were
    never sent, or given back."""
    for tail in (1025, 2**32, 2**63, U64):
        channel, end = with_pool(arena)
        end.store(raw.TAIL, end.tail + tail)
        end.bell()
        arena.broken(channel, "its tail went back, or beyond its ring|an entry of kind")
    for jump in (1024, 2**63, -1, -1024):
        channel, end = arena.meet(Direction.TX)
        alloc, _ = arena.lend_pool(channel, end)
        end.store(raw.CONSUMED, end.head + jump)
        channel.move(alloc.alloc(), done=lambda outcome: None)
        arena.broken(channel, "its consumed index went back, or beyond what was published")


@attack(BY_VALUE, VIOLATION)
def counts_of_contents_that_cannot_be(arena):
    """Have the victim copy from beyond the staging area: contents that begin elsewhere, more staged than there is room,
    a count that goes back."""
    channel, end = with_pool(arena)
    for serial in (64, 1, U64, 2**63):
        end.put(raw.MOVE, slot=end.first_slot, length=8, serial=serial)
        arena.broken(channel, "with contents at")
        channel, end = with_pool(arena)
    for filled in (end.terms.stage_size + 64, 2**63, U64):
        end.store(raw.FILLED, filled)
        end.put(raw.MOVE, slot=end.first_slot, length=8)
        arena.broken(channel, "staged bytes|staging area")
        channel, end = with_pool(arena)


@attack(BY_VALUE, VIOLATION)
def emptying_what_was_never_staged(arena):
    """Have the victim overwrite what is not read yet: more emptied than was filled, or less than before."""
    for emptied in (64, 2**63, U64):
        channel, end = arena.meet(Direction.TX)
        alloc, _ = arena.lend_pool(channel, end)
        end.store(raw.EMPTIED, emptied)
        buffers = alloc.alloc_many(COUNT)
        try:
            for _ in range(200):  # the staging area fills up, and the victim looks
                for buffer in buffers:
                    channel.copy(buffer)
                    entry = list(end.entries())[-1]
                    end.put(raw.RELEASE, slot=entry.slot, index=entry.index)
                    take(channel, EventKind.COPY_RELEASED)
        except bulk.ProtocolViolation as error:
            arena.note(f"ProtocolViolation: {error.reason}")
        else:
            raise AssertionError("nothing was noticed")


@attack(SHM, VIOLATION)
def announcements_without_a_message(arena):
    """Announce control messages that do not come, or under another number."""
    for serial in (1, U64):
        channel, end = with_pool(arena)
        end.put(raw.CONTROL, serial=serial if serial != 1 else end.messages + 1)
        arena.broken(channel, "was due")
    channel, end = with_pool(arena)
    end.put(raw.CONTROL, serial=end.messages)
    arena.broken(channel, "announced a control message that did not come")


@attack(SHM, VIOLATION)
def control_messages_that_are_none(arena):
    """Confuse the victim with garbage, cut and overlong messages, texts that are not UTF-8 or longer than they say."""
    for words in (
        b"garbage", b"BT", bytes(4096), b"BT\1\7" + bytes(5), b"BT\1\x63", b"BT\2\7" + bytes(4),
        raw.message(raw.TEARDOWN, "H1s", 9, b"x", more=b"\0"),
        raw.message(raw.TEARDOWN, "H2s", 2, b"\xff\xff", more=b"\0"),
        raw.message(raw.TEARDOWN, "H", 65535), raw.message(raw.TEARDOWN, text="", more=b"\2"),
        raw.message(raw.WITHDRAW, "I", 1) + b"x",
    ):  # fmt: skip
        channel, end = arena.meet()
        end.say(words)
        arena.broken(channel, "control message from the peer")


@attack(SHM, "the channel ends in order, once")
def ending_again_and_again(arena):
    """Tear the channel down five times, move on afterwards, and say that something broke."""
    channel, end = with_pool(arena)
    end.give(raw.MOVE, end.first_slot, 0, b"before the end")
    for _ in range(5):
        end.say(raw.message(raw.TEARDOWN, text="", more=b"\0"))
    end.give(raw.MOVE, end.first_slot, 1, b"after the end")
    end.say(raw.message(raw.TEARDOWN, text="broke", more=b"\1"))
    events = arena.broken(channel, "in order", bulk.EndOfChannelError)
    assert {event.kind for event in events if event.buffer} == {EventKind.MOVE_RECEIVED}
    assert sum(event.kind is EventKind.TEARDOWN_RECEIVED for event in events) == 1


@attack(SHM, IGNORED)
def a_sleeper_that_never_sleeps(arena):
    """Have the victim ring bells for ever: sleep counters that jump at random."""
    channel, end = with_pool(arena)
    for _ in range(50):
        end.own.map[raw.SLEEP_DATA : raw.SLEEP_DATA + 4] = os.urandom(4)
        end.own.map[raw.SLEEP_SPACE : raw.SLEEP_SPACE + 4] = os.urandom(4)
        end.give(raw.MOVE, end.first_slot, 0, b"x")
        channel.pass_(take(channel, EventKind.MOVE_RECEIVED).buffer)
        for _ in end.entries():
            pass
    arena.goes_on(channel, end)


@attack(SHARED, SPOILT)
def writing_after_a_move(arena):
    """Keep the mapping and write into a buffer that was moved to the victim."""
    channel, end = arena.meet()
    _, (memfd, _) = arena.bring_pool(channel, end)
    with mmap.mmap(memfd, COUNT * raw.PAGE) as kept:
        kept[:5] = b"first"
        end.give(raw.MOVE, end.first_slot, 0, length=5)
        got = take(channel, EventKind.MOVE_RECEIVED).buffer
        kept[:5] = b"later"
        assert got.tobytes() == b"later"  # what FULL and HALF do not promise
        arena.note("contents spoilt, as they may be")
    channel.pass_(got)
    arena.goes_on(channel, end)


@attack(BY_VALUE, UNCHANGED)
def writing_after_a_move_by_value(arena):
    """Keep the staging area and overwrite what was sent, before and after the victim takes it."""
    channel, end = with_pool(arena)
    data = os.urandom(raw.PAGE)
    for kind, what in ((raw.MOVE, EventKind.MOVE_RECEIVED), (raw.COPY, EventKind.COPY_RECEIVED)):
        end.give(kind, end.first_slot, kind - 1, data)
        got = take(channel, what).buffer
        seen = got.tobytes()
        end.own.map[end.own.stage_at :] = os.urandom(end.terms.stage_size)
        assert got.tobytes() == seen == data
    arena.note("unchanged")


@attack(BY_VALUE, UNCHANGED)
def writing_into_a_window(arena):
    """Expose a pool, move a buffer of it, and go on writing: the victim reads in place, into memory of its own."""
    channel, end = arena.meet()
    memfd = arena.keep(raw.memory(COUNT * raw.PAGE, raw.SEAL_SHRINK | raw.SEAL_GROW))
    with mmap.mmap(memfd, COUNT * raw.PAGE) as kept:
        raw.fcntl.fcntl(memfd, raw.F_ADD_SEALS, raw.SEAL_FUTURE_WRITE | raw.SEAL_SEAL)
        arena.offer(channel, end, exposed=1)
        pipe = os.pipe2(os.O_NONBLOCK)
        arena.ends += pipe
        end.say(raw.message(raw.ASSIGN_MEMORY, "I", 1), [memfd, pipe[1]])
        for fd in arena.answered(channel, end, raw.ASSIGN_DONE, 1):
            os.close(fd)
        take(channel, EventKind.POOL_ASSIGNED)
        kept[:5] = b"first"
        end.put(raw.MOVE, slot=end.first_slot, length=5)
        got = take(channel, EventKind.MOVE_RECEIVED).buffer
        kept[:5] = b"later"
        assert got.tobytes() == b"first"
        arena.note("unchanged")
