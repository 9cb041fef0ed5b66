"""Real Python processes for tests, which end with the test that started them.

    def echo(pipe, offset):                  # pipe: the child's end of a multiprocessing Connection
        import bulktransfer as bulk          # the function runs alone: its imports stand inside
        pipe.send(pipe.recv() + offset)

    child = spawn(echo, 1)
    child.send(1)
    assert child.receive() == 2
    child.join()                             # it must exit with 0

The kernel kills a child when the thread that started it ends, so the run's watchdog takes the children along.
"""

from __future__ import annotations

import inspect
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

PATIENCE_S = 30.0

# Keeps its place over exec, so the Python process itself has it; setpriv is part of util-linux.
DIES_WITH_PARENT = (shutil.which("setpriv") or "setpriv", "--pdeathsig", "KILL", "--")

_PROLOGUE = """\
import multiprocessing.connection as _c, os as _os, pickle as _p
pipe = _c.Connection(int(_os.environ.pop("BULK_TEST_PIPE")))
"""


class Child:
    """A running process: talk to it with `send` and `receive`, then `join` or `kill` it."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: Any, log: Path) -> None:
        self._process = process
        self._pipe = pipe
        self._log = log
        self._settled = False  # the test has looked at the exit code, or has killed the child

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        """What the child has printed, on both streams."""
        return self._log.read_text(errors="replace")

    def send(self, thing: object) -> None:
        self._pipe.send(thing)

    def receive(self, timeout_s: float = PATIENCE_S) -> Any:
        """What the child sent next; fails with its output where it ended or takes too long."""
        if not self._pipe.poll(timeout_s):
            raise AssertionError(self._report("said nothing"))
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise AssertionError(self._report("closed its pipe instead of answering")) from None

    def fileno(self) -> int:
        """A descriptor that is readable when it has sent something, or has ended."""
        return int(self._pipe.fileno())

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it the hard way, as a crash would, and wait until it is gone."""
        self._settled = True
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def join(self, code: int = 0, timeout_s: float = PATIENCE_S) -> str:
        """Wait for its end and assert on its exit code (negative: the signal); returns what it printed."""
        try:
            found = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(self._report("did not end")) from None
        self._settled = True
        assert found == code, self._report(f"exited with {found}, not {code}")
        return self.output

    def end(self) -> None:
        """The test is over: kill what runs, complain about what failed without being looked at."""
        self._pipe.close()
        if self._process.poll() is None:
            self.kill()
        if not self._settled:
            self.join()

    def _report(self, what: str) -> str:
        self._settled = True  # one complaint a child
        return f"child {self.pid} {what}; its output:\n{self.output}"


class Spawner:
    """Starts children and keeps account of them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._children: list[Child] = []

    def spawn(
        self,
        program: Callable[..., object] | str,
        *args: object,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        verbatim: bool = False,
    ) -> Child:
        """Run a function, taken by its source, with `pipe` and pickled `args`, or a source text that uses `pipe`.

        `verbatim` runs a text as a script of its own, without `pipe`.
        """
        number = len(self._children)
        script = self._directory / f"child{number}.py"
        script.write_text(program if verbatim and isinstance(program, str) else _PROLOGUE + _source(program, args))
        here, there = Pipe()
        with there, open(self._directory / f"child{number}.log", "wb") as log:
            process = subprocess.Popen(
                [*DIES_WITH_PARENT, sys.executable, "-X", "faulthandler", "-u", str(script)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {}), "BULK_TEST_PIPE": str(there.fileno())},
                pass_fds=(there.fileno(), *pass_fds),
            )
        child = Child(process, here, Path(log.name))
        self._children.append(child)
        return child

    def end(self) -> None:
        failures = []
        for child in self._children:
            try:
                child.end()
            except AssertionError as error:
                failures.append(str(error))
        assert not failures, "\n".join(failures)


def _source(program: Callable[..., object] | str, args: tuple[object, ...]) -> str:
    if isinstance(program, str):
        return textwrap.dedent(program)
    if inspect.getclosurevars(program).nonlocals:
        raise ValueError(f"{program.__qualname__} uses variables around it, which a process of its own does not have")
    source = textwrap.dedent(inspect.getsource(program))
    return f"{source}\n{program.__name__}(pipe, *_p.loads({pickle.dumps(args)!r}))\n"
