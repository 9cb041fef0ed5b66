"""Hands big buffers between threads and processes without copying them, and says who owns each.

The public names; the design and the report's sections are explained in ARCHITECTURE.md.
"""

from . import backends as backends
from . import names as names
from ._native.buffer import Buffer
from ._native.event import Event, Transfer
from ._native.outcome import Outcome
from ._native.pool import Pool
from .core.aggregate import Aggregate, Part
from .core.allocator import Allocator
from .core.callbacks import Callbacks
from .core.channel import Channel
from .core.connect import bind, connect, create
from .core.deferral import Answer
from .core.domain import Domain, current_domain
from .core.gathering import Arrival
from .core.harden import harden
from .core.lifetime import trace_views
from .core.limits import Constraints, Limits
from .core.listener import ChannelSpec, Listener, listen
from .core.network import Network
from .core.pair import Endpoint, pair
from .core.waitset import WaitSet
from .errors import (
    AlreadyCopiedError,
    BindRefusedError,
    BrokenChannelError,
    BulkError,
    ChannelBusyError,
    ChannelStateError,
    ClosedChannelError,
    ConstraintError,
    CopiesOutstandingError,
    CopyRefusedError,
    DirectionError,
    EndOfChannelError,
    EndpointNotFoundError,
    ForkedError,
    InvalidBufferError,
    LimitError,
    MetaSizeError,
    NotACopyError,
    NotAllocatedError,
    NotOwnedError,
    PoolAlreadyAssignedError,
    PoolBusyError,
    PoolExhaustedError,
    PoolNotAssignedError,
    PoolVetoError,
    ProtocolViolation,
    RoleConflictError,
    SecurityWarning,
    TrustMismatchError,
    WouldBlock,
)
from .flow.forward import broadcast, forward, scatter
from .flow.forwarder import Forwarder
from .flow.merge import merge
from .objects.connection import Pipe
from .objects.queue import JoinableQueue, Queue, SimpleQueue
from .states import BufferState, ChannelState, Direction, EventKind, Role, Trust
from .streams import Reader, Writer, reader, writer

__version__ = "0.1.0"

__all__ = [
    # set-up
    "create",
    "bind",
    "listen",
    "connect",
    "pair",
    "Channel",
    "ChannelSpec",
    "Endpoint",
    "Listener",
    # memory
    "Allocator",
    "Pool",
    "Buffer",
    "Aggregate",
    "Part",
    # what arrives, and who is told
    "Event",
    "Transfer",
    "Arrival",
    "Outcome",
    "Callbacks",
    "Answer",
    "WaitSet",
    # between channels
    "Forwarder",
    "forward",
    "broadcast",
    "merge",
    "scatter",
    # objects
    "Pipe",
    "Queue",
    "JoinableQueue",
    "SimpleQueue",
    # streams of arrays
    "writer",
    "reader",
    "Writer",
    "Reader",
    # where, and within what bounds
    "Domain",
    "current_domain",
    "Limits",
    "Network",
    "Constraints",
    "harden",
    "trace_views",
    # states
    "BufferState",
    "ChannelState",
    "Direction",
    "EventKind",
    "Role",
    "Trust",
    # errors
    "BulkError",
    "AlreadyCopiedError",
    "BindRefusedError",
    "BrokenChannelError",
    "ChannelBusyError",
    "ChannelStateError",
    "ClosedChannelError",
    "ConstraintError",
    "CopiesOutstandingError",
    "CopyRefusedError",
    "DirectionError",
    "EndOfChannelError",
    "EndpointNotFoundError",
    "ForkedError",
    "InvalidBufferError",
    "LimitError",
    "MetaSizeError",
    "NotACopyError",
    "NotAllocatedError",
    "NotOwnedError",
    "PoolAlreadyAssignedError",
    "PoolBusyError",
    "PoolExhaustedError",
    "PoolNotAssignedError",
    "PoolVetoError",
    "ProtocolViolation",
    "RoleConflictError",
    "SecurityWarning",
    "TrustMismatchError",
    "WouldBlock",
]
