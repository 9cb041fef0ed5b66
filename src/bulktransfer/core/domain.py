"""A protection domain: its pools and channels, and the place where its threads wait.

Knows: which pools and channels there are, which descriptors to watch for whom, deadlines. Must not know: what
a channel does when it is served, or how a pool is made.

Waiting (design rule 12): a thread that waits on one channel watches, through the domain's poller, every channel
that nobody waits on and every set-up under way, and serves their control requests.
"""

from __future__ import annotations

import contextlib
import contextvars
import heapq
import itertools
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from .._native import kernel
from .._native.channel import ChannelCore
from .._native.statistics import open_statistics
from .._native.waiting import Waiters
from ..errors import ForkedError, LimitError

_current: contextvars.ContextVar[Domain] = contextvars.ContextVar("bulktransfer_domain")
_domains: weakref.WeakSet[Domain] = weakref.WeakSet()
_tickets = itertools.count(1)
_Entry = tuple[int, int, "weakref.WeakMethod[Callable[[], None]]"]  # the time, a number for each, whom to call


class Alarm:
    """Somebody is to be called when a time is past, unless it is cancelled before."""

    def __init__(self, domain: Domain, entry: _Entry) -> None:
        self._domain = domain
        self._entry = entry

    @property
    def when_ns(self) -> int:
        """The time, of the monotonic clock."""
        return self._entry[0]

    def cancel(self) -> None:
        """Nobody is called, and nobody wakes up for it; nothing happens where that is past."""
        self._domain.forget_alarm(self._entry)


class Domain:
    """A protection domain; the process is the default one (I-4.2.1).

    A program may make more, for threads and for tests; `with domain:` makes it current in this context.
    Raises: OSError (no descriptors left).
    """

    def __init__(self) -> None:
        open_statistics()
        self.id = uuid.uuid4().bytes
        self.lock = threading.RLock()
        self.channels: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self.pools: weakref.WeakValueDictionary[uuid.UUID, Any] = weakref.WeakValueDictionary()
        self.exiting = False  # the interpreter ends: threads that wait are left asleep
        self._generation = kernel.fork_generation()
        self._poller = kernel.make_poller()
        self._kick = kernel.Descriptor(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        kernel.poller_add(self._poller.fileno(), self._kick.fileno())
        self.waiters = Waiters(self._poller.fileno())
        self._sources: dict[int, weakref.WeakMethod[Callable[[], None]]] = {}
        self._serving = threading.RLock()
        self._server: int | None = None
        self._aside: set[int] = set()
        self._deadlines: list[_Entry] = []
        self._tokens: list[contextvars.Token[Domain]] = []
        _domains.add(self)

    # ---- the current domain ----

    def __enter__(self) -> Domain:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, *exc: object) -> None:
        _current.reset(self._tokens.pop())

    def __repr__(self) -> str:
        return f"<Domain {self.id.hex()[:8]}: {len(self.channels)} channels, {len(self.pools)} pools>"

    @property
    def forked(self) -> bool:
        """Whether this is a forked child of the process that made the domain."""
        return bool(self._generation != kernel.fork_generation())

    def check_fork(self) -> None:
        """Raise ForkedError in a child of the process that made the domain."""
        if self.forked:
            raise ForkedError("this domain was made before a fork, in the parent; the child has a fresh default domain")

    # ---- channels and pools ----

    @property
    def foreign_bytes(self) -> int:
        """Bytes of all pools that came from peers."""
        return sum(p.buffer_size * p.buffer_count for p in self.pools.values() if not p.home and p.address is not None)

    def enroll(self, channel: Any, limit: int) -> None:
        """Count a channel in. Raises: LimitError, ForkedError."""
        self.check_fork()
        if len(self.channels) >= limit:
            raise LimitError(f"a channel more than the {limit} that the limits of this domain allow")
        self.channels[channel.number] = channel

    def channel(self, number: int) -> Any:
        """The channel of that number, or None."""
        return self.channels.get(number)

    def pool_quiet(self, pool: Any) -> None:
        """A pool may have lost its last use: off every channel, from elsewhere, nothing owned or held, it leaves."""
        if pool.home or pool.channels or not pool.present or pool.in_use():
            return
        if any(getattr(watch, "tethers", False) for watch in pool.lease_watches):
            return  # what was sent over a network has not left yet
        self.drop_pool(pool)

    def drop_pool(self, pool: Any) -> None:
        """Let a pool from elsewhere go: its memory, its leases (rule 16), its place in the list."""
        pool.withdraw()
        for watch in list(pool.lease_watches):
            watch.end()
        for lease in pool.leases:
            lease.close()
        pool.leases = []
        if pool.memory is not None:
            pool.memory.close()
        self.pools.pop(pool.id, None)

    def look_at_leases(self, pool: Any) -> None:
        """Copies of the pool came back: what leases gave free before may have waited for them."""
        for watch in list(pool.lease_watches):
            watch.due()

    # ---- watching ----

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` (a bound method, held weakly) from waiting threads while `fd` is readable."""
        kernel.poller_add(self._poller.fileno(), fd)  # level-triggered: what comes before the next line is seen again
        self._sources[fd] = weakref.WeakMethod(handler)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`; it must not be closed yet."""
        if self._sources.pop(fd, None) is not None and self._generation == kernel.fork_generation():
            kernel.poller_drop(self._poller.fileno(), fd)

    def call_at(self, when_ns: int, handler: Callable[[], None]) -> Alarm:
        """Call `handler` (a bound method, held weakly) from a waiting or serving thread once the time is past."""
        entry = (when_ns, next(_tickets), weakref.WeakMethod(handler))
        heapq.heappush(self._deadlines, entry)
        self._set_deadline()
        self.kick()
        return Alarm(self, entry)

    def call_after(self, timeout: float, handler: Callable[[], None]) -> Alarm:
        """The same in `timeout` seconds; what is more than years is years."""
        return self.call_at(time.monotonic_ns() + int(min(timeout if timeout > 0 else 0.0, 1e9) * 1e9), handler)

    def forget_alarm(self, entry: _Entry) -> None:
        """Take back what call_at promised; see Alarm. Each step holds the GIL, and mends what others do in between."""
        try:
            self._deadlines.remove(entry)
        except ValueError:
            return
        heapq.heapify(self._deadlines)
        self._set_deadline()

    def _set_deadline(self) -> None:
        first = self._deadlines[:1]
        self.waiters.deadline_ns = first[0][0] if first else 0

    def kick(self) -> None:
        """Have the waiting threads look around once more."""
        self.waiters.news += 1
        if self.waiters.waiting and not self.forked:
            os.eventfd_write(self._kick.fileno(), 1)

    def adopt_loose(self, waiter: Any) -> bool:
        """Watch the channels that nobody waits on; True if some stay unwatched since other threads have them."""
        left = False
        for number in list(self.waiters.loose):
            channel = self.channels.get(number)
            if channel is None or not channel.linked:
                self.waiters.loose.discard(number)
            elif channel is not waiter and not channel.set_waits():
                if channel.busy:
                    left = True
                else:
                    self.waiters.loose.discard(number)
                    channel.loose = False
                    channel.registered = True
                    self.watch(channel.socket_fd(), channel.on_readable)
        return left

    def set_loose(self, channel: Any) -> None:
        """Nobody watches `channel` any more (or yet): it is waited on, or new."""
        if channel.registered:
            channel.registered = False
            self.unwatch(channel.socket_fd())
        channel.loose = True
        self.waiters.loose.add(channel.number)
        self.kick()

    def serve(self) -> None:
        """Serve everything that is ready: set-ups, control requests of unattended channels, deadlines."""
        me = threading.get_ident()
        if self._server == me or me in self._aside:
            return  # a callback that was called from here
        if not self._serving.acquire(timeout=0.001):
            return  # another thread does it
        try:
            self._server = me
            self._expire()
            for fd in kernel.poller_ready(self._poller.fileno()):
                if fd == self._kick.fileno():
                    if not self.waiters.drowsy:  # else it is left to wake that thread
                        with contextlib.suppress(BlockingIOError):
                            os.eventfd_read(fd)
                    continue
                reference = self._sources.get(fd)
                handler = reference() if reference is not None else None
                if handler is not None:
                    handler()
                elif reference is not None:
                    self.unwatch(fd)
        finally:
            self._server = None
            self._serving.release()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Let other threads serve while this one runs user code, if it is the one that serves."""
        me = threading.get_ident()
        if self._server != me:
            yield
            return
        self._server = None
        self._aside.add(me)
        self._serving.release()
        try:
            yield
        finally:
            self._serving.acquire()
            self._aside.discard(me)
            self._server = me

    def await_server(self) -> None:
        """Wait until the thread that serves has finished."""
        with self._serving:
            pass

    def _expire(self) -> None:
        now = time.monotonic_ns()
        while self._deadlines and self._deadlines[0][0] <= now:
            handler = heapq.heappop(self._deadlines)[2]()  # at least as early as the one that was looked at
            if handler is not None:
                handler()
        self._set_deadline()

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None) -> bool:
        """Serve the domain until predicate() is true; False if `timeout` seconds were not enough.

        Raises: WouldBlock (inside a callback), KeyboardInterrupt.
        """
        self.check_fork()
        return Sleeper(self).wait_for(predicate, timeout)


