import uuid
from collections.abc import Iterator
from typing import Any, final

from ..states import Trust
from .assignment import Assignment
from .buffer import Buffer
from .kernel import Descriptor, Mapping
from .slots import Slots

def make_pool(
    id: uuid.UUID,  # noqa: A002
    domain: Any,
    trust: Trust,
    mapping: Mapping | None,
    count: int,
    size: int,
    shared: bool,
    home: bool,
) -> Pool: ...

@final
class Pool(Slots):
    trust: Trust
    given_trust: Trust
    identity: tuple[int, int] | None
    leases: list[Descriptor]
    ended: list[Assignment]
    lease_watches: set[Any]
    allocator_open: bool
    @property
    def buffer_size(self) -> int: ...
    @property
    def buffer_count(self) -> int: ...
    @property
    def home(self) -> bool: ...
    @property
    def shared(self) -> bool: ...
    @property
    def address(self) -> int | None: ...
    def __getitem__(self, index: int, /) -> Buffer: ...
    def __iter__(self) -> Iterator[Buffer]: ...
    def __len__(self) -> int: ...
    def attach(self, mapping: Mapping) -> None: ...
    def withdraw(self) -> None: ...
    def detached_count(self) -> int: ...
