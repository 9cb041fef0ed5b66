"""Trust NONE against a sink that speaks for itself: it answers, or acknowledges, what it cannot have received yet.

The sink's end is the library's own until everything stands; from then on the test writes its outbox, as any process
that owns an outbox can.
"""

from __future__ import annotations

import ctypes

import pytest

import bulktransfer as bulk
from bulktransfer import EventKind, Trust, errors
from test_byvalue import STAGE, noise, receive_on, stall
from worlds import INVALID, READ_WRITE, World, nothing_comes, take

PASS, REFUSE = 2, 5  # kinds of entries, as layout.h has them
RING, TAIL, CONSUMED, REFUSED = 4096, 64, 128, 136


@pytest.fixture
def world():
    with World("shm") as world:
        world.assigning = {"means": "by value"}
        yield world


class Outbox:
    """The outbox of the one sink in this process, written without its library."""

    def __init__(self):
        with open("/proc/self/maps") as maps:
            own = [x.split()[0] for x in maps if "bulktransfer-outbox" in x and " rw-s " in x]
        firsts = [int(each.split("-")[0], 16) for each in own]
        (self.first,) = [first for first in firsts if not ctypes.c_uint64.from_address(first + 16).value]
        self.slots = ctypes.c_uint32.from_address(self.first + 8).value

    def word(self, offset):
        return ctypes.c_uint64.from_address(self.first + offset)

    def publish(self, kind, index, *, flags=0, length=0, serial=0):
        tail = self.word(TAIL)
        at = self.first + RING + (tail.value & (self.slots - 1)) * 64
        for offset, width, value in ((0, 2, kind), (2, 2, flags), (4, 4, 0), (8, 4, index), (12, 4, 0)):
            ctypes.memmove(at + offset, value.to_bytes(width, "little"), width)
        for offset, value in ((16, length), (24, serial)):
            ctypes.memmove(at + offset, value.to_bytes(8, "little"), 8)
        tail.value += 1


def half_way(world):
    """A buffer whose contents are in the staging area in part; the rest waits for a sink that takes nothing."""
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, trust=Trust.NONE)
    alloc = world.allocator(a, count=2, size=4 * STAGE)
    world.assign(tx, rx, alloc.pool)
    stall(world, tx, rx)
    buffer = alloc.alloc()
    data = noise(4 * STAGE)
    buffer.put(data)
    found = []
    tx.move(buffer, done=found.append)
    assert tx.statistics()["waiting_to_be_sent"] == 1
    return tx, rx, alloc, buffer, data, found


def test_a_pass_of_what_has_not_left_yet_is_a_violation_and_the_memory_stays(world):
    tx, _, alloc, buffer, data, _ = half_way(world)
    Outbox().publish(PASS, buffer.index, length=buffer.size)
    with pytest.raises(bulk.ProtocolViolation, match="does not have"):
        receive_on(tx)
    assert tx.state is bulk.ChannelState.CLOSED
    # nothing reads the rest any more: the memory is free again, and as it was
    assert (buffer.state, alloc.detached) == (READ_WRITE, 0)
    assert ctypes.string_at(buffer.address, len(data)) == data


def test_a_refusal_of_what_has_not_left_yet_is_a_violation(world):
    tx, _, _, buffer, _, _ = half_way(world)
    code = errors.CODE_OF[errors.NotOwnedError]
    Outbox().publish(REFUSE, buffer.index, flags=1, length=code, serial=1)
    with pytest.raises(bulk.ProtocolViolation, match="which was not sent"):
        receive_on(tx)


def test_an_acknowledgement_of_what_has_not_left_yet_frees_nothing(world):
    """It is the sink's word that it accepted, which is all that a continuation tells."""
    tx, _, alloc, buffer, _, found = half_way(world)
    box = Outbox()
    box.word(CONSUMED).value += 2  # the question that it was asked, and the move
    with pytest.raises(bulk.WouldBlock):
        tx.receive_nowait()
    assert [outcome.error for outcome in found] == [None]
    assert (buffer.state, tx.statistics()["waiting_to_be_sent"]) == (INVALID, 1)
    with pytest.raises(bulk.InvalidBufferError):
        buffer.put(b"not yet")
    tx.close()
    assert (buffer.state, alloc.detached) == (INVALID, 1)  # its bytes are still to be read


def test_a_second_pass_of_one_buffer_changes_nothing(world):
    a, b = world.domains(2)
    tx, rx = world.channel(a, b, trust=Trust.NONE)
    alloc = world.allocator(a, count=2)
    world.assign(tx, rx, alloc.pool)
    buffer = alloc.alloc()
    buffer.put(b"once")
    tx.move(buffer)
    take(rx, EventKind.MOVE_RECEIVED)
    box = Outbox()
    box.publish(PASS, buffer.index, length=buffer.size)
    assert take(tx, EventKind.BUFFER_RECEIVED).buffer is buffer
    buffer.put(b"mine again")
    box.publish(PASS, buffer.index, length=buffer.size)
    nothing_comes(tx)
    assert (buffer.state, buffer.tobytes()) == (READ_WRITE, b"mine again")
    assert tx.statistics()["refused_here"] == 1