class Sleeper(ChannelCore):
    """A thread of a domain that waits, on no channel of its own."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.waiters = domain.waiters

    def _before_block(self) -> int:
        return int(self.domain.adopt_loose(self))

    def _rouse(self) -> None:
        self.domain.kick()

    def _serve_domain(self) -> None:
        self.domain.serve()

    def serve(self) -> None:
        """Serve the domain."""
        self.domain.serve()

    def __repr__(self) -> str:
        return repr(self.domain)


_default_lock = threading.Lock()
_default: list[Domain] = []


def current_domain() -> Domain:
    """The domain of this context: that of the innermost `with domain:`, else the process's own."""
    domain = _current.get(None)
    if domain is not None:
        return domain
    with _default_lock:
        if not _default:
            _default.append(Domain())
        return _default[0]


def chosen_domain(domain: Any) -> Domain:
    """The domain that an argument names, or that of this context. Raises: TypeError."""
    if domain is None:
        return current_domain()
    if not isinstance(domain, Domain):
        raise TypeError(f"domain={domain!r}; it takes bulk.Domain")
    return domain


def all_domains() -> Iterator[Domain]:
    """Every domain of this process that is still in use."""
    return iter(list(_domains))


def _forked() -> None:
    """In a forked child: the parent's domains are not ours; a fresh default is made on demand."""
    global _default_lock
    _default_lock = threading.Lock()
    _default.clear()
    _domains.clear()
    _current.set(None)  # type: ignore[arg-type]


os.register_at_fork(after_in_child=_forked)
