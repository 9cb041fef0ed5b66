"""Kills one of two sides at every step of their conversation, and judges the other.

Knows: what must be true of a survivor: a typed error at once, its buffers back, its other channels in order, nothing
left. Must not know: what a step is made of.
"""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import bulktransfer as bulk
from bulktransfer import ChannelState, Direction, EventKind, Trust

from .script import ACTS, LIMITS, PATIENCE_S, Cast, Side
from .tracing import KILL, Board, Child, Step, own_outbox

TYPED = (bulk.BrokenChannelError, bulk.EndOfChannelError)
SETTLED = (ChannelState.CONNECTED, ChannelState.TEARDOWN, ChannelState.CLOSED)
LEVELS = (Trust.FULL, Trust.HALF, Trust.NONE)


class Scene(NamedTuple):
    """One conversation: at which level, who asks, who dies."""

    trust: Trust
    source_asks: bool
    source_dies: bool

    @property
    def name(self) -> str:
        """For people."""
        asks = "source" if self.source_asks else "sink"
        return f"{self.trust.name}, {asks} asks, {'source' if self.source_dies else 'sink'} dies"


class Death(NamedTuple):
    """One kill and what became of it; `wrong` says what should not be."""

    scene: Scene
    step: int
    act: str
    outcome: str
    wrong: tuple[str, ...]


SCENES = [Scene(trust, asks, dies) for trust in LEVELS for asks in (True, False) for dies in (True, False)]


def victim(cast: Cast, is_source: bool, board: Board) -> None:
    """The side that is killed, in a forked child; it ends with 0 if nobody kills it."""
    side = Side(cast, is_source, bulk.current_domain())
    side.watch = lambda: board.watch(own_outbox())
    for number, (_, do) in enumerate(side.acts()):
        board.mark(number)
        do()
    board.mark(len(ACTS) - 1)
    side.leave()


class Execution:
    """One run: the victim in a child that a thread traces, the survivor here."""

    def __init__(self, scene: Scene, step: int, directory: str) -> None:
        self.scene, self.step = scene, step
        self.board = Board()
        self.cast = Cast(scene.trust, scene.source_asks, f"shm:{directory}/kill")
        self.died = ""  # the act
        self.status = 0
        self.steps = 0
        self._forked = threading.Event()
        self._thread = threading.Thread(target=self._trace)

    def _trace(self) -> None:
        child = Child(lambda: victim(self.cast, self.scene.source_dies, self.board), self.board)
        self._forked.set()
        self.status = child.run(self._decide)
        self.steps = child.steps

    def _decide(self, step: Step) -> int | None:
        if step.number != self.step:
            return None
        self.died = ACTS[step.phase]
        return KILL

    @property
    def over(self) -> bool:
        """Whether the victim is no more."""
        return not self._thread.is_alive()

    def run(self) -> Death:
        """All of it."""
        before = held()
        with bulk.Domain() as domain:
            neighbour = Neighbour(domain)
            self._thread.start()
            self._forked.wait(PATIENCE_S)
            side = Side(self.cast, not self.scene.source_dies, domain)
            outcome, wrong = self._survive(side)
            self._thread.join(PATIENCE_S)
            if not self.died and self.status != 0:
                wrong.append(f"the victim ended with {self.status}, unharmed by us")
            wrong += side.home() if self.died else []
            wrong += neighbour.goes_on()
            wrong += side.leave()
            neighbour.close()
            wrong += self._next_creator(domain)
        self.board.close()
        del side, neighbour, domain
        wrong += left(before)
        return Death(self.scene, self.step, self.died, outcome, tuple(wrong))

    def _survive(self, side: Side) -> tuple[str, list[str]]:
        """Play on until it ends, one way or the other: how, and what is wrong with that."""
        try:
            for act, do in side.acts():
                if act == "bind":
                    if not self._bind(side):
                        return "nobody bound; the next one could", []
                else:
                    do()
        except TYPED as error:
            due = "ClosedChannelError" if act == "bind" else type(error).__name__  # it was never bound
            again = _again(side)
            return type(error).__name__, [] if again == due else [f"the next call raised {again}"]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not what was promised
            return type(error).__name__, [f"{type(error).__name__}: {error}"]
        return "unharmed", []

    def _bind(self, side: Side) -> bool:
        """Be bound; False if the victim died before, and somebody else could be bound in its place."""
        channel: Any
        outcomes: list[bulk.Outcome] = []
        options: dict[str, Any] = {"wait": "block", "limits": LIMITS, "domain": side.domain}
        if side.asks:
            direction = Direction.TX if side.is_source else Direction.RX
            channel = bulk.create(self.cast.address, direction=direction, trust=self.scene.trust, **options)
        else:
            channel = bulk.bind(self.cast.address, timeout=None, done=outcomes.append, **options)
        side.channel = channel
        if self._until(side.domain, lambda: channel.state in SETTLED):
            if side.asks:
                channel.wait_bound(PATIENCE_S)
            _fire(channel, outcomes)
            if outcomes and outcomes[0].error is not None:
                raise outcomes[0].error
            return True
        with bulk.Domain() as other:
            again: list[bulk.Outcome] = []
            options["domain"] = other
            if side.asks:
                second = bulk.bind(self.cast.address, timeout=None, done=again.append, **options)
            else:
                second = bulk.create(self.cast.address, direction=Direction.TX, trust=self.scene.trust, **options)
            for _ in range(1000):
                if channel.state in SETTLED:
                    break
                other.wait_for(lambda: False, 0.005)
                side.domain.wait_for(lambda: False, 0.005)
            state = channel.state
            second.close()
            if state is not ChannelState.CONNECTED:
                _fire(channel, outcomes)
                raise outcomes[0].error if outcomes and outcomes[0].error else AssertionError(f"{channel!r} for ever")
        return False

    def _until(self, domain: bulk.Domain, bound: Callable[[], bool]) -> bool:
        """Serve until bound, or the victim is dead and what it did is served; whether bound."""
        while not self.over:
            if domain.wait_for(bound, 0.01):
                return True
        return domain.wait_for(bound, 0.01)

    def _next_creator(self, domain: bulk.Domain) -> list[str]:
        """A dead node may be left, which the next creator replaces: then nothing is left."""
        channel = bulk.create(self.cast.address, direction=Direction.TX, trust=self.scene.trust, domain=domain)
        channel.close()
        left = os.listdir(os.path.dirname(self.cast.address.partition(":")[2]))
        return [f"{left} are left in the directory"] if left else []


