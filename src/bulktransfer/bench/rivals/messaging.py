"""Libraries of messages: pyzmq, pynng, Zenoh.

Knows: their calls. Must not know: how they are timed.
"""

from __future__ import annotations

import importlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from .rival import PATIENCE_S, WINDOW

_HALF = WINDOW // 2  # there are two queues on the way


class Zmq:
    """pyzmq over ipc."""

    mode = "blocking"
    note = "PUSH and PULL over ipc, copy=False, high-water marks of 16"

    @staticmethod
    def shared(_context: Any, _size: int, tag: str) -> Any:
        return f"ipc:///tmp/{tag}"

    def __init__(self, *, sink: bool, size: int, shared: Any, share_core: bool) -> None:
        zmq: Any = importlib.import_module("zmq")

        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL if sink else zmq.PUSH)
        self._socket.setsockopt(zmq.RCVHWM if sink else zmq.SNDHWM, _HALF)
        if sink:
            self._socket.connect(shared)
        else:
            self._socket.bind(shared)
        self._words = size // 8
        self._path = None if sink else Path(shared.removeprefix("ipc://"))

    def produce(self, number: int) -> None:
        self._socket.send(np.full(self._words, number, np.uint64), copy=False)

    def consume(self) -> int:
        return int(np.frombuffer(self._socket.recv(copy=False), np.uint64).sum())

    def flush(self) -> None: ...

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()
        if self._path:
            self._path.unlink(missing_ok=True)


class Nng:
    """pynng over ipc."""

    mode = "blocking"
    note = "Pair0 over ipc, which takes and gives bytes"

    @staticmethod
    def shared(_context: Any, _size: int, tag: str) -> Any:
        return f"ipc:///tmp/{tag}"

    def __init__(self, *, sink: bool, size: int, shared: Any, share_core: bool) -> None:
        pynng: Any = importlib.import_module("pynng")

        self._socket = pynng.Pair0(recv_max_size=0, send_buffer_size=_HALF, recv_buffer_size=_HALF)
        if sink:
            self._socket.dial(shared, block=True)
        else:
            self._socket.listen(shared)
        self._array = np.empty(size // 8, np.uint64)

    def produce(self, number: int) -> None:
        self._array[:] = number
        self._socket.send(self._array.tobytes())

    def consume(self) -> int:
        return int(np.frombuffer(self._socket.recv(), np.uint64).sum())

    def flush(self) -> None: ...

    def close(self) -> None:
        self._socket.close()


class ZenohShm:
    """Zenoh with its shared memory."""

    mode = "blocking"
    note = "a provider's buffer, FifoChannel(32), congestion control BLOCK; its Python interface copies in and out"

    @staticmethod
    def shared(_context: Any, _size: int, tag: str) -> Any:
        return tag

    def __init__(self, *, sink: bool, size: int, shared: Any, share_core: bool) -> None:
        zenoh: Any = importlib.import_module("zenoh")

        self._session: Any = zenoh.open(_zenoh_config(zenoh, shared, sink=sink))
        self._bytes = bytearray(size)
        self._array = np.frombuffer(self._bytes, np.uint64)
        self._size = size
        if sink:
            self._subscriber: Any = self._session.declare_subscriber(shared, zenoh.handlers.FifoChannel(WINDOW))
            return
        self._provider: Any = zenoh.shm.ShmProvider.default_backend((WINDOW + 4) * max(size, 4096))
        self._policy: Any = zenoh.shm.BlockOn(zenoh.shm.GarbageCollect())
        self._publisher: Any = self._session.declare_publisher(
            shared, congestion_control=zenoh.CongestionControl.BLOCK, express=True
        )
        pause, until_s = threading.Event(), time.monotonic() + PATIENCE_S
        while not getattr(status := self._publisher.matching_status, "matching", status):
            if time.monotonic() > until_s:
                raise TimeoutError("Zenoh found no subscriber")
            pause.wait(0.02)

    def produce(self, number: int) -> None:
        self._array[:] = number
        buffer = self._provider.alloc(self._size, policy=self._policy)
        buffer[0 : self._size] = self._bytes
        self._publisher.put(buffer)

    def consume(self) -> int:
        return int(np.frombuffer(self._subscriber.recv().payload.to_bytes(), np.uint64).sum())

    def flush(self) -> None: ...

    def close(self) -> None:
        self._session.close()


def _zenoh_config(zenoh: Any, tag: str, *, sink: bool) -> Any:
    zenoh.init_log_from_env_or("error")
    config = zenoh.Config()
    endpoints = json.dumps([f"unixsock-stream//tmp/{tag}"])
    settings = {
        "mode": '"peer"',
        "scouting/multicast/enabled": "false",
        "transport/shared_memory/enabled": "true",
        "connect/timeout_ms": "10000",
        "connect/exit_on_failure": "true",
        "listen/endpoints": "[]" if sink else endpoints,
        **({"connect/endpoints": endpoints} if sink else {}),
    }
    for key, value in settings.items():
        config.insert_json5(key, value)
    return config
