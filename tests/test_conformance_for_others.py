"""Authors of backends can run the suite: the file that docs/how-to/conformance.md shows, on a backend made here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "conformance.md"

BACKEND = '''
"""A backend of somebody else's: sockets as shm: has them, under a scheme of its own."""
import bulktransfer as bulk

inner = bulk.backends.backend_for("shm:")

def plain(address):
    return "shm:" + address.removeprefix("mine:")

class Rendezvous:
    def __init__(self, it):
        self.it = it
        self.address = "mine:" + it.address.removeprefix("shm:")
    def __getattr__(self, name):
        return getattr(self.it, name)

class Mine:
    scheme, spins, codec = "mine", inner.spins, inner.codec
    trusts = (bulk.Trust.FULL,)
    def listen(self, address, **options):
        return Rendezvous(inner.listen(plain(address), **options))
    def connect(self, address, *, owner):
        return CONNECT
    def appearance(self, address):
        return inner.appearance(plain(address))

bulk.backends.register(Mine())
'''
CHOSEN = "a_move_gives_ownership or the_death_of_a_process or second_copy or (out_of_reach and split-3)"


def run_suite(directory: Path, connect: str, chosen: str) -> subprocess.CompletedProcess[str]:
    """What the page tells authors to do, in a directory of theirs."""
    (shown,) = re.findall(r"```python no-run\n(# test_conformance\.py\n.*?)```", PAGE.read_text(), re.DOTALL)
    (directory / "test_conformance.py").write_text(shown)
    (directory / "mybackend.py").write_text(BACKEND.replace("CONNECT", connect))
    (directory / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    env = {**os.environ, "PYTHONPATH": str(directory)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-k", chosen]
    return subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, check=False)


@pytest.mark.watchdog(120)
def test_a_backend_of_somebody_else_passes(tmp_path: Path) -> None:
    done = run_suite(tmp_path, "inner.connect(plain(address), owner=owner)", CHOSEN)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^8 passed", done.stdout, re.MULTILINE), done.stdout  # four tests, each in both role modes


@pytest.mark.watchdog(120)
def test_a_backend_that_does_not_connect_fails(tmp_path: Path) -> None:
    done = run_suite(tmp_path, "inner.no_such_call(address)", "a_move_gives_ownership")
    assert done.returncode == 1
    assert "AttributeError" in done.stdout
    assert re.search(r"\b2 errors\b", done.stdout), done.stdout
