"""An answer that a callback left open: about a pool that somebody else has to decide on (rule 3; I-4.2.5).

Knows: when an answer is due, that it is given once, and what ends the question before. Must not know: what is judged
or said to the peer (answer.py does both).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from .._native.outcome import Outcome
from .._native.pool import Pool
from ..errors import BulkError, ChannelStateError, PoolVetoError

Conclude = Callable[[BulkError | None], None]


class Answer:
    """The answer to a peer's request about a pool, left open by Channel.defer; the peer waits for it.

    `operation` is "assign" or "remove"; `channel` and `pool` say of what.
    """

    def __init__(self, channel: Any, operation: str, pool: Pool, done: Callable[[Outcome], object]) -> None:
        self.channel = channel
        self.operation = operation
        self.pool = pool
        self._done = done
        self._answered = False
        self._verdict: BulkError | None = None
        self._void: BulkError | None = None  # why nobody wants the answer any more
        self._conclude: Conclude | None = None  # set once it is due

    @property
    def open(self) -> bool:
        """Whether the peer still waits for the answer."""
        return not self._answered and self._void is None

    @property
    def is_due(self) -> bool:
        """Whether the continuation was told that the answer may be given its effect."""
        return self._conclude is not None

    def accept(self) -> None:
        """Say yes: the pool is on the channel, or off it.

        Raises: ChannelStateError (the peer withdrew its request), the channel's end, ValueError (answered before).
        """
        self._settle("accept", None)

    def refuse(self, reason: BaseException | str) -> None:
        """Say no; the reason reaches the peer, with its class where it is an error of this library.

        Raises: ChannelStateError (the peer withdrew its request), the channel's end, ValueError (answered before).
        """
        if not isinstance(reason, BulkError):
            reason = PoolVetoError(f"{self.operation} of pool {self.pool.name} was vetoed: {reason}")
        self._settle("refuse", reason)

    def _settle(self, act: str, verdict: BulkError | None) -> None:
        with self.channel.domain.lock:
            if self._void is not None:
                raise self._void
            if self._answered:
                raise ValueError(f"{act} of {self!r}: it was answered before")
            self._answered = True
            self._verdict = verdict
            conclude = self._conclude
        if conclude is not None:
            with contextlib.suppress(ConnectionError):  # the peer is gone: the channel's end says so
                conclude(verdict)

    def due(self, conclude: Conclude) -> None:
        """From now on an answer takes effect, through `conclude`; one that was given before does so at once."""
        with self.channel.domain.lock:
            self._conclude = conclude
            answered = self._answered
        if answered:
            conclude(self._verdict)
        else:
            self._tell(None)

    def lapse(self, error: BulkError) -> None:
        """Nobody wants the answer any more."""
        with self.channel.domain.lock:
            if not self.open:
                return
            self._void = error
            told = self.is_due
        if not told:
            self._tell(error)

    def overrule(self) -> None:
        """The callback raised after all: that is the answer."""
        self._void = ChannelStateError(f"{self.operation} of pool {self.pool.name}: its callback raised, a veto")

    def _tell(self, error: BulkError | None) -> None:
        outcome = Outcome(self.operation, self.channel, error, None, self.pool)
        self.channel.expect_now(self._done, outcome)

    def __repr__(self) -> str:
        state = "open" if self.open else "answered" if self._answered else "void"
        return f"<Answer to {self.operation} of pool {self.pool.name}: {state}>"
