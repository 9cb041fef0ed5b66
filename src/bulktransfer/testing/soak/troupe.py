"""A troupe: a few players with lanes between them and to the auditor, from their start to their end.

Knows: who is killed, and what must then be true of everybody else. Must not know: what is sent.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

import bulktransfer as bulk

from .bank import Bank, Lending, Round
from .brief import Brief, Journal, Lane, Order, Slot, Sums, Task
from .ends import End
from .letters import Pen, Wrong
from .player import Player
from .tasks import Doing, Keep

AUDITOR = -1
PLAYERS = 2
NAMED = ("shm", "fullcopy")  # schemes whose addresses a creator chooses by name
_lanes = itertools.count(1)


class Process:
    """A player in a process of its own."""

    def __init__(self, brief: Brief, journal: Journal) -> None:
        here, there = socket.socketpair()
        with there:
            os.set_inheritable(journal.fd, True)
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.player", *map(str, (there.fileno(), journal.fd, os.getpid()))],
                pass_fds=(there.fileno(), journal.fd),
                stdin=subprocess.DEVNULL,
            )
        self.pipe: Connection[Any, Any] = Connection(here.detach())
        self.pipe.send(brief)
        self.killed = False
        self.told = False

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if number == signal.SIGKILL:
            self.killed = True
        self.process.send_signal(number)

    def go_on(self) -> None:
        """It is stopped no longer."""
        self.signal(signal.SIGCONT)

    def tell(self) -> None:
        """It is to end."""
        if not self.told:
            self.told = True
            try:
                self.pipe.send("end")
            except OSError as error:
                if not self.killed:
                    self.process.wait(60)  # what it prints is wanted
                    raise Wrong(f"player {self.process.pid} is gone: {error}") from None

    def account(self) -> None:
        """It ended: as it had to. Raises: Wrong."""
        code = self.process.wait()
        left: list[Any] = []
        while not self.killed and self.pipe.poll(0):
            try:
                left.append(self.pipe.recv())
            except (EOFError, ConnectionResetError):
                break
        self.pipe.close()
        if code != (-signal.SIGKILL if self.killed else 0) and not (self.killed and code == 0):
            raise Wrong(f"player {self.process.pid} ended with {code}; what it printed says why")
        if not self.killed and (len(left) < 2 or any(left[-1])):
            raise Wrong(f"player {self.process.pid} left descriptors, pools or channels behind: {left[-1:]}")


class Thread:
    """A player in a thread of this process, over `local:` lanes; nobody kills it."""

    killed = False

    def __init__(self, brief: Brief, journal: Journal) -> None:
        self.error: BaseException | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(brief, journal))
        self._thread.start()

    def _run(self, brief: Brief, journal: Journal) -> None:
        try:
            with bulk.Domain() as domain:
                Player(brief, journal, domain).run(self._end.is_set)
        except BaseException as error:  # noqa: BLE001 - it is raised where the troupe is accounted for
            self.error = error

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def go_on(self) -> None:
        """Nobody stops it."""

    def tell(self) -> None:
        """It is to end."""
        self._end.set()

    def account(self) -> None:
        """It ended: as it had to. Raises: Wrong."""
        self._thread.join()
        if self.error is not None:
            raise Wrong(f"a player in a thread failed: {self.error!r}") from self.error


class Troupe:
    """Players, lanes, tasks of the auditor; `step` until it is over."""

    def __init__(self, bank: Bank, chance: random.Random, letters: int, lendings: Callable[[], list[Lending]]) -> None:
        self.bank, self.chance, self.lendings = bank, chance, lendings
        self.journal = Journal()
        self.pen = Pen(letters)
        self.ends: dict[int, End] = {}
        self.lanes: dict[int, Lane] = {}
        self.tasks: list[Doing] = []
        self.orders: dict[int, list[Order]] = {player: [] for player in range(PLAYERS + 1)}
        self.stage = "plays"
        self.marks: dict[int, int] = {}
        self.sums: list[Sums] = []
        threads = chance.random() < 0.2
        for player in range(PLAYERS):
            self._plan(player)
        self._route((0, 1))
        self._route((chance.randrange(PLAYERS),))
        if threads:
            self._plan(PLAYERS)
        self.players: dict[int, Process | Thread] = {}
        for player in range(PLAYERS + threads):
            its = {n: lane for n, lane in self.lanes.items() if player in (lane.sender, lane.receiver)}
            sizes = (4096, 65536, 1 << 20)
            brief = Brief(player, chance.getrandbits(32), letters, its, tuple(self.orders[player]), sizes)
            self.players[player] = (Process if player < PLAYERS else Thread)(brief, self.journal)
        self.victims = self._choose()
        self.timers: list[threading.Timer] = []
        self._plot()

    # ---- the plan ----

    def _lane(self, sender: int, receiver: int, trust: str, scheme: str) -> Lane:
        """A lane; where the auditor creates it, its end is made at once, since the address may be known only then."""
        number = next(_lanes)
        creator = self.chance.choice((sender, receiver))
        address = f"{scheme}:soak{os.getpid()}-{number}"
        if scheme == "tcp":
            creator, address = AUDITOR, "tcp://127.0.0.1:0"
        waits = self.chance.choice(("auto", "block"))
        lane = Lane(number, address, trust, sender, receiver, creator, waits)
        if creator == AUDITOR:
            self._end(lane)
            lane = Lane(number, self.ends[number].channel.address, trust, sender, receiver, creator, waits)
        self.lanes[number] = lane
        return lane

    def _end(self, lane: Lane) -> End:
        """The auditor's end."""
        if lane.number not in self.ends:
            self.ends[lane.number] = End(lane, AUDITOR, self.journal, self.pen, bulk.current_domain())
        return self.ends[lane.number]

    def _level(self, player: int) -> tuple[str, str]:
        trust = self.chance.choice(("FULL", "HALF", "NONE"))
        if player >= PLAYERS:
            return trust, "local"
        return trust, self.chance.choice(("shm", "tcp", "fullcopy")) if trust == "NONE" else "shm"

    def _plan(self, player: int) -> None:
        """The lanes of one player alone with the auditor."""
        trust, scheme = self._level(player)
        feed = self._lane(player, AUDITOR, trust, scheme)
        self.orders[player].append(Order(Task.FEED, (feed.number,)))
        self.tasks.append(Keep(self._end(feed), self.chance))
        trust, scheme = self._level(player)
        keep = self._lane(AUDITOR, player, trust, scheme)
        self.orders[player].append(Order(Task.KEEP, (keep.number,)))
        self.tasks.append(Lending(self._end(keep), self.bank, self.chance, self.lendings))

    def _route(self, players: tuple[int, ...]) -> None:
        """Lanes from the auditor through players and back."""
        trust = self.chance.choice(("FULL", "HALF", "NONE"))
        stops = (AUDITOR, *players, AUDITOR)
        lanes = [self._lane(a, b, trust, "shm") for a, b in itertools.pairwise(stops)]
        for player, (source, sink) in zip(players, itertools.pairwise(lanes), strict=True):
            self.orders[player].append(Order(Task.HOP, (source.number, sink.number)))
        first, last = self._end(lanes[0]), self._end(lanes[-1])
        self.tasks.append(Round(first, last, self.bank, self.chance))

    def _choose(self) -> tuple[int, ...]:
        dice = self.chance.random()
        if dice < 0.1:
            return ()  # all end in order
        if dice < 0.25:
            return tuple(range(PLAYERS))
        return (self.chance.randrange(PLAYERS),)

    def _plot(self) -> None:
        """Set the time of each death; some are stopped first, some only stopped."""
        for player in range(PLAYERS):
            process = self.players[player]
            assert isinstance(process, Process)
            delay = self.chance.uniform(0.05, self.chance.choice((0.7, 3.0)))
            if self.chance.random() < 0.2:
                self._at(delay * 0.8, process, signal.SIGSTOP)
                self._at(delay + 0.1, process, signal.SIGCONT)
            if player in self.victims:
                self._at(delay, process, signal.SIGKILL)
        if not self.victims:
            self._at(self.chance.uniform(0.5, 3.0), None, 0)

    def _at(self, delay: float, process: Process | None, number: int) -> None:
        def act() -> None:
            if process is not None:
                process.signal(number)

        timer = threading.Timer(delay, act)
        timer.daemon = True
        self.timers.append(timer)
        timer.start()

    # ---- its life ----

    def step(self) -> bool:
        """A bit of it; whether something was done. Raises: Wrong."""
        if self.stage == "over":
            return False
        for number, player in self.players.items():
            if player.over and not player.killed and self.stage != "leaves":
                player.account()
                raise Wrong(f"player {number} ended untold")
        busy = sum(task.step() for task in self.tasks) > 0
        if self.stage == "plays" and not any(timer.is_alive() for timer in self.timers):
            if all(self.players[victim].over for victim in self.victims) and self._victims_ended():
                for survivor in self.survivors:  # the timers may have run in another order
                    self.players[survivor].go_on()
                self.marks = {n: self._count(n) for n in self.survivors}
                self.stage = "goes on"
        elif self.stage == "goes on" and all(self._count(n) > self.marks[n] for n in self.survivors):
            self.stage = "leaves"
        elif self.stage == "leaves":
            self._leave()
        return busy

    @property
    def survivors(self) -> list[int]:
        """The players that nobody killed."""
        return [number for number in self.players if number not in self.victims]

    def _between(self, player: int) -> Iterable[int]:
        """The lanes between the auditor and a player."""
        return [n for n, lane in self.lanes.items() if {lane.sender, lane.receiver} == {AUDITOR, player}]

    def _victims_ended(self) -> bool:
        """Whether the auditor's ends of their lanes have ended, where they were bound."""
        ends = [self.ends[n] for victim in self.victims for n in self._between(victim)]
        for end in ends:
            end.give_up()  # the dead may never have come
        for end in ends:
            if end.ended is not None and not isinstance(end.ended, bulk.BrokenChannelError | bulk.ClosedChannelError):
                raise Wrong(f"{end.channel!r}: its other side was killed, and it ended with {end.ended!r}")
        return all(end.ended is not None for end in ends)

    def _count(self, player: int) -> int:
        """How many transfers between the auditor and a player were judged."""
        return sum(self.journal.read(n, False, Slot.TAKEN) for n in self._between(player))

    def _leave(self) -> None:
        for survivor in self.survivors:
            self.players[survivor].tell()
        if sum(task.finish() for task in self.tasks) < len(self.tasks):
            return
        if not all(player.over for player in self.players.values()):
            return
        if self.bank.away(tuple(self.lanes)):
            return
        for player in self.players.values():
            player.account()
        self._audit()
        self.close()

    def _audit(self) -> None:
        """Every lane whose receiver lived: what was published came."""
        for number, lane in self.lanes.items():
            if lane.receiver not in self.victims:
                sums = self.journal.sums(number)
                if sums.lost or sums.lost_bytes:
                    raise Wrong(f"{lane}: {sums.lost} transfers, {sums.lost_bytes} bytes were lost")
                self.sums.append(sums)

    def close(self) -> None:
        """Over."""
        self.stage = "over"
        for end in self.ends.values():
            end.close()
        self.ends.clear()
        self.tasks.clear()
        self.journal.close()

    def abandon(self) -> None:
        """End what runs; something went wrong, or it is interrupted."""
        for timer in self.timers:
            timer.cancel()
        for player in self.players.values():
            if isinstance(player, Process):
                player.process.kill()
                player.process.wait()
            else:
                player.tell()

    def show_stacks(self) -> None:
        """Have the processes print where they are."""
        for player in self.players.values():
            if isinstance(player, Process) and not player.over:
                player.signal(signal.SIGUSR1)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    player.process.wait(1)

    def describe(self) -> str:
        """What it does, for a report of something that went wrong."""
        ends = "\n".join(f"    {end.channel!r} places {end.places} ended {end.ended!r}" for end in self.ends.values())
        return f"troupe with victims {self.victims}, {self.stage}:\n{ends}"
