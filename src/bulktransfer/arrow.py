"""Arrow record batches in buffers: written straight into one, read back without a copy.

Knows: Arrow's IPC stream format, through pyarrow, which is imported on demand. Must not know: channels.

A buffer is an Arrow buffer as it is: `pyarrow.py_buffer(buffer)`. What is made of it, a batch or a column of one,
counts as a live view.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import bulktransfer as bulk


def pyarrow() -> Any:
    """The pyarrow package. Raises: ImportError."""
    return importlib.import_module("pyarrow")


def batches_of(data: Any) -> tuple[Any, list[Any]]:
    """The schema and the record batches of a table, a batch, or several batches. Raises: TypeError, ValueError."""
    pa = pyarrow()
    if isinstance(data, pa.Table):
        return data.schema, data.to_batches()
    batches = [data] if isinstance(data, pa.RecordBatch) else list(data)
    if not batches:
        raise ValueError("no record batch: their schema is not known; pass a table")
    for batch in batches:
        if not isinstance(batch, pa.RecordBatch):
            raise TypeError(f"a stream of record batches does not take {type(batch).__name__}")
        if not batch.schema.equals(batches[0].schema):
            raise ValueError(f"record batches of two schemas: {batches[0].schema} and {batch.schema}")
    return batches[0].schema, batches


def write_stream(sink: Any, schema: Any, batches: Iterable[Any]) -> int:
    """Write the batches as an IPC stream to an Arrow sink; bytes written."""
    with pyarrow().ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return int(sink.tell())


def size_of(data: Any) -> int:
    """The bytes that `write` needs for a table or batches. Raises: TypeError, ValueError, ImportError."""
    schema, batches = batches_of(data)
    return write_stream(pyarrow().MockOutputStream(), schema, batches)


def write(buffer: bulk.Buffer, data: Any) -> int:
    """Write a table, a record batch or several into the buffer, as an IPC stream, and make its size the length.

    Returns the length. Raises: ValueError (it does not fit), TypeError, ImportError, NotOwnedError,
    CopiesOutstandingError, BufferError (a view is live).
    """
    schema, batches = batches_of(data)
    size = write_stream(pyarrow().MockOutputStream(), schema, batches)
    if size > buffer.size:
        raise ValueError(f"writing {size} bytes of Arrow data into {buffer!r}: it holds {buffer.size}")
    buffer.length = size  # refused where the buffer may not be written
    with pyarrow().FixedSizeBufferWriter(pyarrow().py_buffer(buffer)) as sink:
        return write_stream(sink, schema, batches)


def read(buffer: bulk.Buffer, *, validate: bool = False) -> Any:
    """The table that `write` wrote, its columns in the buffer's own memory: live views of it, read-only.

    validate: check every offset and value, which is for data of somebody who is not trusted.
    Raises: pyarrow.ArrowInvalid (no such data), OSError, ImportError, InvalidBufferError, NotAllocatedError.
    """
    pa = pyarrow()
    with pa.ipc.open_stream(pa.py_buffer(buffer)) as reader:
        table = reader.read_all()
    if validate:
        table.validate(full=True)
    return table
