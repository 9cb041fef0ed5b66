"""What `bulk send` and `bulk recv` say to each other: an offer, the contents, and what they come to.

Knows: the words, and which of them is due. Must not know: channels, or files.

Every buffer is moved with one of three words as its meta data: OFFER (JSON: name, size or null), CONTENTS, END (JSON:
size, sha256). The sink passes each back; with the last one, once the file is in its place, it says TAKEN.
"""

from __future__ import annotations

import json
from typing import NamedTuple, TypeGuard

META_SIZE = 32
OFFER, CONTENTS, END = b"bulk file 1 offer", b"bulk file 1 contents", b"bulk file 1 end"
TAKEN = b"bulk file 1 taken"
LETTER_BYTES = 4096  # what an offer or an end is at most
_NAME_CHARACTERS = 255  # a file's name has no more on any file system of Linux


class NotAParcel(Exception):
    """The other side says something else than `bulk send` and `bulk recv` do; the message says what."""


class Offer(NamedTuple):
    """What is about to come."""

    name: str
    size: int | None

    def encode(self) -> bytes:
        """As it travels."""
        return json.dumps(self._asdict()).encode()


class Sum(NamedTuple):
    """What came, all told."""

    size: int
    sha256: str

    def encode(self) -> bytes:
        """As it travels."""
        return json.dumps(self._asdict()).encode()


def offer(letter: bytes) -> Offer:
    """The offer that travelled so. Raises: NotAParcel."""
    said = _object(letter)
    name, size = said.get("name"), said.get("size")
    if not isinstance(name, str) or not 0 < len(name) <= _NAME_CHARACTERS:
        raise NotAParcel("the offer has no name")
    if size is not None and not _is_size(size):
        raise NotAParcel("the offer has a size that is none")
    return Offer(name, size)


def total(letter: bytes) -> Sum:
    """The sum that travelled so. Raises: NotAParcel."""
    said = _object(letter)
    size, sha256 = said.get("size"), said.get("sha256")
    if not _is_size(size) or not isinstance(sha256, str):
        raise NotAParcel("the end has no size or no digest")
    return Sum(size, sha256)


def expect(word: bytes, *due: bytes) -> bytes:
    """`word`, if it is one of those that are due. Raises: NotAParcel."""
    if word not in due:
        raise NotAParcel(f"{word!r} where {' or '.join(repr(one) for one in due)} was due")
    return word


def _object(letter: bytes) -> dict[str, object]:
    if len(letter) > LETTER_BYTES:
        raise NotAParcel(f"a letter of {len(letter)} bytes; {LETTER_BYTES} at most")
    try:
        said = json.loads(letter)
    except (ValueError, RecursionError) as error:
        raise NotAParcel(f"a letter that is no JSON: {error}") from error
    if not isinstance(said, dict):
        raise NotAParcel("a letter that is no JSON object")
    return said


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
