"""`bulk …` as a process of its own, which ends with the test that started it: the fixture `start` (conftest.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from spawning import DIES_WITH_PARENT, PATIENCE_S


class Command:
    """One `bulk …` that runs."""

    def __init__(
        self, *arguments: str, stdin: bytes | None = None, stdout: Any = subprocess.PIPE, cwd: object = None
    ) -> None:
        self._process = subprocess.Popen(
            [*DIES_WITH_PARENT, sys.executable, "-m", "bulktransfer", *arguments],
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
            cwd=str(cwd) if cwd else None,
        )
        self._stdin = stdin
        self.pid = self._process.pid

    def says(self) -> str:
        """The next line that it prints for people who look on."""
        assert self._process.stderr is not None
        return self._process.stderr.readline().decode().strip()

    def reads(self) -> str:
        """The next line of its standard output."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def ends(self, status: int = 0, timeout_s: float = 2 * PATIENCE_S) -> tuple[str, str]:
        """What it printed, on both streams, once it has ended with that status."""
        out, err = self._process.communicate(self._stdin, timeout_s)
        assert self._process.returncode == status, f"{self._process.args} ended {self._process.returncode}: {err!r}"
        return (out or b"").decode(), err.decode()

    def ends_with_json(self, status: int = 0) -> Any:
        return json.loads(self.ends(status)[0])

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
