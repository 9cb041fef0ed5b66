"""The errors of the library: one tree, rooted at `BulkError`.

Knows: the names of what can go wrong, the number that stands for each on the wire, and how an
error survives pickle. Must not know: channels, pools or buffers.
"""

from __future__ import annotations

import errno
from typing import Any


class BulkError(Exception):
    """Root of every error that this library raises by its own judgement.

    The message names the act, the object, its state and whose fault it is.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        state = dict(self.__dict__)
        if "buffers" in state:
            state["buffers"] = ()  # a buffer belongs to its domain and does not travel
        if isinstance(self, OSError) and self.errno is not None:  # these are no part of its __dict__
            state.update(errno=self.errno, strerror=self.strerror)
        return _rebuild, (type(self), self.args, state)


def _rebuild(cls: type[BulkError], args: tuple[Any, ...], state: dict[str, Any]) -> BulkError:
    error = cls.__new__(cls, *args)
    error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    return error


class ChannelStateError(BulkError):
    """The channel is not in a state that allows the call."""


class DirectionError(BulkError):
    """The operation belongs to the other end: move and copy to the source, pass and release to the sink."""


class RoleConflictError(BulkError):
    """Both sides ask for the same role."""


class TrustMismatchError(BulkError):
    """The trust levels of the two sides, or of pool and channel, differ, or are not offered."""


class BindRefusedError(BulkError):
    """The creator refused the binder; the message carries its reason."""


class EndpointNotFoundError(BulkError, TimeoutError):
    """Nobody created the address before the time was up."""


class ChannelBusyError(BulkError):
    """Another thread receives on this channel, or another binder has it."""


class ConstraintError(BulkError):
    """The pool does not meet the constraints of a channel, a pool or the machine."""


class LimitError(BulkError):
    """One of the `Limits` would be exceeded."""


class MetaSizeError(BulkError):
    """The meta data is longer than the channel's meta_size."""


class PoolNotAssignedError(BulkError):
    """The buffer's pool is not assigned to this channel, or is being removed from it."""


class PoolAlreadyAssignedError(BulkError):
    """The pool is assigned to this channel already, or about to be."""


class PoolVetoError(BulkError):
    """The peer vetoed the assignment or the removal; the message carries its reason."""


class PoolBusyError(BulkError):
    """A buffer of the pool has not come home, so the pool stays on the channel."""


class PoolExhaustedError(BulkError):
    """Every buffer of the allocator is in use."""


class NotOwnedError(BulkError):
    """This domain does not own the buffer, or has copies of it outstanding."""


class NotAllocatedError(NotOwnedError):
    """The buffer is on its allocator's free list."""


class InvalidBufferError(NotOwnedError, BufferError):
    """The buffer is not present in this domain."""


class NotACopyError(BulkError):
    """The buffer is not a copy that came over this channel."""


class CopiesOutstandingError(BulkError):
    """Copies of the buffer that this domain has sent are not back."""


class AlreadyCopiedError(BulkError):
    """A copy of the buffer is outstanding on this channel."""


class CopyRefusedError(BulkError):
    """The sink domain owns the buffer, or holds it in a way that a second copy would spoil."""


class ForkedError(BulkError):
    """The object was made before a fork, in the parent; the child has to make its own."""


class _Ended(BulkError):
    """Common part of the errors that end a channel.

    `reason` says why; `buffers` lists the buffers of this side's assignments that had not come home.
    """

    reason: str
    buffers: tuple[Any, ...]

    def __init__(self, message: str = "", *, reason: str = "", buffers: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.reason = reason or message
        self.buffers = tuple(buffers)


class ClosedChannelError(_Ended):
    """This side closed the channel."""


class EndOfChannelError(_Ended, EOFError):
    """The peer ended the channel in order, and everything that it sent has been received."""


class BrokenChannelError(_Ended, ConnectionError):
    """The peer is gone without a word; what it had published has been received (errno ECONNRESET)."""

    def __init__(self, message: str = "", *, reason: str = "", buffers: tuple[Any, ...] = ()) -> None:
        super().__init__(message, reason=reason, buffers=buffers)
        self.errno = errno.ECONNRESET
        self.strerror = message


class ProtocolViolation(_Ended, ConnectionError):
    """The peer broke a rule, which `reason` names; the channel is closed (errno EPROTO)."""

    def __init__(self, message: str = "", *, reason: str = "", buffers: tuple[Any, ...] = ()) -> None:
        super().__init__(message, reason=reason, buffers=buffers)
        self.errno = errno.EPROTO
        self.strerror = message


class WouldBlock(BulkError, BlockingIOError):
    """Nothing to do now without waiting, or a wait was asked for inside a callback."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.errno = errno.EAGAIN
        self.strerror = message


class SecurityWarning(UserWarning):
    """The isolation that was asked for does not hold as things stand; the text says what to change."""


# What a refusal looks like on the wire: a number, fixed for ever, and the class that the other side raises.
# A number that is not in the table (a newer peer) is raised as BulkError with the peer's text.
WIRE_CODES: dict[int, type[BulkError]] = {
    1: ChannelStateError,
    2: DirectionError,
    3: RoleConflictError,
    4: TrustMismatchError,
    5: BindRefusedError,
    6: ChannelBusyError,
    7: ConstraintError,
    8: LimitError,
    9: MetaSizeError,
    10: PoolNotAssignedError,
    11: PoolAlreadyAssignedError,
    12: PoolVetoError,
    13: PoolBusyError,
    14: NotOwnedError,
    15: InvalidBufferError,
    16: NotACopyError,
    17: CopiesOutstandingError,
    18: AlreadyCopiedError,
    19: CopyRefusedError,
    20: NotAllocatedError,
}
CODE_OF: dict[type[BulkError], int] = {cls: code for code, cls in WIRE_CODES.items()}


def code_of(error: BaseException, default: type[BulkError]) -> int:
    """The wire number of `error`, or that of `default` where the wire has none for it."""
    return CODE_OF.get(type(error), CODE_OF[default])  # type: ignore[arg-type]


def from_code(code: int, text: str) -> BulkError:
    """The error that a peer named by `code`, with its text."""
    return WIRE_CODES.get(code, BulkError)(text)
