"""A relay between a binder and a creator, for what a kernel does to a connection that it has no module for: it delays
what it passes on, cuts it into pieces, and hangs up where a test wants it to.
"""

from __future__ import annotations

import collections
import contextlib
import selectors
import socket
import threading
import time

from worlds import PATIENCE_S


class Relay:
    """Passes bytes on, in pieces of `piece` bytes each way, each `delay_s` after it came, until it is cut.

    limit: of bytes towards the creator, after which it hangs up on both.
    """

    def __init__(self, port, *, piece=65536, limit=None, delay_s=0.0):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._target, self._piece, self._left, self._delay_s = port, piece, limit, delay_s
        self._held = collections.deque()  # when it is due, to whom, what
        self._wake, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        near, _ = self._listener.accept()
        far = socket.create_connection(("127.0.0.1", self._target))
        with near, far, selectors.DefaultSelector() as ready:
            for sock in (near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ready.register(near, selectors.EVENT_READ, far)
            ready.register(far, selectors.EVENT_READ, near)
            ready.register(self._wake, selectors.EVENT_READ, None)
            while self._pass_on(far):
                for key, _ in ready.select(self._patience()):
                    if key.data is None:
                        return
                    size = self._piece if self._left is None or key.data is near else min(self._piece, self._left)
                    data = key.fileobj.recv(size)
                    if not data:
                        return
                    self._held.append((time.monotonic() + self._delay_s, key.data, data))

    def _patience(self):
        return max(0.0, self._held[0][0] - time.monotonic()) if self._held else None

    def _pass_on(self, far):
        """What is due goes on; whether there is more to pass."""
        while self._held and self._held[0][0] <= time.monotonic():
            _, sock, data = self._held.popleft()
            sock.sendall(data)
            if self._left is not None and sock is far:
                self._left -= len(data)
                if self._left <= 0:
                    return False
        return True

    def close(self):
        """Cut both connections; idempotent."""
        with contextlib.suppress(OSError):
            self._stop.send(b"x")
        self._thread.join(PATIENCE_S)
        for sock in (self._listener, self._wake, self._stop):
            sock.close()
