"""kill -9 of the server, the client and the user of Figure 7.1 at any step of a write load that is checked.

A few steps of each in the suite. More: BULK_TEST_KILLS=200 pytest tests/test_block_kill.py
"""

from __future__ import annotations

import os
import random
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from block_crew import ROUNDS, check
from bulktransfer import block
from spawning import Child

KILLS = int(os.environ.get("BULK_TEST_KILLS", "2"))
SEED = int(os.environ.get("BULK_TEST_SEED", "1"))
ROLES = ("server", "client", "user")
HERE = {"PYTHONPATH": str(Path(__file__).parent)}

pytestmark = pytest.mark.watchdog(60 + 8 * KILLS)


def serve(pipe, *arguments):
    from block_crew import serve as run

    run(pipe, *arguments)


def forward(pipe, *arguments):
    from block_crew import forward as run

    run(pipe, *arguments)


def use(pipe, *arguments):
    from block_crew import use as run

    run(pipe, *arguments)


class Crew:
    """The three processes; those that were killed are started again."""

    def __init__(self, spawn: Callable[..., Child], directory: Path) -> None:
        self._spawn = spawn
        self._directory = directory
        self.journal = directory / "journal"
        self.address = "tcp://127.0.0.1:0"
        self.first = 1
        self.server: Child | None = None
        self.client: Child | None = None

    def start(self, victim: str = "", die_at: int = 0) -> None:
        """Have a server and a client; the victim of the two is a new process."""
        if victim == "server" and self.server is not None:
            self.stop(self.server)
            self.server = None
        if victim == "client" and self.client is not None:
            self.stop(self.client)
            self.client = None
        if self.server is None:
            at = die_at if victim == "server" else 0
            self.server = self._spawn(serve, str(self._directory / "image"), self.address, at, env=HERE)
            self.address = self.server.receive()
        if self.client is None:
            at = die_at if victim == "client" else 0
            self.client = self._spawn(forward, "shm:proxy", self.address, at, env=HERE)
            self.client.receive()

    def gone(self, victim: str) -> None:
        """It has died, as it was told to."""
        child = self.server if victim == "server" else self.client
        assert child is not None
        child.kill()
        setattr(self, victim, None)

    def stop(self, child: Child) -> Any:
        """End one in order; how many steps it took."""
        child.signal(signal.SIGTERM)
        steps = child.receive()
        child.join()
        return steps

    def load(self, die_at: int = 0) -> Child:
        """A user at work."""
        first, self.first = self.first, self.first + ROUNDS
        return self._spawn(use, "shm:proxy", str(self.journal), first, die_at, env=HERE)

    def steps(self) -> dict[str, int]:
        """How many steps a load takes each, nobody being killed."""
        self.start()
        said, mine = self.load().receive()
        assert said == "done", mine
        assert self.client is not None
        assert self.server is not None
        taken = {"client": self.stop(self.client), "server": self.stop(self.server), "user": mine}
        self.client = self.server = None
        return taken

    def verify(self) -> None:
        """Through a client and a server that live."""
        self.start()
        with block.BlockDevice("shm:proxy") as device:
            check(device, self.journal)


def load_that_kills(crew: Crew, victim: str, at: int) -> bool:
    """A load during which the victim dies at a step of its own; whether it did. The others wait for another."""
    try:
        crew.start(victim, at)
    except AssertionError:  # before it was ready
        crew.gone(victim)
        return True
    user = crew.load(at if victim == "user" else 0)
    child = {"server": crew.server, "client": crew.client, "user": user}[victim]
    assert child is not None
    ready, _, _ = select.select([user, child], [], [])
    died = user not in ready
    if died:
        crew.gone(victim)
        crew.start()
    try:
        user.receive()
        user.join()
    except AssertionError:
        assert victim == "user", user.output
        user.kill()
        died = True
    if not died and victim != "user":  # its step is still to come, and it is not to be while others look
        try:
            crew.stop(child)
        except AssertionError:
            died = True
        crew.gone(victim)
    return died


@pytest.mark.parametrize("victim", ROLES)
def test_what_was_flushed_outlives_a_kill_at_any_step(victim: str, spawn, tmp_path: Path) -> None:
    crew = Crew(spawn, tmp_path)
    limit = crew.steps()[victim]
    assert limit > 200
    rng = random.Random(f"{SEED} {victim}")
    killed = 0
    for _ in range(KILLS):
        killed += load_that_kills(crew, victim, rng.randrange(1, limit))
        crew.verify()
    assert killed * 2 >= KILLS, "the steps were not reached"
