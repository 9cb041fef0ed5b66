"""One user of the block client: its requests go to the server in the buffers that they came in, answers come back so.

Knows: what is under way, and what the loss of either side means for it. Must not know: how a connection is made
(uplink.py), other users (proxy.py). A state machine without waits: `pump` takes what is there.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import bulktransfer as bulk

from ..errors import BlockError, Status
from ..service.messages import LAYOUT, Answer, Malformed, Operation, unpack_answer, unpack_message
from .cache import Kept, Question, ReadCache, is_current, plain, question
from .promises import Promises
from .uplink import Export, Route, Uplink, has_ended

BATCH = 64
UP, DOWN = 0, 1  # everything that changes, and HELLO; everything that reads
_ARRIVED = (bulk.EventKind.MOVE_RECEIVED, bulk.EventKind.BUFFER_RECEIVED)


class Request(NamedTuple):
    """A buffer and what it asks for."""

    side: int
    buffer: bulk.Buffer
    meta: bytes
    name: bytes = b""  # of the export, where it is HELLO


class Watcher(Protocol):
    """What a passage needs of whoever waits for it."""

    def watch(self, channel: bulk.Channel, passage: Passage) -> None:
        """Have `pump` called when there is news."""

    def unwatch(self, channel: bulk.Channel) -> None:
        """No more."""


class Passage:
    """The two channels of a user, and the two that they go on over; `over` when the user is gone or was sent away."""

    def __init__(
        self,
        channels: Sequence[bulk.Channel],
        route: Route,
        reconnect_s: float,
        cache: ReadCache | None,
        watcher: Watcher,
        counts: Counter[str],
    ) -> None:
        self._local = tuple(channels)
        self._route = route
        self._reconnect_s = reconnect_s
        self._cache = cache
        self._questions: dict[bulk.Buffer, Question] = {}  # reads under way that went with a version
        self._watcher = watcher
        self._counts = counts
        self._uplink: Uplink | None = None
        self._is_ready = False
        self._deadline = 0.0  # of the attempts to come back
        self._export: Export | None = None
        self._promises = Promises()
        self._backlog: deque[Request] = deque()  # what waits for the server
        self._away: dict[bulk.Buffer, Request] = {}  # what the server has
        self._lost: dict[bulk.Buffer, Request] = {}  # what it had when it was lost, and is not back yet
        self._asked: list[bulk.Answer] = []  # what the user wants of its pools, and the server has not heard
        self._deciding: list[bulk.Answer] = []  # what it has heard, and not answered
        self.over = False

    def start(self) -> None:
        """Take the user's requests, and connect to the server on its behalf."""
        for channel in self._local:
            self._watcher.watch(channel, self)
        self._connect(self._route.timeout_s)

    @property
    def waits_for_memory(self) -> bool:
        """Whether buffers are to come back of which nothing tells but their state; see `settle`."""
        return bool(self._lost)

    # -- what arrives ----------------------------------------------------------------------------------------------

    def pump(self, channel: bulk.Channel) -> None:
        """Take what is there and pass it on. Never waits."""
        try:
            events = channel.receive_many(BATCH, 0)
        except TimeoutError:
            return  # a continuation ran, or nothing was there
        except bulk.BulkError as end:
            if not has_ended(end):
                raise
            self._on_end(channel, end)
            return
        if channel in self._local:
            self._from_user(self._local.index(channel), channel, events)
        elif self._uplink is not None and channel in self._uplink.channels:
            self._from_server(self._uplink.channels.index(channel), events)

    def _from_user(self, side: int, channel: bulk.Channel, events: list[bulk.Event]) -> None:
        requests: list[Request] = []
        for event in events:
            if event.kind in _ARRIVED:
                if len(event.meta) != LAYOUT.size:
                    self._answer(Request(side, event.buffer, bytes(LAYOUT.size)), Status.BAD_REQUEST)
                    continue
                name = event.buffer.tobytes() if side == UP and event.meta[0] == Operation.HELLO else b""
                requests.append(Request(side, event.buffer, event.meta, name))
            elif event.kind is bulk.EventKind.COPY_RECEIVED:
                channel.release(event.buffer)
        if self._is_ready:
            self._forward(side, requests)
        else:
            self._backlog.extend(requests)

    def _forward(self, side: int, requests: list[Request]) -> None:
        """To the server, with one notification."""
        if side == UP and self._promises.in_doubt:
            requests = self._without_flush(requests)
        if not requests:
            return
        assert self._uplink is not None
        channel = self._uplink.channels[side]
        send = channel.move_many if side == UP else channel.pass_many
        try:
            send([request.buffer for request in requests], [self._meta(request) for request in requests])
        except bulk.BulkError as error:
            if has_ended(error):
                self._backlog.extend(requests)  # none was sent, and the channel's end is on its way here
                return
            for request in requests:
                self._answer(request, Status.NO_BUFS)
            return
        for request in requests:
            self._away[request.buffer] = request
            if side == UP:
                self._promises.sent(request.meta)

    def _meta(self, request: Request) -> bytes:
        """What to send for a request: a read asks for a version, and names the one that is kept."""
        if self._cache is None or self._export is None or request.side == UP:
            return request.meta
        asked = question(self._cache, self._export.name, request.meta)
        if asked is None:
            return request.meta
        self._questions[request.buffer] = asked
        return asked.meta

    def _fill(self, asked: Question, buffer: bulk.Buffer, meta: bytes) -> bytes:
        """Answer a read with what is kept, if it is current, or keep what came; the user's answer."""
        assert self._cache is not None
        assert self._export is not None
        answer, said = plain(asked, meta)
        if is_current(asked, answer):
            assert asked.kept is not None
            buffer.put(asked.kept.contents)
            self._counts["kept"] += 1
        elif answer.version and buffer.length == asked.asked.length:
            self._cache.keep(self._export.name, asked.asked, Kept(answer.version, buffer.tobytes()))
        return said

    def _without_flush(self, requests: list[Request]) -> list[Request]:
        """Refuse the first flush after a loss: it cannot cover what the server may have lost."""
        for request in requests:
            if request.meta[0] == Operation.FLUSH:
                self._promises.told()
                self._answer(request, Status.IO_ERROR)
                return [other for other in requests if other is not request]
        return requests

    def _from_server(self, side: int, events: list[bulk.Event]) -> None:
        buffers: list[bulk.Buffer] = []
        metas: list[bytes] = []
        uplink = self._uplink
        assert uplink is not None
        for event in events:
            if event.kind is bulk.EventKind.OPERATION_REFUSED:
                refused = self._away.pop(event.buffer, None)
                if refused is not None:
                    self._answer(refused, Status.NO_BUFS)
                continue
            if event.kind not in _ARRIVED or uplink.greeted(event):
                continue
            request = self._away.get(event.buffer)
            fault = _fault(request, event.meta)
            if fault or request is None:
                self._pass_on(side, buffers, metas)
                uplink.channels[side].abort(f"the server {fault}")
                self._lose(f"the server {fault}")
                return
            del self._away[event.buffer]
            meta = event.meta
            if side == UP:
                self._note(request, meta)
            elif asked := self._questions.pop(event.buffer, None):
                meta = self._fill(asked, event.buffer, meta)
            buffers.append(event.buffer)
            metas.append(meta)
        self._pass_on(side, buffers, metas)

    def _note(self, request: Request, meta: bytes) -> None:
        """What an answer says of what is durable, and of the export."""
        self._promises.answered(request.meta, meta)
        if request.meta[0] == Operation.HELLO and meta[1] == Status.OK:
            self._export = Export(request.name, unpack_answer(meta))

    def _pass_on(self, side: int, buffers: list[bulk.Buffer], metas: list[bytes]) -> None:
        """Answers to the user, with one notification."""
        if not buffers:
            return
        channel = self._local[side]
        self._counts["answers"] += len(buffers)
        try:
            (channel.pass_many if side == UP else channel.move_many)(buffers, metas)
        except bulk.BulkError as error:
            if not has_ended(error):
                raise
            self._lost.update((buffer, Request(side, buffer, b"")) for buffer in buffers)  # to be let go with the user

    def _answer(self, request: Request, status: Status) -> None:
        """The user's answer where the server has none."""
        asked = unpack_message(request.meta)
        if request.side == DOWN:
            request.buffer.length = 0
        self._counts["refused"] += 1
        answer = Answer(asked.operation, status, asked.request, asked.block, asked.within)
        self._pass_on(request.side, [request.buffer], [answer.pack()])

    # -- pools -----------------------------------------------------------------------------------------------------

    def asked(self, answer: bulk.Answer) -> None:
        """The user wants a pool on one of its channels, or off it: the server decides (I-7.3)."""
        if not self._is_ready:
            self._asked.append(answer)
            return
        uplink = self._uplink
        assert uplink is not None
        side = self._local.index(answer.channel)
        self._deciding.append(answer)
        act = uplink.assign if answer.operation == "assign" else uplink.remove
        act(side, answer.pool, lambda error: self._decided(answer, error))

    def _decided(self, answer: bulk.Answer, error: BaseException | None) -> None:
        if answer not in self._deciding or has_ended(error):
            return  # the server is lost: the next one is asked, and if there is none the user's channel ends
        self._deciding.remove(answer)
        with contextlib.suppress(bulk.BulkError):  # the user withdrew, or its channel ended, which its end says
            if error is None:
                answer.accept()
            else:
                answer.refuse(error)

    # -- the server ------------------------------------------------------------------------------------------------

    def _connect(self, timeout_s: float) -> None:
        pools = [list(channel.pools) for channel in self._local]
        try:
            self._uplink = Uplink(self._route, self._watch, self._on_ready, timeout_s=timeout_s)
        except (bulk.BulkError, OSError) as error:
            self._send_away(f"no connection to the server: {error}")
            return
        self._uplink.restore(pools, self._export)

    def _watch(self, channel: bulk.Channel) -> None:
        self._watcher.watch(channel, self)

    def _on_ready(self, error: BaseException | None) -> None:
        """The server is there, with the user's pools and export; or it will not be."""
        if error is not None:
            if isinstance(error, BlockError):
                self._deadline = 0.0  # the server is there, and is not what it was: no use in trying again
            self._lose(f"no connection to the server: {error}")
            return
        self._is_ready = True
        self._counts["connections"] += 1
        asked, self._asked = self._asked, []
        for answer in asked:
            self.asked(answer)
        waiting, self._backlog = self._backlog, deque()
        for side in (UP, DOWN):
            self._forward(side, [request for request in waiting if request.side == side])

    def _lose(self, why: str) -> None:
        """The connection is of no more use: what was under way is answered so, and perhaps there will be another."""
        uplink, self._uplink = self._uplink, None
        if uplink is None:
            return
        was_ready, self._is_ready = self._is_ready, False
        self._drop_uplink(uplink)
        self._promises.lost()
        self._lost.update(self._away)
        self._away.clear()
        self._questions.clear()
        self._asked += self._deciding
        self._deciding.clear()
        self.settle()
        now = time.monotonic()
        if was_ready:
            self._counts["lost"] += 1
            self._deadline = now + self._reconnect_s
        if now < self._deadline:
            self._connect(self._deadline - now)
        else:
            self._send_away(why)

    def _drop_uplink(self, uplink: Uplink) -> None:
        channels = uplink.watched
        uplink.close()
        for channel in channels:
            self._watcher.unwatch(channel)

    def settle(self) -> None:
        """Answer what the lost server had and is back: nobody knows whether it was done."""
        for buffer in [buffer for buffer in self._lost if buffer.owned]:
            self._answer(self._lost.pop(buffer), Status.NOT_CONNECTED)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _on_end(self, channel: bulk.Channel, end: BaseException) -> None:
        if channel in self._local:
            self.close()
        elif self._uplink is not None and channel in self._uplink.watched:
            self._lose(f"the server is gone: {end}")
        else:
            self._watcher.unwatch(channel)  # of a connection that was given up

    def _send_away(self, why: str) -> None:
        """Nothing more can be done for the user: answer what waits, and end its channels with the reason."""
        for request in self._backlog:
            self._answer(request, Status.NOT_CONNECTED)
        self._backlog.clear()
        for channel in self._local:
            channel.abort(why)
        self.close()

    def close(self) -> None:
        """End everything; what was accepted still arrives, where the other side is there. Idempotent."""
        if self.over:
            return
        self.over = True
        for channel in self._local:
            channel.close()
            self._watcher.unwatch(channel)
        uplink, self._uplink = self._uplink, None
        if uplink is not None:
            self._drop_uplink(uplink)
        held = {*self._away, *self._lost, *(request.buffer for request in self._backlog)}
        for tracked in (self._away, self._lost, self._backlog):
            tracked.clear()
        for buffer in held:
            if buffer.pool.present:
                buffer.drop()


def _fault(request: Request | None, meta: bytes) -> str:
    """What is wrong with an answer, or nothing."""
    if request is None:
        return "answered what was not asked"
    try:
        answer = unpack_answer(meta)
    except Malformed as error:
        return f"answered with {error}"
    if meta[8:16] != request.meta[8:16] or answer.operation != request.meta[0]:
        return "answered something else"
    return ""
