"""The block client: a service on this machine that forwards to a server on another (report I-7.1.2, Figure 7.1).

Knows: the address, the users, the one thread that serves them. Must not know: what is asked (passage.py).
"""

from __future__ import annotations

import logging
import select
from collections import Counter

import bulktransfer as bulk

from ..errors import BadRequestError, NotConnectedError
from ..service.messages import META_SIZE
from ..service.server import trust_for
from ..stopping import StopSignal
from .cache import ReadCache
from .passage import Passage
from .uplink import Route

RECHECK_S = 0.05  # while memory is to come back of which nothing else tells
_log = logging.getLogger("bulktransfer.block")


class BlockProxy:
    """Serves at `address` what a block service serves at `server`, to many users, until `stop`.

    Each user has a connection to the server of its own; its pools are assigned through to there, and its buffers are
    forwarded without a copy. An answer is the server's, or says that the server is gone.
    reconnect: seconds, after a connection was lost, in which the user's next requests wait for a new one; 0: none is
    made, and the user's channels end. What was under way is answered NOT_CONNECTED in both cases, and the first flush
    afterwards is refused if the server may have lost what it had acknowledged.
    cache_bytes: keep that much of what was read; the server is asked whether it is current, and then sends nothing.
    timeout: seconds that the server has to answer a connection. network: of `tcp:` and `tls:` addresses.
    Raises: NotConnectedError (nobody serves there), BadRequestError (it serves something else), and as bulk.connect
    and bulk.listen.
    """

    def __init__(
        self,
        address: str,
        server: str,
        *,
        reconnect: float = 0.0,
        cache_bytes: int = 0,
        timeout: float = 10.0,
        trust: bulk.Trust | None = None,
        limits: bulk.Limits | None = None,
        network: bulk.Network | None = None,
        domain: bulk.Domain | None = None,
    ) -> None:
        self.server = server
        self._route = Route(server, network, timeout, domain)
        self._reconnect_s = reconnect
        self._cache = ReadCache(cache_bytes) if cache_bytes > 0 else None
        self._reach()  # first the server, then the interface (I-7.2)
        callbacks = bulk.Callbacks(pool_assigned=self._pool_asked, pool_removed=self._pool_asked)
        trust = trust_for(address) if trust is None else trust
        specs = [
            bulk.ChannelSpec(direction=direction, trust=trust, meta_size=META_SIZE, callbacks=callbacks)
            for direction in (bulk.Direction.RX, bulk.Direction.TX)
        ]
        self._listener = bulk.listen(address, specs, limits=limits, domain=domain)
        self._waitset = bulk.WaitSet()
        self._waitset.add(self._listener)
        self._passages: dict[bulk.Channel, Passage] = {}
        self._counts: Counter[str] = Counter()
        self._stop = StopSignal()

    def _reach(self) -> None:
        """See whether the server is there. Raises: NotConnectedError, BadRequestError, and as bulk.connect."""
        route = self._route
        try:
            channels = bulk.connect(route.address, timeout=route.timeout_s, network=route.network, domain=route.domain)
        except bulk.EndpointNotFoundError as error:
            raise NotConnectedError(f"nobody serves blocks at {route.address}: {error}") from error
        found = [(channel.direction, channel.meta_size) for channel in channels]
        for channel in channels:
            channel.close()
        if found != [(bulk.Direction.TX, META_SIZE), (bulk.Direction.RX, META_SIZE)]:
            raise BadRequestError(f"{route.address} is no block service")

    @property
    def address(self) -> str:
        """Where users connect."""
        return self._listener.address

    def __repr__(self) -> str:
        return f"<BlockProxy at {self.address} for {self.server}>"

    # -- who waits -------------------------------------------------------------------------------------------------

    def watch(self, channel: bulk.Channel, passage: Passage) -> None:
        """Have news of a channel go to its passage."""
        self._waitset.add(channel)
        self._passages[channel] = passage

    def unwatch(self, channel: bulk.Channel) -> None:
        """A channel is of no more interest."""
        if self._passages.pop(channel, None) is not None:
            self._waitset.remove(channel)

    def _pool_asked(self, event: bulk.Event) -> None:
        """A user's request about a pool; what comes of it is decided where its channel is received."""
        answer: bulk.Answer = event.channel.defer(event, lambda outcome: self._pool_due(answer, outcome.error))

    def _pool_due(self, answer: bulk.Answer, error: BaseException | None) -> None:
        passage = self._passages.get(answer.channel)
        if error is None and passage is not None:
            passage.asked(answer)

    # -- the work --------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Have `serve` return; may be called from a signal handler, and more than once."""
        self._stop.give()

    def serve(self) -> None:
        """Serve until `stop`; then end every user's channels. What the server had acknowledged is its own to keep."""
        poller = select.poll()
        poller.register(self._waitset.fileno(), select.POLLIN)
        poller.register(self._stop.fileno(), select.POLLIN)
        try:
            while not self._stop.given:
                lost = [passage for passage in self._everybody() if passage.waits_for_memory]
                if not lost:
                    poller.poll()
                self._round(RECHECK_S if lost else 0)  # which serves the domain, where leases are
                for passage in lost:
                    passage.settle()
        finally:
            self._listener.close()
            for passage in self._everybody():
                passage.close()
            self._waitset.close()
            self._stop.close()

    def _everybody(self) -> list[Passage]:
        return list(dict.fromkeys(self._passages.values()))

    def _round(self, timeout_s: float) -> None:
        """Take what is there, once from each channel."""
        try:
            ready = self._waitset.wait(timeout_s)
        except TimeoutError:
            return
        for thing in ready:
            if thing is self._listener:
                self._accept()
                continue
            passage = self._passages.get(thing)
            if passage is not None:
                self._pump(passage, thing)

    def _pump(self, passage: Passage, channel: bulk.Channel) -> None:
        """Serve one user; what goes wrong with it ends it, and harms no other."""
        try:
            passage.pump(channel)
        except (bulk.BulkError, OSError) as error:
            _log.warning("a user of the block client is sent away: %s", error)
            passage.close()

    def _accept(self) -> None:
        while self._listener.clients:
            try:
                channels = self._listener.accept(timeout=0)
            except bulk.BulkError as error:
                _log.warning("a user of the block client was lost: %s", error)
                return
            self._counts["users"] += 1
            Passage(channels, self._route, self._reconnect_s, self._cache, self, self._counts).start()

    def statistics(self) -> dict[str, int]:
        """Users here and in all, connections made and lost, answers; those refused here, and those from the cache."""
        counts = Counter(dict.fromkeys(("users", "connections", "lost", "answers", "refused", "kept"), 0))
        counts.update(self._counts)
        return {"here": len(self._everybody()), **counts}
