"""The measuring side's handle of a partner: start it, give it commands, end it.

Knows: how a partner process or thread is started and spoken to. Must not know: what is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import partner

LIMIT_S = 60
_CLOSE_S = 5.0
_EXPLAIN_S = 1.0
_COMMAND = "import sys; from bulktransfer.bench.partner import main; main(*map(int, sys.argv[1:]))"


class PartnerError(RuntimeError):
    """The other side of the benchmark failed; the message says how."""


@dataclass(slots=True)
class Reply:
    """What the partner's function returned, once the `with` block that started it is left."""

    value: Any = None


class Worker:
    """A partner on one core. A context manager: leaving it ends the partner."""

    def __init__(self, core: int, *, thread: bool = False) -> None:
        self.core = core
        self._failed = False
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        if thread:
            self._thread = threading.Thread(target=partner.thread_main, args=(theirs, core), daemon=True)
            self._thread.start()
            return
        with theirs:
            arguments = [str(theirs.fileno()), str(os.getpid()), str(core)]
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, *arguments], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )

    @property
    def pid(self) -> int | None:
        """The partner's process id; None for a thread."""
        return self._process.pid if self._process else None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the partner; idempotent."""
        self._control.close()
        if self._thread:
            self._thread.join(_CLOSE_S)
        if self._process:
            try:
                self._process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def call(
        self, function: Callable[..., Any], /, *, fds: Sequence[int] = (), limit_s: int = LIMIT_S, **arguments: Any
    ) -> Any:
        """Have the partner run a function of this room, `function(session, **arguments)`, and return its result."""
        with self.running(function, fds=fds, limit_s=limit_s, **arguments) as reply:
            pass
        return reply.value

    def drop(self, name: str) -> None:
        """Have the partner close what it keeps under `name`; one that failed is left alone, its end does that."""
        if not self._failed:
            self.call(partner.drop, name=name)

    @contextlib.contextmanager
    def running(
        self, function: Callable[..., Any], /, *, fds: Sequence[int] = (), limit_s: int = LIMIT_S, **arguments: Any
    ) -> Iterator[Reply]:
        """Run the body while the partner runs `function`; leaving it waits for the partner.

        The partner is about to call `function` when the body begins; `limit_s` is its watchdog.
        Raises: PartnerError when the partner fails or dies, also in place of what its failure did to the body.
        """
        command = {"run": f"{function.__module__}:{function.__name__}", "arguments": arguments, "limit_s": limit_s}
        try:
            socket.send_fds(self._control, [json.dumps(command).encode()], fds)
        except OSError as error:
            raise self._gone() from error
        self._receive(limit_s)
        reply = Reply()
        try:
            yield reply
        except Exception:
            with contextlib.suppress(TimeoutError):
                self._receive(_EXPLAIN_S)  # raises the partner's own error, which explains ours
            self._end()  # nothing can be started while it still runs what it was told
            raise
        except BaseException:
            self._end()
            raise
        reply.value = self._receive(limit_s + _CLOSE_S)["result"]

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        self._control.settimeout(timeout_s)
        try:
            data = self._control.recv(partner.MESSAGE_BYTES)
        except ConnectionError as error:
            raise self._gone() from error
        finally:
            self._control.settimeout(None)
        if not data:
            raise self._gone()
        answer: dict[str, Any] = json.loads(data)
        if "error" in answer:
            self._failed = True
            raise PartnerError(f"{answer['error']}\n{answer['trace']}")
        return answer

    def _end(self) -> None:
        self._failed = True
        if self._process:
            self._process.kill()

    def _gone(self) -> PartnerError:
        self._failed = True
        if not self._process:
            return PartnerError("the partner thread has ended")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_S)
        return PartnerError(f"the partner process {self._process.pid} has ended (status {self._process.returncode})")
