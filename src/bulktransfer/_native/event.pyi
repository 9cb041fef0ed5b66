from collections.abc import Iterable
from typing import Any, Literal, final

from ..states import EventKind
from .buffer import Buffer
from .pool import Pool

def make_event(
    kind: EventKind,
    channel: Any,
    pool: Pool | None = None,
    present: bool = False,
    buffers: Iterable[Buffer] = (),
    error: BaseException | None = None,
    buffer: Buffer | None = None,
) -> Event: ...

class Event:
    @property
    def kind(self) -> EventKind: ...
    @property
    def channel(self) -> Any: ...  # a bulk.Channel: the rooms above are not known here
    @property
    def buffer(self) -> Buffer | Any: ...  # None where the kind brings none, which its reader knows: no cast, no assert
    @property
    def meta(self) -> bytes: ...
    @property
    def pool(self) -> Pool | Any: ...  # likewise
    @property
    def present(self) -> bool: ...
    @property
    def buffers(self) -> tuple[Buffer, ...]: ...
    @property
    def error(self) -> BaseException | None: ...
    def __enter__(self) -> Buffer: ...
    def __exit__(self, *exc: object) -> Literal[False]: ...

# One class with Event at run time: an event that brings a buffer, as receive_buffer returns it.
@final
class Transfer(Event):
    @property
    def buffer(self) -> Buffer: ...
