"""The server's side of one client: what it asks is done, and every buffer goes back with exactly one status.

Two threads, one a channel: writes go on while reads do. Reads go from the store straight into the buffer that is then
moved, writes straight from the received buffer to the store.

Knows: messages, the client's export. Must not know: how clients come (server.py), where blocks lie (store.py).
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import bulktransfer as bulk

from ..errors import (
    BadBlockError,
    BadRequestError,
    BlockError,
    NoBuffersError,
    NotConnectedError,
    ReadOnlyError,
    Status,
)
from ..store import Store
from .changes import UNKNOWN, Changes
from .messages import EXTENT, HOLE, ZERO, Answer, Flag, Malformed, Message, Operation, unpack_message

BATCH = 64
SEND_BYTES = (
    256 << 10
)  # contents that are sent as soon as they are there: hot in a cache, and the peer goes on meanwhile
_log = logging.getLogger("bulktransfer.block")

_Act = Callable[["Session", Message, bulk.Buffer], Answer]


class Export(NamedTuple):
    """A store, and what changes in it."""

    store: Store
    changes: Changes


class Session:
    """One client, until its channels end; `start`, then `join`, perhaps after `close`."""

    def __init__(self, up: bulk.Channel, down: bulk.Channel, exports: Mapping[str, Export], read_only: bool) -> None:
        self._up = up
        self._down = down
        self._exports = exports
        self._read_only = read_only
        self._chosen: Export | None = None
        self.export = ""
        # A thread each, and no key comes later: others look at them meanwhile.
        names = [*(operation.name.lower() for operation in Operation), "bytes", "refused"]
        self.counts: dict[str, Counter[str]] = {side: Counter(dict.fromkeys(names, 0)) for side in ("up", "down")}
        self._threads = [
            threading.Thread(target=self._run, args=(up, "up", _UP), name="blocks up", daemon=True),
            threading.Thread(target=self._run, args=(down, "down", _DOWN), name="blocks down", daemon=True),
        ]

    def start(self) -> None:
        """Begin to serve."""
        for thread in self._threads:
            thread.start()

    @property
    def ended(self) -> bool:
        """Whether the client is gone and nothing is under way for it."""
        return not any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """End both channels; what was answered still arrives."""
        self._up.close()
        self._down.close()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of what is under way."""
        for thread in self._threads:
            thread.join(timeout_s)

    def _run(self, channel: bulk.Channel, side: str, acts: Mapping[int, _Act]) -> None:
        counts = self.counts[side]
        send = channel.pass_many if side == "up" else channel.move_many
        try:
            while True:
                buffers: list[bulk.Buffer] = []
                metas: list[bytes] = []
                size = 0
                for event in channel.receive_many(BATCH):
                    if event.kind in (bulk.EventKind.MOVE_RECEIVED, bulk.EventKind.BUFFER_RECEIVED):
                        answer = self._answer(event, acts, counts)
                        buffers.append(event.buffer)
                        metas.append(answer.pack())
                        size += answer.length
                        if size >= SEND_BYTES:
                            send(buffers, metas)
                            buffers, metas, size = [], [], 0
                    elif event.kind is bulk.EventKind.COPY_RECEIVED:
                        counts["refused"] += 1
                        channel.release(event.buffer)  # a release has no room for a status: a write is a move
                if buffers:
                    send(buffers, metas)
        except bulk.EndOfChannelError:
            _log.debug("a client of the block service went in order")
        except bulk.BulkError as error:
            _log.info("a client of the block service is gone: %s", error)
        finally:
            self.close()  # one channel alone is of no use

    def _answer(self, event: bulk.Event, acts: Mapping[int, _Act], counts: Counter[str]) -> Answer:
        """Do what was asked; its one answer. A buffer that has nothing to tell goes back with no contents."""
        buffer = event.buffer
        message = Message(0, 0, 0)
        try:
            message = unpack_message(event.meta)
            act = acts.get(message.operation)
            if act is None:
                raise BadRequestError(f"operation {message.operation}")
            answer = act(self, message, buffer)
            counts[Operation(message.operation).name.lower()] += 1
            counts["bytes"] += message.length if message.operation in (Operation.READ, Operation.WRITE) else 0
        except Malformed as error:
            _log.info("a client of the block service sent %s", error)
            answer = Answer(0, Status.BAD_REQUEST, 0)
        except BlockError as error:
            _log.debug("a request was refused: %s", error)
            answer = Answer(message.operation, error.status, message.request, message.block, message.within)
        except MemoryError:
            answer = Answer(message.operation, Status.NO_BUFS, message.request, message.block, message.within)
        if answer.status != Status.OK:
            counts["refused"] += 1
            buffer.length = 0
        return answer

    # -- the operations --------------------------------------------------------------------------------------------

    def _place(self, message: Message) -> tuple[Export, int]:
        """The export, and the offset that is meant. Raises: NotConnectedError, BadRequestError, BadBlockError."""
        chosen = self._chosen
        if chosen is None:
            raise NotConnectedError("no export was chosen")
        store = chosen.store
        if message.within >= store.block_size:
            raise BadRequestError(f"byte {message.within} of a block of {store.block_size}")
        offset = message.block * store.block_size + message.within
        if offset + message.length > store.size_bytes:
            raise BadBlockError(f"block {message.block} of {store.block_count}")
        return chosen, offset

    def _changing(self, message: Message) -> tuple[Export, int]:
        """The same, of a message that changes something. Raises: and ReadOnlyError."""
        store, offset = self._place(message)
        if self._read_only:
            raise ReadOnlyError(f"export {self.export!r} is served read-only")
        return store, offset

    def _hello(self, message: Message, buffer: bulk.Buffer) -> Answer:
        try:
            name = buffer.tobytes().decode()
        except UnicodeDecodeError:
            raise BadRequestError("the name of an export is not UTF-8") from None
        buffer.length = 0
        chosen = self._exports.get(name)
        if chosen is None:
            raise BadRequestError(f"there is no export {name!r}")
        store = chosen.store
        if buffer.size < store.block_size:
            raise NoBuffersError(f"buffers of {buffer.size} bytes for blocks of {store.block_size}")
        self._chosen, self.export = chosen, name
        flags = Flag.READ_ONLY if self._read_only or store.read_only else 0
        return Answer(message.operation, Status.OK, message.request, store.size_bytes, flags, store.block_size)

    def _write(self, message: Message, buffer: bulk.Buffer) -> Answer:
        (store, changes), offset = self._changing(message)
        if message.length != buffer.length or not message.length:
            raise BadRequestError(f"a write of {message.length} bytes with a buffer of {buffer.length}")
        with memoryview(buffer) as data, changes.changing(offset, message.length):
            store.write(offset, data, fua=bool(message.flags & Flag.FUA))
        return Answer(*_echo(message))

    def _flush(self, message: Message, buffer: bulk.Buffer) -> Answer:
        chosen, _ = self._place(message)
        chosen.store.flush()
        return Answer(*_echo(message))

    def _trim(self, message: Message, buffer: bulk.Buffer) -> Answer:
        (store, changes), offset = self._changing(message)
        with changes.changing(offset, message.length):
            store.trim(offset, message.length, fua=bool(message.flags & Flag.FUA))
        return Answer(*_echo(message))

    def _zeroes(self, message: Message, buffer: bulk.Buffer) -> Answer:
        (store, changes), offset = self._changing(message)
        flags = message.flags
        with changes.changing(offset, message.length):
            store.write_zeroes(
                offset,
                message.length,
                may_trim=not flags & Flag.NO_HOLE,
                fast=bool(flags & Flag.FAST),
                fua=bool(flags & Flag.FUA),
            )
        return Answer(*_echo(message))

    def _read(self, message: Message, buffer: bulk.Buffer) -> Answer:
        (store, changes), offset = self._place(message)
        if not message.length:
            raise BadRequestError("a read of nothing")
        if message.length > buffer.size:
            raise NoBuffersError(f"a read of {message.length} bytes into a buffer of {buffer.size}")
        version = changes.version(offset, message.length) if message.flags & Flag.VERSIONED else UNKNOWN
        if version != UNKNOWN and version == message.version:
            buffer.length = 0
            return Answer(*_echo(message)[:5], 0, version)
        buffer.length = message.length
        with memoryview(buffer) as into:
            store.read_into(offset, into)
        return Answer(*_echo(message), version)

    def _extents(self, message: Message, buffer: bulk.Buffer) -> Answer:
        chosen, offset = self._place(message)
        limit = buffer.size // EXTENT.size
        records: list[bytes] = []
        for extent in chosen.store.extents(offset, message.length):
            if len(records) == limit:
                break
            records.append(EXTENT.pack(extent.length, (HOLE if extent.hole else 0) | (ZERO if extent.zero else 0)))
        buffer.put(b"".join(records))
        return Answer(*_echo(message))

    def _names(self, message: Message, buffer: bulk.Buffer) -> Answer:
        names = b"".join(name.encode() + b"\0" for name in self._exports)
        if len(names) > buffer.size:
            raise NoBuffersError(f"{len(names)} bytes of names")
        buffer.put(names)
        return Answer(*_echo(message))


def _echo(message: Message) -> tuple[int, int, int, int, int, int]:
    return message.operation, Status.OK, message.request, message.block, message.within, message.length


_UP: dict[int, _Act] = {
    Operation.HELLO: Session._hello,
    Operation.WRITE: Session._write,
    Operation.FLUSH: Session._flush,
    Operation.TRIM: Session._trim,
    Operation.ZEROES: Session._zeroes,
}
_DOWN: dict[int, _Act] = {
    Operation.READ: Session._read,
    Operation.EXTENTS: Session._extents,
    Operation.NAMES: Session._names,
}