class Neighbour:
    """Another channel of the survivor's domain, which must not notice."""

    def __init__(self, domain: bulk.Domain, trust: Trust = Trust.FULL) -> None:
        self.other = bulk.Domain()
        self.tx = bulk.create("local:", direction=Direction.TX, trust=trust, domain=domain)
        self.rx = bulk.bind(self.tx.address, domain=self.other, timeout=None, done=lambda outcome: None)
        self._serve(lambda: self.rx.state is self.tx.state is ChannelState.CONNECTED)
        self.allocator = bulk.Allocator(count=1, size=4096, domain=domain)
        self.tx.assign_pool(self.allocator.pool, timeout=None, done=lambda outcome: None)
        self._serve(lambda: self.allocator.pool in self.tx.pools)

    def _serve(self, until: Callable[[], bool]) -> None:
        for _ in range(10_000):
            if until():
                return
            for channel in (self.tx, self.rx):
                try:
                    channel.receive_nowait()
                except bulk.WouldBlock:
                    continue
        raise AssertionError("the neighbour does not come about")

    def goes_on(self) -> list[str]:
        """Send something there and back; what is wrong."""
        buffer = self.allocator.alloc()
        self.tx.move(buffer)
        event = self.rx.receive(PATIENCE_S)
        self.rx.pass_(event.buffer)
        back = self.tx.receive(PATIENCE_S)
        self.allocator.free(buffer)
        right = event.kind is EventKind.MOVE_RECEIVED and back.kind is EventKind.BUFFER_RECEIVED
        return [] if right else ["the neighbour was disturbed"]

    def close(self) -> None:
        """End it."""
        self.tx.close()
        self.rx.close()
        self.allocator.close()


def _fire(channel: Any, outcomes: list[Any]) -> None:
    """Continuations run in a receive."""
    try:
        while not outcomes and channel.state is not ChannelState.CONNECTED:
            channel.receive(0.01)
    except (TimeoutError, bulk.BulkError):
        return


def _again(side: Side) -> str:
    """What one more call raises: the same."""
    try:
        side.channel.receive(PATIENCE_S)
    except Exception as error:  # noqa: BLE001 - it is looked at
        return type(error).__name__
    return "nothing"


def held() -> tuple[set[str], int]:
    """The descriptors and mappings of this process that are the library's."""
    with open("/proc/self/maps") as text:
        mapped = sum("bulktransfer" in line and ".so" not in line for line in text)
    return set(os.listdir("/proc/self/fd")), mapped


def left(before: tuple[set[str], int], looks: int = 200) -> list[str]:
    """What is left of a run."""
    for _ in range(looks):
        gc.collect()
        now = held()
        if len(now[0]) <= len(before[0]) and now[1] <= before[1]:
            return []
        bulk.current_domain().wait_for(lambda: False, 0.01)
    names = sorted(
        os.readlink(f"/proc/self/fd/{n}") for n in now[0] - before[0] if os.path.exists(f"/proc/self/fd/{n}")
    )
    return [f"descriptors {names} and {now[1] - before[1]} mappings are left"]


def warm_up(scene: Scene, directory: str) -> None:
    """Once to the end, unharmed: helper threads start, and their descriptors count from then on as there before."""
    Execution(scene, 1 << 62, directory).run()


def kill_all(scene: Scene, directory: str, every: int = 1, start: int = 1) -> Iterator[Death]:
    """Every kill of a scene, until the victim comes to its end unharmed."""
    step = start
    while True:
        death = Execution(scene, step, directory).run()
        yield death
        if not death.act:
            return
        step += every


def table(deaths: list[Death]) -> str:
    """Kill points tried by act and outcome."""
    outcomes = sorted({death.outcome for death in deaths if death.act})
    rows = [("killed during", "points", *outcomes, "wrong")]
    for act in (*ACTS, "sum"):
        its = [death for death in deaths if death.act and act in (death.act, "sum")]
        counts = Counter(death.outcome for death in its)
        wrong = sum(bool(death.wrong) for death in its)
        rows.append((act, str(len(its)), *(str(counts[outcome]) for outcome in outcomes), str(wrong)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
