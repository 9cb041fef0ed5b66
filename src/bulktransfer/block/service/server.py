"""The block service (report I-7.1.1): stores under names, for many clients at one address.

Knows: the address, the exports, who is connected. Must not know: what clients ask (session.py).
"""

from __future__ import annotations

import logging
import select
import threading
from collections import Counter
from collections.abc import Mapping

import bulktransfer as bulk

from ..errors import BadRequestError
from ..stopping import StopSignal
from ..store import Store
from .changes import Changes
from .messages import META_SIZE
from .session import Export, Session

_log = logging.getLogger("bulktransfer.block")


def trust_for(address: str) -> bulk.Trust:
    """FULL where memory is shared, as threads and processes of one user do; NONE towards other machines."""
    scheme, _, rest = address.partition(":")
    if scheme == "name":  # carried by shm: unless it says by what
        scheme = rest.partition("@")[2].partition(":")[0] or "shm"
    return bulk.Trust.FULL if scheme in ("local", "shm") else bulk.Trust.NONE


class BlockService:
    """Serves exports at an address until `stop`; a client that fails or vanishes harms no other.

    exports: stores by name; the name "" is what clients get that name none. They stay their owner's to close.
    trust: of the channels; default FULL on `local:` and `shm:`, NONE elsewhere. network: of `tcp:` and `tls:`.
    Raises: BadRequestError (no exports), and as bulk.listen.
    """

    def __init__(
        self,
        address: str,
        exports: Mapping[str, Store],
        *,
        trust: bulk.Trust | None = None,
        read_only: bool = False,
        limits: bulk.Limits | None = None,
        network: bulk.Network | None = None,
        domain: bulk.Domain | None = None,
    ) -> None:
        if not exports:
            raise BadRequestError("a block service without exports")
        changes = {id(store): Changes(store.size_bytes) for store in exports.values()}
        self._exports = {name: Export(store, changes[id(store)]) for name, store in exports.items()}
        self._read_only = read_only
        self._least = min(store.block_size for store in exports.values())
        trust = trust_for(address) if trust is None else trust
        callbacks = bulk.Callbacks(pool_assigned=self._judge_pool)
        specs = [
            bulk.ChannelSpec(direction=direction, trust=trust, meta_size=META_SIZE, callbacks=callbacks)
            for direction in (bulk.Direction.RX, bulk.Direction.TX)
        ]
        self._listener = bulk.listen(address, specs, limits=limits, network=network, domain=domain)
        self._lock = threading.Lock()
        self._sessions: list[Session] = []
        self._past: Counter[str] = Counter()
        self._stop = StopSignal()

    @property
    def address(self) -> str:
        """Where clients connect."""
        return self._listener.address

    def _judge_pool(self, event: bulk.Event) -> None:
        """Veto pools whose buffers hold no block. Raises: BadRequestError."""
        if event.pool.buffer_size < self._least:
            raise BadRequestError(f"buffers of {event.pool.buffer_size} bytes for blocks of {self._least}")

    def stop(self) -> None:
        """Have `serve` return; may be called from a signal handler, and more than once."""
        self._stop.give()

    def serve(self, *, patience_s: float = 5.0) -> None:
        """Serve until `stop`; then end every client and flush every store. Raises: BlockError (a flush failed)."""
        try:
            while not self._stop.given:
                select.select([self._listener.fileno(), self._stop.fileno()], [], [])
                self._accept()
        finally:
            self._listener.close()
            self._stop.close()
            self._end_sessions(patience_s)
        for store in {id(export.store): export.store for export in self._exports.values()}.values():
            store.flush()

    def _accept(self) -> None:
        while True:
            try:
                up, down = self._listener.accept(timeout=0)
            except TimeoutError:
                return
            except bulk.BulkError as error:
                _log.warning("a client of the block service was lost: %s", error)
                return
            session = Session(up, down, self._exports, self._read_only)
            with self._lock:
                self._forget_the_gone()
                self._sessions.append(session)
            session.start()

    def _forget_the_gone(self) -> None:
        for session in [session for session in self._sessions if session.ended]:
            self._past += sum(session.counts.values(), Counter())
            self._sessions.remove(session)

    def _end_sessions(self, patience_s: float) -> None:
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.close()
        for session in sessions:
            session.join(patience_s)

    def statistics(self) -> dict[str, int]:
        """Requests by operation, bytes read and written, requests refused, and clients that are here."""
        with self._lock:
            self._forget_the_gone()
            total = sum((sum(session.counts.values(), Counter()) for session in self._sessions), Counter(self._past))
            return {"clients": len(self._sessions), **total}
