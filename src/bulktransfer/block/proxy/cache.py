"""What users of the block client read before, as long as the server says that it is current.

Every read still asks the server, which answers without contents where the kept version is the one that it has: no read
is older than the last change that anybody, on any machine, was told of. What is saved is the contents' way.

Knows: requests of reads and their answers. Must not know: channels, who reads.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from ..errors import Status
from ..service.changes import UNKNOWN
from ..service.messages import Answer, Flag, Message, Operation, unpack_answer, unpack_message

Key = tuple[bytes, int, int, int]


class Kept(NamedTuple):
    """What was read, and of which version it is."""

    version: int
    contents: bytes


class ReadCache:
    """At most `limit_bytes` of contents; what was used longest ago goes first. Runs are kept as they were asked for."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._kept: OrderedDict[Key, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, export: bytes, message: Message) -> Kept | None:
        """What is kept of that read."""
        key = _key(export, message)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
        return kept

    def keep(self, export: bytes, message: Message, kept: Kept) -> None:
        """Keep what was read, in place of what was read there before."""
        key = _key(export, message)
        self.forget(key)
        if len(kept.contents) > self.limit_bytes:
            return
        self._kept[key] = kept
        self.size_bytes += len(kept.contents)
        while self.size_bytes > self.limit_bytes:
            self.forget(next(iter(self._kept)))

    def forget(self, key: Key) -> None:
        """Keep that no longer."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.size_bytes -= len(kept.contents)


class Question(NamedTuple):
    """A read as it goes to the server, and what is kept until its answer is there, come what may in the cache."""

    meta: bytes
    asked: Message
    kept: Kept | None


def question(cache: ReadCache, export: bytes, meta: bytes) -> Question | None:
    """A read, with the version that is kept; None for what is no read, or has versions already."""
    if meta[0] != Operation.READ or meta[1] & Flag.VERSIONED:
        return None
    asked = unpack_message(meta)
    kept = cache.find(export, asked)
    version = UNKNOWN if kept is None else kept.version
    return Question(asked._replace(flags=asked.flags | Flag.VERSIONED, version=version).pack(), asked, kept)


def is_current(asked: Question, answer: Answer) -> bool:
    """Whether the server says that what is kept is what it has."""
    return (
        answer.status == Status.OK
        and answer.length == 0
        and asked.kept is not None
        and answer.version == asked.kept.version
    )


def plain(asked: Question, meta: bytes) -> tuple[Answer, bytes]:
    """An answer, and what the user gets for it, who asked for no version."""
    answer = unpack_answer(meta)
    length = asked.asked.length if answer.status == Status.OK else answer.length
    return answer, answer._replace(length=length, version=0).pack()


def _key(export: bytes, message: Message) -> Key:
    return export, message.block, message.within, message.length
