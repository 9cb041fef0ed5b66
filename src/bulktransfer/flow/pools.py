"""The pools of a junction: what is asked on one of its channels is asked on the others, and the answer comes back.

Knows: who was asked and has not answered; that a pool is on all channels that need it or on none. Must not know: how
transfers go on (junction.py). Nothing here waits: an answer that depends on others is left open (Channel.defer).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import bulktransfer as bulk

from .problem import Problem

Told = Callable[[bulk.Channel, BaseException | None], None]


class Joint(Protocol):
    """What the pools of a junction need of it."""

    inlets: list[bulk.Channel]
    outlets: list[bulk.Channel]
    patience: float | None

    def report(self, problem: Problem) -> None:
        """Tell of what was refused."""

    def drain(self) -> None:
        """Send on what waited for a pool."""


class Errand:
    """One request, taken to several channels; over when all have answered."""

    def __init__(self, asked: Sequence[bulk.Channel], over: Callable[[Errand], None]) -> None:
        self.left = set(asked)
        self.agreed: list[bulk.Channel] = []
        self.error: BaseException | None = None
        self._over = over

    def answered(self, channel: bulk.Channel, error: BaseException | None) -> None:
        """One of them answered; that it ended is no refusal."""
        if channel not in self.left:
            return
        self.left.discard(channel)
        if error is None:
            self.agreed.append(channel)
        elif not has_ended(error) and self.error is None:
            self.error = error
        self.finish()

    def finish(self) -> None:
        """Go on if nobody is left to answer."""
        if not self.left:
            self._over(self)


class Pools:
    """The pools of one junction."""

    def __init__(self, joint: Joint) -> None:
        self._joint = joint
        self._pending: dict[tuple[bulk.Channel, Any], list[Told]] = {}  # assignments under way, and who wants to know
        self._later: dict[bulk.Channel, list[Callable[[], None]]] = {}  # for when the channel is bound
        self.unready: set[Any] = set()  # ids of pools that are here and not yet onward
        self.unwanted: list[tuple[bulk.Channel, bulk.Pool]] = []  # refused onward, and still with buffers under way

    def callbacks(self) -> bulk.Callbacks:
        """What each channel of the junction asks before it takes or lets go a pool; any thread may run it."""
        return bulk.Callbacks(pool_assigned=self._asked, pool_removed=self._asked)

    def _asked(self, event: bulk.Event) -> None:
        channel: bulk.Channel = event.channel
        answer = channel.defer(event, lambda outcome: self._due(answer, outcome.error))

    def _due(self, answer: bulk.Answer, error: BaseException | None) -> None:
        """The pool is present here: ask the others. Runs where the junction receives."""
        if error is None:
            (self._take_on if answer.operation == "assign" else self._let_go)(answer.channel, answer.pool, answer)

    # ---- assignment ----

    def adopt(self, channel: bulk.Channel, pool: bulk.Pool) -> None:
        """A pool is on `channel` already: bring it onto the others too, or take it off again."""
        self._take_on(channel, pool, None)

    def _others(self, channel: bulk.Channel) -> list[bulk.Channel]:
        """Who needs the pools of `channel`: the other side, and beside an outlet the other outlets."""
        joint = self._joint
        others = joint.outlets if channel in joint.inlets else [*joint.inlets, *joint.outlets]
        return [other for other in others if other is not channel]

    def _take_on(self, channel: bulk.Channel, pool: bulk.Pool, answer: bulk.Answer | None) -> None:
        if answer is None:
            self.unready.add(pool.id)

        def over(errand: Errand) -> None:
            error = errand.error
            if error is None and not errand.agreed:
                error = bulk.PoolVetoError(f"assign of pool {pool.name}: nobody is left behind {channel!r} to take it")
            if error is None and self._settle(answer, None):
                self.unready.discard(pool.id)
                self._joint.drain()
                return
            for other in errand.agreed:  # all or none
                self._remove(other, pool, self._only_failure(pool))
            if error is not None:
                self._decline(channel, pool, answer, error)

        errand = Errand(self._others(channel), over)
        for other in tuple(errand.left):
            self._assign(other, pool, errand.answered)
        errand.finish()

    def _decline(self, channel: bulk.Channel, pool: bulk.Pool, answer: Any, error: BaseException) -> None:
        """The others do not want it: say so to whoever asked, or take it off again."""
        self._joint.report(Problem(error, channel, pool=pool))
        if answer is not None:
            self._settle(answer, error)
        else:
            self.unready.discard(pool.id)
            self.unwanted.append((channel, pool))
            self._joint.drain()  # what came of it is refused, and goes home
            self.expel()

    def expel(self) -> None:
        """Take refused pools off the channels that brought them, once what came of them has gone home."""
        tried, self.unwanted = self.unwanted, []
        for channel, pool in tried:

            def told(other: bulk.Channel, error: BaseException | None, pool: bulk.Pool = pool) -> None:
                if isinstance(error, bulk.PoolBusyError):
                    self.unwanted.append((other, pool))
                else:
                    self._told(other, error, pool)

            self._remove(channel, pool, told)

    def _settle(self, answer: bulk.Answer | None, error: BaseException | None) -> bool:
        """Answer; False if nobody wants the answer any more."""
        if answer is None:
            return True
        try:
            if error is None:
                answer.accept()
            else:
                answer.refuse(error)
        except bulk.BulkError:  # withdrawn, or the channel ended, which its end says
            return False
        return True

    def _assign(self, other: bulk.Channel, pool: bulk.Pool, told: Told) -> None:
        """Have `pool` on `other`, and tell how that went."""
        key = (other, pool.id)
        if other.state in (bulk.ChannelState.INITIALIZED, bulk.ChannelState.BIND_NEGOTIATE):
            self._later.setdefault(other, []).append(lambda: self._assign(other, pool, told))
        elif pool in other.pools:
            told(other, None)
        elif key in self._pending:
            self._pending[key].append(told)
        else:
            self._pending[key] = [told]
            try:
                other.assign_pool(pool, timeout=self._joint.patience, done=lambda outcome: self._assigned(key, outcome))
            except (bulk.BulkError, OSError, ValueError) as error:
                self._tell(key, error)

    def _assigned(self, key: tuple[bulk.Channel, Any], outcome: bulk.Outcome) -> None:
        self._tell(key, outcome.error)

    def _tell(self, key: tuple[bulk.Channel, Any], error: BaseException | None) -> None:
        for told in self._pending.pop(key, ()):
            told(key[0], error)

    # ---- removal ----

    def _let_go(self, channel: bulk.Channel, pool: bulk.Pool, answer: bulk.Answer | None) -> None:
        joint = self._joint
        beside = [other for other in joint.inlets if other is not channel] if channel in joint.inlets else []
        if any(pool in other.pools for other in beside):  # the others still need it onward
            self._settle(answer, None)
            return

        def over(errand: Errand) -> None:
            if errand.error is None:
                self._settle(answer, None)
                return
            joint.report(Problem(errand.error, channel, pool=pool))
            self._settle(answer, errand.error)
            if pool in channel.pools:
                for other in errand.agreed:
                    self._assign(other, pool, self._only_failure(pool))

        errand = Errand(self._others(channel), over)
        for other in tuple(errand.left):
            self._remove(other, pool, errand.answered)
        errand.finish()

    def gone(self, channel: bulk.Channel, pool: bulk.Pool) -> None:
        """A pool has left `channel` for good: it leaves the others."""
        self._let_go(channel, pool, None)

    def _remove(self, other: bulk.Channel, pool: bulk.Pool, told: Told) -> None:
        """Take `pool` off `other`, and tell how that went."""
        if pool not in other.pools:
            told(other, None)
            return
        try:
            other.remove_pool(pool, timeout=self._joint.patience, done=lambda outcome: told(other, outcome.error))
        except (bulk.BulkError, OSError) as error:
            told(other, error)

    def _told(self, channel: bulk.Channel, error: BaseException | None, pool: bulk.Pool) -> None:
        """A step that nobody waits for: only its failure is news."""
        if error is not None and not has_ended(error):
            self._joint.report(Problem(error, channel, pool=pool))

    def _only_failure(self, pool: bulk.Pool) -> Told:
        return lambda channel, error: self._told(channel, error, pool)

    # ---- set-up and end of a channel ----

    def bound(self, channel: bulk.Channel) -> None:
        """Somebody bound `channel`, or it ended: what waited for that goes on."""
        for action in self._later.pop(channel, ()):
            action()


def has_ended(error: BaseException | None) -> bool:
    """Whether an error says that a channel is over."""
    return isinstance(
        error, bulk.ClosedChannelError | bulk.EndOfChannelError | bulk.BrokenChannelError | bulk.ProtocolViolation
    )
