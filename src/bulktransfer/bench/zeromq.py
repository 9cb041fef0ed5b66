"""pyzmq over tcp, as one would use it for the same: PAIR sockets, no copies where it can do without.

Knows: that it may not be installed. Must not know: the library, or what is compared.
"""

from __future__ import annotations

import importlib.util
import time
from typing import Any

from .machine import quiet
from .partner import Session
from .plain import WINDOW, slots
from .worker import Worker

_ACK = b"ackackac"


def installed() -> bool:
    """Whether pyzmq is there."""
    return importlib.util.find_spec("zmq") is not None


class Zeromq:
    """The side that sends; its sink is the partner's."""

    def __init__(self, worker: Worker, *, size: int) -> None:
        import zmq  # type: ignore[import-not-found, import-untyped, unused-ignore]

        self._worker = worker
        self._slots = slots(size)
        self._context: Any = zmq.Context()
        self._socket: Any = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(2 * WINDOW)
        self._socket.connect(worker.call(listen, name="zeromq"))

    def batches(self, count: int) -> int:
        """The ns that `count` messages take, at most WINDOW of them not acknowledged, until the last one is."""
        send, receive, places = self._socket.send, self._socket.recv, self._slots
        with self._worker.running(take, name="zeromq", count=count), quiet():
            start_ns = time.perf_counter_ns()
            for i in range(count):
                if i >= WINDOW:
                    receive()
                send(places[i % WINDOW], copy=False)
            for _ in range(min(count, WINDOW)):
                receive()
            return time.perf_counter_ns() - start_ns

    def close(self) -> None:
        """Hang up on both sides."""
        self._socket.close(linger=0)
        self._context.term()
        self._worker.drop("zeromq")


# --- what the partner does ---


class Sink:
    """The side that receives."""

    def __init__(self) -> None:
        import zmq

        self._context: Any = zmq.Context()
        self.socket: Any = self._context.socket(zmq.PAIR)
        self.socket.set_hwm(2 * WINDOW)
        self.port = self.socket.bind_to_random_port("tcp://127.0.0.1")

    def close(self) -> None:
        self.socket.close(linger=0)
        self._context.term()


def listen(session: Session, *, name: str) -> str:
    """Listen on loopback; where."""
    sink = Sink()
    session.keep(name, sink)
    return f"tcp://127.0.0.1:{sink.port}"


def take(session: Session, *, name: str, count: int) -> None:
    """Receive and acknowledge."""
    sock = session.get(Sink, name).socket
    receive, send = sock.recv, sock.send
    for _ in range(count):
        receive(copy=False)
        send(_ACK)
