from typing import Any

from .buffer import Buffer
from .pool import Pool

class Outcome:
    def __init__(
        self,
        operation: str,
        channel: Any,
        error: BaseException | None = None,
        buffer: Buffer | tuple[Buffer, ...] | None = None,
        pool: Pool | None = None,
    ) -> None: ...
    @property
    def operation(self) -> str: ...
    @property
    def channel(self) -> Any: ...  # a bulk.Channel: the rooms above are not known here
    @property
    def error(self) -> BaseException | None: ...
    @property
    def buffer(self) -> Any: ...  # a Buffer, of a batch a tuple of them, of a control request None
    @property
    def buffers(self) -> tuple[Buffer, ...]: ...  # those that the peer refused or did not take
    @property
    def pool(self) -> Pool | Any: ...  # None of a transfer
