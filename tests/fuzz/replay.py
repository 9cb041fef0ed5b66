"""Inputs that are the same in every run: the seeds, and what a die makes of them; and which lines they reached."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SEEDS = Path(__file__).with_name("seeds")


def seeds(name: str) -> list[bytes]:
    """The seeds of a target: one a line, in hexadecimal digits."""
    path = SEEDS / f"{name}.hex"
    return [bytes.fromhex(line) for line in path.read_text().split("\n") if line] if path.exists() else []


def inputs(name: str, count: int, size_max: int) -> Iterator[bytes]:
    """The seeds as they are, then `count` that are cut, joined, and changed."""
    kept = seeds(name) or [b""]
    yield from kept
    die = random.Random(name)
    for _ in range(count):
        data = bytearray(die.choice(kept))
        for _ in range(die.randint(1, 6)):
            _change(die, data, kept)
        yield bytes(data[:size_max])


def _change(die: random.Random, data: bytearray, kept: list[bytes]) -> None:
    at = die.randrange(len(data) + 1)
    match die.randrange(7):
        case 0:
            data[at:at] = die.randbytes(die.choice((1, 2, 4, 8, 33)))
        case 1:
            del data[at : at + die.choice((1, 2, 4, 16, 400))]
        case 2 if at < len(data):
            data[at] ^= 1 << die.randrange(8)
        case 3:
            width = die.choice((1, 2, 4, 8))
            value = die.choice((0, 1, 2, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), die.randrange(300)))
            data[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, die.choice(("big", "little")))
        case 4:
            other = die.choice(kept)
            data[at:] = other[die.randrange(len(other) + 1) :]
        case 5:
            data[at:at] = data[at : at + die.randrange(64)]
        case _ if at < len(data):
            data[at] = die.randrange(256)


def _lines(code: types.CodeType) -> set[int]:
    found = {line for _, _, line in code.co_lines() if line}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _lines(constant)
    return found


class Reached:
    """Which lines of some modules run inside `with`, those that an import ran aside."""

    def __init__(self, modules: list[Any]) -> None:
        self._all: dict[str, set[int]] = {}
        for module in modules:
            path = str(module.__file__)
            code = compile(Path(path).read_text(), path, "exec")
            self._all[path] = set().union(
                *(_lines(part) for part in code.co_consts if isinstance(part, types.CodeType)), set()
            )
        self._seen: dict[str, set[int]] = {path: set() for path in self._all}

    def _trace(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        seen = self._seen.get(frame.f_code.co_filename)
        if seen is None:
            return None
        seen.add(frame.f_lineno)
        return self._trace

    def __enter__(self) -> Reached:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(None)

    @property
    def lines(self) -> int:
        return sum(len(self._seen[path] & lines) for path, lines in self._all.items())

    @property
    def total(self) -> int:
        return sum(len(lines) for lines in self._all.values())
