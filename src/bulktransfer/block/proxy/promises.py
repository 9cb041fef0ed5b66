"""What a server has answered for and not yet made durable, so that no flush covers what was lost with it.

Knows: requests and answers of one user, in the order of their channel. Must not know: channels, connections.
"""

from __future__ import annotations

from ..errors import Status
from ..service.messages import Flag, Operation

_CHANGES = (Operation.WRITE, Operation.TRIM, Operation.ZEROES)


class Promises:
    """Changes that were acknowledged, and flushes that cover them.

    A server that is lost may have lost what it had acknowledged and not flushed. Its successor would answer the next
    flush with OK all the same, so that flush is refused, once: whoever asked for it must know.
    """

    def __init__(self) -> None:
        self._changes = 0  # acknowledged so far
        self._durable = 0  # of these
        self._flushes: dict[bytes, int] = {}  # under way, by request id: how many changes each covers
        self.in_doubt = False

    def sent(self, request: bytes) -> None:
        """A request went to the server."""
        if request[0] == Operation.FLUSH:
            self._flushes[request[8:16]] = self._changes

    def answered(self, request: bytes, answer: bytes) -> None:
        """Its answer came."""
        operation, flags, ok = request[0], request[1], answer[1] == Status.OK
        if operation == Operation.FLUSH:
            covered = self._flushes.pop(request[8:16], 0)
            if ok:
                self._durable = max(self._durable, covered)
        elif ok and operation in _CHANGES and not flags & Flag.FUA:
            self._changes += 1

    def lost(self) -> None:
        """The server is gone."""
        self._flushes.clear()
        self.in_doubt = self.in_doubt or self._durable < self._changes
        self._durable = self._changes

    def told(self) -> None:
        """The user knows."""
        self.in_doubt = False
