"""What the library refuses: a process that misbehaves on purpose, and one that suffers it.

Knows: how to break each rule through the public names. Must not know: what is printed.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import signal
import warnings
from collections.abc import Callable
from typing import Any

import bulktransfer as bulk

from . import crew
from .crew import PATIENCE_S
from .refusal import Refusal

_OURS = b"what the other process must not change"
_META_BYTES = 16


Act = Callable[[], object]
Misdeed = tuple[str, type[BaseException], Act]


def commit(trust: bulk.Trust) -> list[Refusal]:
    """Have a process misbehave in every way that is listed below, and finally die. Raises: crew.CrewError."""
    name = f"shm:demo-{secrets.token_hex(6)}"
    members: list[crew.Member] = []
    with (
        crew.watching(members),
        bulk.create(f"{name}-give", direction=bulk.Direction.TX, trust=trust, meta_size=_META_BYTES) as give,
        bulk.create(f"{name}-take", direction=bulk.Direction.RX, trust=trust, meta_size=_META_BYTES) as take,
        bulk.create(f"{name}-open", direction=bulk.Direction.RX, trust=trust),
        bulk.Allocator(count=4, size=4096) as frames,
    ):
        members.append(crew.process("the culprit", culprit, name))
        (member,) = members
        give.wait_bound(PATIENCE_S)
        take.wait_bound(PATIENCE_S)
        give.assign_pool(frames.pool, timeout=PATIENCE_S)
        moved, copied = frames.alloc_many(2)
        for buffer in (moved, copied):
            buffer.put(_OURS)
        give.move(moved)
        give.copy(copied)
        refusals = _suffer(member, take)
        refusals.append(_unharmed("have harmed the other process by all this", copied, _OURS))
        member.tell("die")
        refusals.append(_survive(give, moved))
    return refusals


def _suffer(member: crew.Member, take: bulk.Channel) -> list[Refusal]:
    """Go on receiving, as an honest process does, while the other one tries everything."""
    while not member.pipe.poll():
        with contextlib.suppress(TimeoutError):
            take.receive(0.02)
    refusals: list[Refusal] = member.hear()
    return refusals


def _unharmed(tried: str, buffer: bulk.Buffer, contents: bytes) -> Refusal:
    if buffer.tobytes() == contents:
        return Refusal(tried, "no effect", "no effect", "the owner's bytes are as they were", True)
    return Refusal(tried, "no effect", None, "the owner's bytes have changed", False)


def _survive(give: bulk.Channel, moved: bulk.Buffer) -> Refusal:
    """The other process is killed while it owns a buffer of ours."""
    tried = "be killed while it owns a buffer"
    try:
        give.receive(PATIENCE_S)
    except bulk.BrokenChannelError as error:
        back = moved.owned and any(buffer is moved for buffer in error.buffers)
        what = "the buffer is back" if back else "the buffer is lost"
        return Refusal(tried, "BrokenChannelError", type(error).__name__, f"{error}; {what}", back)
    return Refusal(tried, "BrokenChannelError", None, "its death went unnoticed", False)


def culprit(pipe: Any, name: str) -> None:
    """Misbehave, tell what came of it, and be killed."""
    with Stage(name) as stage:
        stage.set_up()
        pipe.send([attempt(*misdeed, stage.states) for misdeed in [*stage.with_buffers(), *stage.with_channels()]])
        pipe.recv()
        os.kill(os.getpid(), signal.SIGKILL)


def attempt(
    tried: str, expected: type[BaseException], act: Callable[[], object], states: Callable[[], object]
) -> Refusal:
    """Do what should be refused; `states()` must say the same before and afterwards."""
    before = states()
    try:
        act()
    except Exception as error:  # noqa: BLE001 - whatever comes is what is shown
        right = isinstance(error, expected) and states() == before
        text = str(error) if states() == before else f"{error} (but something has changed)"
        return Refusal(tried, expected.__name__, type(error).__name__, text, right)
    return Refusal(tried, expected.__name__, None, "it went through", False)


class Stage:
    """The culprit's side: what it was given, what it has of its own, and every rule it breaks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stack.close()

    def set_up(self) -> None:
        """Behave, for once."""
        enter = self.stack.enter_context
        self.get = enter(bulk.bind(f"{self.name}-give", timeout=PATIENCE_S))
        self.put = enter(bulk.bind(f"{self.name}-take", timeout=PATIENCE_S))
        self.mine = enter(bulk.Allocator(count=8, size=4096))
        self.put.assign_pool(self.mine.pool, timeout=PATIENCE_S)
        self.owned = self.get.receive_buffer(PATIENCE_S).buffer
        self.held = self.get.receive_buffer(PATIENCE_S).buffer
        self.gone, self.viewed, self.lent, self.fresh, self.freed = self.mine.alloc_many(5)
        self.put.move(self.gone)
        self.put.copy(self.lent)
        self.mine.free(self.freed)
        self.view = self.stack.enter_context(memoryview(self.viewed))
        self.stray = enter(bulk.Allocator(count=1, size=4096)).alloc()

    def states(self) -> object:
        """Everything that a refusal must leave as it is."""
        buffers = (self.owned, self.held, self.gone, self.viewed, self.lent, self.fresh, self.freed, self.stray)
        pools = self.get.pools, self.put.pools
        return (
            [(b.state, b.length, b.exports) for b in buffers],
            pools,
            self.mine.available,
            self.put.statistics()["sent"],
        )

    def with_buffers(self) -> list[Misdeed]:
        """Rules on who may do what with a buffer."""
        put, get, mine = self.put, self.get, self.mine
        return [
            ("write to a buffer that it has moved away", bulk.InvalidBufferError, lambda: self.gone.put(b"x")),
            ("look at a buffer that it has moved away", bulk.InvalidBufferError, lambda: memoryview(self.gone)),
            ("move it a second time", bulk.InvalidBufferError, lambda: put.move(self.gone)),
            ("move a buffer while a view of it is live", BufferError, lambda: put.move(self.viewed)),
            ("free a buffer while a view of it is live", BufferError, lambda: mine.free(self.viewed)),
            ("write to a copy through a view", TypeError, lambda: _scribble(self.held)),
            ("write to a copy", bulk.NotOwnedError, lambda: self.held.put(b"x")),
            ("pass a copy back as if it owned it", bulk.NotOwnedError, lambda: get.pass_(self.held)),
            ("release a buffer of which it holds no copy", bulk.NotACopyError, lambda: get.release(self.owned)),
            ("write to a buffer while a copy of it is out", bulk.CopiesOutstandingError, lambda: self.lent.put(b"x")),
            ("move a buffer while a copy of it is out", bulk.CopiesOutstandingError, lambda: put.move(self.lent)),
            ("free a buffer while a copy of it is out", bulk.CopiesOutstandingError, lambda: mine.free(self.lent)),
            ("copy a buffer twice over one channel", bulk.AlreadyCopiedError, lambda: put.copy(self.lent)),
            ("free a buffer twice", bulk.NotAllocatedError, lambda: mine.free(self.freed)),
            ("look at a buffer that is free", bulk.NotAllocatedError, lambda: memoryview(self.freed)),
            ("free somebody else's buffer", ValueError, lambda: mine.free(self.owned)),
            ("write beyond the end of a buffer", ValueError, lambda: self.fresh.put(bytes(self.fresh.size + 1))),
            ("move the same buffer twice in a batch", ValueError, lambda: put.move_many([self.fresh, self.fresh])),
            ("pickle a buffer", TypeError, lambda: pickle.dumps(self.fresh)),
        ]

    def with_channels(self) -> list[Misdeed]:
        """Rules on channels and pools."""
        put, get, mine, nobodys = self.put, self.get, self.mine, f"{self.name}-open"
        other = next(trust for trust in (bulk.Trust.NONE, bulk.Trust.FULL) if trust is not put.trust)
        return [
            ("move from the receiving end", bulk.DirectionError, lambda: get.move(self.owned)),
            ("send a buffer of a foreign pool", bulk.PoolNotAssignedError, lambda: put.move(self.stray)),
            (
                "forward a buffer where its pool is not assigned",
                bulk.PoolNotAssignedError,
                lambda: put.move(self.owned),
            ),
            ("send more meta data than was agreed", bulk.MetaSizeError, lambda: put.move(self.fresh, bytes(999))),
            ("assign a pool twice", bulk.PoolAlreadyAssignedError, lambda: put.assign_pool(mine.pool)),
            ("remove a pool whose buffers are out", bulk.PoolBusyError, lambda: put.remove_pool(mine.pool)),
            ("bind a channel that is bound", bulk.BindRefusedError, lambda: bulk.bind(put.address)),
            ("ask for another trust level", bulk.TrustMismatchError, lambda: bulk.bind(nobodys, trust=other)),
            ("leave the trust level out", TypeError, _without_trust),
            ("use a channel of its parent after a fork", bulk.ForkedError, lambda: _in_fork(self.fresh, put)),
            ("use a channel that it has closed", bulk.ClosedChannelError, _after_close),
        ]


def _scribble(buffer: bulk.Buffer) -> None:
    with memoryview(buffer) as view:
        view[0] = 0


def _without_trust() -> None:
    nothing: Any = None
    bulk.create("shm:", direction=bulk.Direction.TX, trust=nothing)


def _in_fork(buffer: bulk.Buffer, channel: bulk.Channel) -> None:
    """Move it from a forked child; what is raised there is raised here."""
    here, there = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child does this one thing and is gone
        pid = os.fork()
    if not pid:
        try:
            channel.move(buffer)
        except Exception as error:  # noqa: BLE001 - it is what the parent wants
            os.write(there, pickle.dumps(error))
        finally:
            os._exit(0)
    os.close(there)
    with open(here, "rb") as report:
        text = report.read()
    os.waitpid(pid, 0)
    if text:
        raise pickle.loads(text)


def _after_close() -> None:
    with bulk.create("shm:", direction=bulk.Direction.RX, trust=bulk.Trust.FULL) as channel:
        channel.close()
        channel.receive(0)
