"""Attacks on set-up: whoever knocks, and whoever says that he is the creator."""

from __future__ import annotations

import contextlib
import os
import socket

import bulktransfer as bulk
from adversary import raw
from adversary.registry import ANY, IGNORED, KEPT_OUT, SHM, VIOLATION, attack
from bulktransfer import ChannelState, Limits
from worlds import PATIENCE_S, together

HASTE = Limits(handshake_s=0.1)


def gets_in(arena, channel):
    """A well-behaved binder is let in all the same."""
    binder, _ = together(
        lambda: bulk.bind(channel.address, domain=bulk.Domain()), lambda: channel.wait_bound(PATIENCE_S)
    )
    arena.world.made.append(binder)
    assert channel.state is ChannelState.CONNECTED
    arena.note("an honest binder gets in")


def shown_out(arena, channel, end):
    """The victim hangs up on whoever did that, and is open for others."""
    arena.serve(lambda: channel.state is ChannelState.INITIALIZED and not channel.reception.candidates)
    gets_in(arena, channel)


@attack(ANY, KEPT_OUT)
def words_that_are_no_hello(arena):
    """Confuse the creator with garbage, an empty message, 4096 bytes, a message of another kind, a cut one, text
    that is not UTF-8, a number of terms without terms."""
    channel = arena.create()
    for words in (
        b"garbage" * 9, b"\0", b"\xff" * 4096, b"B" * 100_000, raw.hello()[:-1], raw.hello() + b"x",
        raw.message(raw.TEARDOWN, text="", more=b"\0"),
        raw.message(raw.TEARDOWN, "H3s", 3, b"\xff\xfe\xfd", more=b"\0"),
        raw.message(raw.WELCOME, "16sB", bytes(16), 64), raw.message(raw.CONFIRM), raw.message(99), b"BT\2\1",
        raw.hello(trust=9), raw.hello(role=9), raw.hello(version=0),
    ):  # fmt: skip
        arena.connect(channel).send(words)
        arena.serve(lambda: not channel.reception.candidates)
    arena.connect(channel).shutdown(socket.SHUT_WR)
    gets_in(arena, channel)


@attack(ANY, KEPT_OUT)
def a_flood_of_half_open_connections(arena):
    """Keep honest binders out with more connections than the victim receives at once and the kernel queues for it,
    each silent after its first word or before it."""
    channel = arena.create(limits=Limits(half_open=8, handshake_s=0.1))
    count = 0
    for _ in range(4):
        with contextlib.suppress(BlockingIOError):
            while True:
                sock = arena.connect(channel)
                count += 1
                if count % 2:
                    sock.send(raw.hello())
        arena.victim.serve()
        assert len(channel.reception.candidates) <= 8
    arena.note(f"{count} connections")
    gets_in(arena, channel)


@attack(ANY, KEPT_OUT)
def a_handshake_that_never_ends(arena):
    """Hold the endpoint with a binder that says Hello, takes the outboxes, and never confirms."""
    channel = arena.create(limits=HASTE)
    arena.welcomed(channel)
    gets_in(arena, channel)


@attack(SHM, KEPT_OUT)
def a_confirmation_without_an_outbox(arena):
    """Have the victim connect to nothing: no outbox, two of them, or 253 descriptors."""
    channel = arena.create()
    for count in (0, 2, 253):
        end = arena.welcomed(channel)
        end.own.seal()
        end.send(raw.message(raw.CONFIRM), [end.own.fd] * count)
        arena.serve(lambda: channel.state is ChannelState.INITIALIZED)
    shown_out(arena, channel, end)


def outboxes(terms, size):
    """What an outbox must not be: a name, and how to make it."""
    null = os.open("/dev/null", os.O_RDWR)
    zero = os.open("/dev/zero", os.O_RDWR)
    directory = os.open("/tmp", os.O_RDONLY)
    regular = os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.ftruncate(regular, size)
    pipe_read, pipe_write = os.pipe()
    sock, other = socket.socketpair()
    yield from [null, zero, directory, regular, pipe_read, pipe_write, sock.detach(), other.detach()]
    yield raw.memory(size, 0)
    for missing in (raw.SEAL_SHRINK, raw.SEAL_GROW, raw.SEAL_SEAL, raw.SEAL_FUTURE_WRITE):
        yield raw.memory(size, raw.BOX_SEALS & ~missing)
    for wrong in (size - 1, size - 4096, size + 4096, size + (1 << 30), 0):
        yield raw.memory(wrong, raw.BOX_SEALS, sparse=wrong > size)
    yield raw.memory(size, raw.BOX_SEALS, sparse=True)
    yield raw.memory(size, raw.BOX_SEALS)  # whose header says nothing
    for field in range(5):  # magic, version, slot_count, meta_size, stage_size
        header = [raw.BOX_MAGIC, raw.BOX_VERSION, terms.slot_count, terms.meta_size, 0]
        header[field] ^= 1
        fd = raw.memory(size, raw.SEAL_SHRINK | raw.SEAL_GROW)
        os.pwrite(fd, raw.BOX.pack(*header), 0)
        raw.fcntl.fcntl(fd, raw.F_ADD_SEALS, raw.SEAL_FUTURE_WRITE | raw.SEAL_SEAL)
        yield fd


