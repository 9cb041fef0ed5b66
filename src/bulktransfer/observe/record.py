"""The memory in which a process shows itself (statistics.h), read from outside.

Knows: its layout, and that whoever wrote it may be anybody: every number is checked before it is used. Must not know:
processes, or how their memory is found.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import bulktransfer as bulk

from .view import ACTS, ChannelView, PoolView

NAME = "bulktransfer-statistics"
MAGIC = 0x31535441544B4C42
SIZE = 64 << 20
_HEAD = struct.Struct("<Q8I")
_RECORD = struct.Struct("<II8QQII")
_RECORD_SIZE, _CELL = 1024, 512
_TEXT_SIZE_MAX = _RECORD_SIZE - _RECORD.size
_DIRECTORY_MAX, _SLOTS_MAX, _SLOT_SIZE_MAX = 1 << 16, 1 << 22, 256
_PATIENCE = 100  # a record that is written each time one looks is left out
_STATES = tuple(state.name for state in sorted(bulk.BufferState, key=lambda state: state.value))


class Strange(Exception):
    """The memory is not what it says it is."""


class Head(NamedTuple):
    """What the memory says of itself."""

    magic: int
    pid: int
    hardened: int
    slot_size: int
    slot_state: int
    slot_flags: int
    flag_free: int
    directory_count: int
    cell_size: int


def read(fd: int) -> tuple[Head, list[ChannelView], list[PoolView]]:
    """Everything in it, as it is at this moment. Raises: Strange, OSError."""
    if os.fstat(fd).st_size != SIZE:
        raise Strange(f"{os.fstat(fd).st_size} bytes")
    head = Head(*_HEAD.unpack(_exactly(fd, _HEAD.size, 0)))
    if head.magic != MAGIC or head.cell_size != _CELL or head.directory_count > _DIRECTORY_MAX:
        raise Strange("another version of the library, or something else")
    if max(head.slot_state, head.slot_flags) >= head.slot_size or head.slot_size > _SLOT_SIZE_MAX:
        raise Strange("slots that cannot be")
    channels: list[ChannelView] = []
    pools: list[PoolView] = []
    directory = struct.unpack(f"<{head.directory_count}I", _exactly(fd, 4 * head.directory_count, _HEAD.size))
    for cell in filter(None, directory):
        found = _record(fd, cell)
        if found is None:
            continue
        facts, counters, slots = found
        if facts.get("kind") == "channel":
            channels.extend(_channel(facts, counters))
        elif facts.get("kind") == "pool":
            pools.extend(_pool(fd, head, facts, slots))
    return head, channels, pools


def _exactly(fd: int, size: int, offset: int) -> bytes:
    data = os.pread(fd, size, offset)
    if len(data) != size:
        raise Strange("it ends too early")
    return data


def _record(fd: int, cell: int) -> tuple[dict[str, Any], tuple[int, ...], tuple[int, int]] | None:
    """The text, the counters and the place of the slots of one record; None if it is gone, or never still."""
    if cell * _CELL + _RECORD_SIZE > SIZE:
        return None
    for _ in range(_PATIENCE):
        data = _exactly(fd, _RECORD_SIZE, cell * _CELL)
        sequence, size, *numbers = _RECORD.unpack_from(data)
        again = struct.unpack("<I", _exactly(fd, 4, cell * _CELL))[0]
        if sequence & 1 or again != sequence or not 0 < size <= _TEXT_SIZE_MAX:
            continue
        try:
            facts = json.loads(data[_RECORD.size : _RECORD.size + size])
        except (ValueError, RecursionError):
            return None
        if not isinstance(facts, dict):
            return None
        return facts, tuple(numbers[:8]), (numbers[8], numbers[9])
    return None


def _channel(facts: dict[str, Any], counters: tuple[int, ...]) -> Iterator[ChannelView]:
    texts = [facts.get(name) for name in ("address", "state", "end", "role", "trust", "host")]
    numbers = [facts.get(name) for name in ("number", "peer", "more_pools")]
    pools = facts.get("pools")
    if not all(map(_is_text, texts)) or not all(isinstance(n, int) for n in numbers) or not isinstance(pools, list):
        return
    yield ChannelView(
        number=facts["number"],
        address=facts["address"],
        state=facts["state"],
        end=facts["end"],
        role=facts["role"],
        trust=facts["trust"],
        peer=facts["peer"],
        host=facts["host"],
        pools=tuple(filter(_is_text, pools)),
        more_pools=facts["more_pools"],
        sent=dict(zip(ACTS, counters[:4], strict=True)),
        received=dict(zip(ACTS, counters[4:], strict=True)),
    )


def _pool(fd: int, head: Head, facts: dict[str, Any], slots: tuple[int, int]) -> Iterator[PoolView]:
    if not _is_text(facts.get("id")) or not isinstance(facts.get("size"), int):
        return
    offset, count = slots
    states: dict[str, int] = {}
    free = 0
    if offset and 0 < count <= _SLOTS_MAX and offset + count * head.slot_size <= SIZE:
        table = _exactly(fd, count * head.slot_size, offset)
        found = table[head.slot_state :: head.slot_size]
        states = {name: found.count(value) for value, name in enumerate(_STATES)}
        free = sum(bool(flags & head.flag_free) for flags in table[head.slot_flags :: head.slot_size])
    yield PoolView(id=facts["id"], size=facts["size"], home=facts.get("home") is True, states=states, free=free)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and (value.isprintable())
