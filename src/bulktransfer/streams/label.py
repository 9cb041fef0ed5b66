"""What travels beside an array: its dtype and shape, its number, and a few bytes of the user's.

Knows: how that is written in the meta data of a transfer. Must not know: channels. Nothing is unpickled: a dtype is a
name or a list of named fields, and is checked before it is used.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import math
import re
import struct
from typing import Any

HEAD = struct.Struct("<QH")  # number, length of the form
FORM_BYTES_MAX = 512
SIDES_MAX = 32
PLAIN = re.compile(r"[<>|=]?[biufcSUV]\d{1,9}|[<>|=]?[mM]8(\[\d{0,9}[a-zA-Zμ]{1,2}\])?")


def numpy() -> Any:
    """The numpy package. Raises: ImportError."""
    return importlib.import_module("numpy")


@dataclasses.dataclass(frozen=True, slots=True)
class Label:
    """The dtype and shape of an array, its number in the stream, and the user's meta data."""

    number: int
    dtype: Any
    shape: tuple[int, ...]
    meta: bytes

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return size_of(self.dtype, self.shape)


def form_of(dtype: Any, shape: tuple[int, ...]) -> bytes:
    """A dtype and a shape as they travel. Raises: ValueError (a dtype that cannot)."""
    description = dtype.str if dtype.names is None and dtype.subdtype is None else dtype.descr
    form = json.dumps([description, shape], separators=(",", ":")).encode()
    try:
        same = parse_form(form) == (dtype, shape)
    except ValueError as error:
        raise ValueError(f"arrays of dtype {dtype} and shape {shape} cannot travel: {error}") from error
    if not same or len(form) > FORM_BYTES_MAX:
        raise ValueError(f"arrays of dtype {dtype} and shape {shape} cannot travel: they cannot be described in full")
    return form


@functools.lru_cache(64)  # a stream has one form, or few
def parse_form(form: bytes) -> tuple[Any, tuple[int, ...]]:
    """The dtype and shape. Raises: ValueError (not of that form)."""
    try:
        found = json.loads(form)
    except RecursionError as error:
        raise ValueError("nested beyond all measure") from error
    if not isinstance(found, list) or len(found) != 2:
        raise ValueError("not a dtype and a shape")
    description, shape = found
    if not isinstance(shape, list) or len(shape) > SIDES_MAX:
        raise ValueError("the shape is not a list of sides")
    for side in shape:
        if type(side) is not int or not 0 <= side < 1 << 48:
            raise ValueError(f"a side of {side!r}")
    return dtype_of(description), tuple(shape)


def dtype_of(description: Any) -> Any:
    """The dtype: a plain one by its name, or a list of [name, dtype] and [name, dtype, shape]. Raises: ValueError."""
    if isinstance(description, str):
        if not PLAIN.fullmatch(description):
            raise ValueError(f"dtype {description!r}")
        try:
            dtype = numpy().dtype(description)
        except TypeError as error:
            raise ValueError(f"dtype {description!r}: {error}") from error
        if dtype.itemsize == 0:
            raise ValueError(f"dtype {description!r}: its items have no bytes")
        return dtype
    if not isinstance(description, list) or not description:
        raise ValueError(f"dtype {description!r}")
    fields = []
    for field in description:
        if not isinstance(field, list) or len(field) not in (2, 3) or not isinstance(field[0], str):
            raise ValueError(f"a field {field!r} of a dtype")
        sides = field[2] if len(field) == 3 else []
        if not isinstance(sides, list) or not all(type(side) is int and 0 < side < 1 << 31 for side in sides):
            raise ValueError(f"a field {field!r} of a dtype")
        fields.append((field[0], dtype_of(field[1]), tuple(sides)))
    try:
        return numpy().dtype(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"dtype {description!r}: {error}") from error


def size_of(dtype: Any, shape: tuple[int, ...]) -> int:
    """The bytes of an array."""
    return int(dtype.itemsize) * math.prod(shape)


def pack(number: int, form: bytes, meta: bytes) -> bytes:
    """The meta data of one transfer."""
    return HEAD.pack(number, len(form)) + form + meta


def unpack(data: bytes, length: int) -> Label:
    """The label of an array in a buffer of `length` valid bytes. Raises: ValueError (it describes no such array)."""
    if len(data) < HEAD.size:
        raise ValueError(f"{len(data)} bytes of meta data")
    number, size = HEAD.unpack_from(data)
    form = data[HEAD.size : HEAD.size + size]
    if len(form) != size:
        raise ValueError(f"a form of {size} bytes in {len(data)} bytes of meta data")
    label = Label(number, *parse_form(form), data[HEAD.size + size :])
    if label.size != length:
        raise ValueError(f"an array of {label.shape} {label.dtype} in {length} bytes")
    return label
