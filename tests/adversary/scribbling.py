"""Attacks by a C program that writes over everything it shares, while traffic runs and the victim looks."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import tempfile
import threading
from pathlib import Path

import bulktransfer as bulk
from adversary import raw
from adversary.arena import COUNT
from adversary.registry import BY_VALUE, SHARED, SHM, attack
from adversary.transfers import with_pool
from bulktransfer import Direction, EventKind
from worlds import PATIENCE_S, take

SOURCE = Path(__file__).with_name("scribble.c")


@functools.cache
def program() -> str:
    """The C program, compiled once a process."""
    directory = tempfile.mkdtemp(prefix="bulk-scribble-")
    path = f"{directory}/scribble"
    subprocess.run(["gcc", "-O1", "-o", path, str(SOURCE)], check=True)
    return path


@contextlib.contextmanager
def scribbler(*memory):
    """The program over these (descriptor, size), mapped and waiting; call what is given to have it begin."""
    numbers = [str(number) for pair in memory for number in pair]
    process = subprocess.Popen(
        [program(), *numbers], pass_fds=[fd for fd, _ in memory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"mapped\n"

        def begin():
            process.stdin.write(b"go")
            process.stdin.flush()

        yield begin
        assert process.poll() is None, "the scribbler ended"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def rounds() -> int:
    return int(os.environ.get("BULK_ADVERSARY_ROUNDS", "12"))


@attack(SHM, "the channel may break with a typed error; no crash, no hang, no stray access; others go on")
def scribbling_over_every_byte_of_the_outbox(arena):
    """Write noise, bits and nearly right numbers over every byte of ring, indices, meta data and staging area, while
    the victim receives, sends and answers."""
    broken = 0
    for number in range(rounds()):
        channel = arena.create(Direction.RX if number % 2 else Direction.TX, limits=bulk.Limits(slot_count=16))
        end = arena.welcomed(channel)
        with scribbler((end.own.fd, end.own.size)) as begin:
            arena.confirm(end, channel)
            if number % 2:
                arena.bring_pool(channel, end)
            else:
                alloc, _ = arena.lend_pool(channel, end)
            begin()
            try:
                for _ in range(300):
                    end.bell()
                    if not number % 2 and alloc.available:
                        channel.move(alloc.alloc(), done=lambda outcome: None)
                    with contextlib.suppress(bulk.WouldBlock):
                        buffer = channel.receive_nowait().buffer
                        if buffer is not None and number % 2 and buffer.owned:
                            len(buffer.tobytes())
                            channel.pass_(buffer)
                    if _ % 50 == 0:
                        arena.friends_go_on()
            except bulk.BulkError as error:
                assert isinstance(error, bulk.ProtocolViolation | bulk.BrokenChannelError | bulk.EndOfChannelError), (
                    error
                )
                broken += 1
        arena.friends_go_on()
        channel.close()
        end.close()
        arena.ends.remove(end)
    arena.note(f"{rounds()} channels, {broken} broken with a typed error")


@attack(SHARED, "contents may be spoilt; who owns what, lengths and everything else stay right")
def scribbling_over_every_byte_of_the_pool(arena):
    """Write over every byte of the shared pool while honest traffic goes both ways."""
    channel, end = arena.meet()
    _, (memfd, _) = arena.bring_pool(channel, end)
    with scribbler((memfd, COUNT * raw.PAGE)) as begin:
        begin()
        for number in range(25 * rounds()):
            end.give(raw.MOVE, end.first_slot, number % COUNT, length=number % raw.PAGE)
            got = take(channel, EventKind.MOVE_RECEIVED).buffer
            assert (got.index, got.length, len(got.tobytes())) == (number % COUNT, number % raw.PAGE, number % raw.PAGE)
            got.put(b"mine")
            channel.pass_(got)
            assert [entry.index for entry in end.entries() if entry.kind == raw.PASS] == [number % COUNT]
    arena.goes_on(channel, end)


@attack(BY_VALUE, "what was received is one of what was sent, or noise, and does not change afterwards")
def flipping_contents_while_the_victim_copies(arena):
    """Write over the staging area while contents are taken out of it."""
    channel = arena.create()
    end = arena.welcomed(channel)
    stop = threading.Event()
    arena.confirm(end, channel)
    arena.bring_pool(channel, end)

    def run():
        noise = os.urandom(65536)
        while not stop.is_set():
            end.own.map[end.own.stage_at : end.own.stage_at + 65536] = noise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for number in range(25 * rounds()):
            end.give(raw.MOVE, end.first_slot, number % COUNT, os.urandom(raw.PAGE))
            got = take(channel, EventKind.MOVE_RECEIVED).buffer
            assert got.tobytes() == got.tobytes()
            channel.pass_(got)
            for _ in end.entries():
                pass
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    arena.note("unchanged once received")


@attack(SHM, "each entry is taken as it is read once: whole, or a violation")
def flipping_an_entry_while_the_victim_judges(arena):
    """Change index, length, pool number and meta size of an entry between check and use: right and wrong in turn, a
    thousand times a moment."""
    outcomes = {"taken": 0, "violation": 0}
    for _ in range(rounds()):
        channel, end = with_pool(arena)
        stop = threading.Event()
        at = end.slot_at(end.tail)
        good = raw.ENTRY.pack(raw.MOVE, 0, end.first_slot, 0, 0, 8, 0, bytes(32))
        bad = raw.ENTRY.pack(raw.MOVE, 0, end.first_slot, 2**32 - 1, 2**31, 2**63, 0, bytes(32))
        if end.terms.stage_size:
            end.stage(b"contents")

        def flip(end=end, at=at, good=good, bad=bad, stop=stop):
            while not stop.is_set():
                for _ in range(500):
                    end.own.map[at : at + 64] = good
                    end.own.map[at : at + 64] = bad

        thread = threading.Thread(target=flip)
        thread.start()
        try:
            end.tail += 1
            end.store(raw.TAIL, end.tail)
            end.bell()
            event = channel.receive(PATIENCE_S)
            assert (event.buffer.index, event.buffer.length, event.meta) == (0, 8, b"")
            outcomes["taken"] += 1
        except bulk.ProtocolViolation:
            outcomes["violation"] += 1
        finally:
            stop.set()
            thread.join(PATIENCE_S)
        channel.close()
    arena.note(", ".join(f"{count} {what}" for what, count in outcomes.items()))
