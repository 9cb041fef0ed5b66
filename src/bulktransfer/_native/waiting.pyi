from collections.abc import Callable
from typing import Any, TypeVar

from .buffer import Buffer
from .byvalue import ValueCore

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")

def in_callback() -> bool: ...
def call_back(function: Callable[[_Argument], _Result], argument: _Argument) -> _Result: ...
def leave_callbacks() -> None: ...

class Waiters:
    epoll: int
    waiting: int
    loose: set[int]
    deadline_ns: int
    news: int
    drowsy: int
    def __init__(self, epoll: int) -> None: ...

class WaitCore(ValueCore):
    busy: int
    descriptor_mode: bool
    ended: tuple[Any, str, tuple[Buffer, ...]] | None
    waiters: Waiters
    loose: bool
    registered: bool
    kick_fd: int
    bed: int
    spin_mode: int
    yields: bool
    def make_bed(self, bed: int, pidfd: int) -> None: ...
    def wait_for(self, predicate: Callable[[], bool], timeout: float | None) -> bool: ...
    def serve(self) -> None: ...
    def watch(self) -> bool: ...
    def rearm(self, known: int = 0) -> bool: ...
    def set_kicked(self) -> None: ...