@attack(SHM, KEPT_OUT)
def an_outbox_that_is_none(arena):
    """Have the victim map what can shrink, stall, change or lie under it: devices, directories, files on disk, pipes,
    sockets; memfds that are unsealed or lack one seal, are short, huge, empty or sparse; headers that describe another
    ring."""
    channel = arena.create()
    end = arena.welcomed(channel)
    tried = 0
    for fd in outboxes(end.terms, end.own.size):
        arena.keep(fd)
        end.send(raw.message(raw.CONFIRM), [fd])
        arena.serve(lambda: channel.state is ChannelState.INITIALIZED)
        end.close()
        arena.ends.remove(end)
        end = arena.welcomed(channel)
        tried += 1
    end.sock.close()
    arena.note(f"{tried} kinds refused")
    shown_out(arena, channel, end)


@attack(ANY, VIOLATION)
def a_creator_that_offers_what_cannot_be(arena):
    """Mislead a binder: terms that leave role or trust open, a staging area where memory is shared, rings of no power
    of two, 64 channels without sockets, another message, garbage, outboxes that are none."""
    good = raw.Terms(raw.RX, raw.SLAVE, raw.FULL, 32, 64, 0)
    bad = [good._replace(**change) for change in (
        {"role": 0}, {"trust": 0}, {"trust": 7}, {"direction": 2}, {"slot_count": 3}, {"slot_count": 1 << 30},
        {"slot_count": 0}, {"meta_size": 4096}, {"stage_size": 1 << 20}, {"stage_size": 3}, {"trust": raw.NONE},
        {"trust": raw.NONE, "stage_size": 4096},
    )]  # fmt: skip
    welcome = b"BT\1\2" + bytes(16)
    replies = [(welcome + bytes([1]) + terms.pack(), 1) for terms in bad]
    replies += [(welcome + bytes([64]) + good.pack() * 64, 127), (welcome + bytes([64]) + good.pack(), 1)]
    replies += [(welcome + bytes([1]) + good.pack(), count) for count in (0, 1, 3, 253)]
    replies += [(raw.message(raw.CONFIRM), 0), (b"garbage" * 9, 0), (raw.hello(), 0), (bytes(4096), 0)]
    junk = arena.keep(raw.memory(4096))
    seen = []
    for data, count in replies:
        error = answer_the_binder(arena, data, [junk] * count)
        assert isinstance(error, bulk.BulkError), (data, error)
        seen.append(type(error).__name__)
    arena.note(", ".join(f"{seen.count(name)} {name}" for name in sorted(set(seen))))


@attack(ANY, "the refusal is an error of the binder, whatever it says")
def a_creator_that_refuses_with_a_code_that_is_none(arena):
    """Crash a binder with a refusal that no version of the library knows."""
    for code in (1, 4711, 65535):
        error = answer_the_binder(arena, raw.message(raw.REFUSAL, "H", code, text="no \U0001f600"))
        assert isinstance(error, bulk.BulkError)
        arena.note(type(error).__name__)


@attack(ANY, "TimeoutError, when the binder's own time is over")
def a_creator_that_never_answers(arena):
    """Hang a binder."""
    error = answer_the_binder(arena, None, timeout=0.1)
    assert isinstance(error, TimeoutError)
    arena.note("TimeoutError")


def answer_the_binder(arena, data, fds=(), timeout=PATIENCE_S):
    """The victim binds to an attacker, who answers so: the error that it gets."""
    path = f"{os.environ['BULKTRANSFER_DIR']}/trap"
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as trap:
        trap.bind(path)
        os.chmod(path, 0o600)
        trap.listen()

        def lie():
            sock, _ = trap.accept()
            arena.keep(sock)
            sock.recv(4096)
            if data is not None:
                socket.send_fds(sock, [data], list(fds))
            return [True]

        def fall():
            try:
                arena.world.made.append(bulk.bind("shm:trap", domain=arena.victim, timeout=timeout))
            except (bulk.BulkError, TimeoutError) as error:
                return error
            raise AssertionError("the victim fell for it")

        _, error = together(lie, fall)
    os.unlink(path)
    return error


@attack(SHM, VIOLATION)
def set_up_words_after_set_up(arena):
    """Begin again on a connected channel: Hello, Welcome, Confirm, Refusal."""
    for words in (
        raw.hello(), raw.message(raw.CONFIRM), raw.message(raw.REFUSAL, "H", 1, text="no"),
        b"BT\1\2" + bytes(16) + bytes([1]) + raw.Terms(raw.RX, raw.SLAVE, raw.FULL, 32, 64, 0).pack(),
    ):  # fmt: skip
        channel, end = arena.meet()
        end.say(words)
        arena.broken(channel, "on a connected channel")


@attack(ANY, IGNORED)
def a_binder_that_dies_at_every_step(arena):
    """Leave the creator with half a peer: gone before Hello, before Welcome, before Confirm, right after it."""
    channel = arena.create()
    arena.connect(channel).close()
    sock = arena.connect(channel)
    sock.send(raw.hello())
    sock.close()
    arena.serve(lambda: not channel.reception.candidates)
    arena.welcomed(channel).sock.close()
    arena.serve(lambda: channel.state is ChannelState.INITIALIZED)
    gets_in(arena, channel)
    other, end = arena.meet()
    end.sock.close()
    arena.broken(other, "gone", bulk.BrokenChannelError)
