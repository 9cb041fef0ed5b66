"""The state of a whole system of domains, as the report's Algorithm 1 defines it, with what design section 4 adds.

Knows: which facts there are, and how they are written down; values are frozen and hashable. Must not know: what may
happen to them (the other files of this room), or anything of the library: not even its enums.

A set of channels is an int, bit c for channel c. Domains, channels, pools and buffers are numbered from 0; buffers
are numbered through all pools. A channel has two sides, SOURCE and SINK.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

Mask: TypeAlias = int

SOURCE, SINK = 0, 1  # sides of a channel; also the index of the queue that leads to that side
NOBODY = -1  # no owner: lost with a domain or a channel; no channel: never travelled
PARTED = -2  # memory is not shared, and twins live on apart since a channel ended (rule 16)
UNKNOWN = None  # contents that nobody promises
GONE = "gone"  # what an END says that nobody sent: its domain died

# Buffer states (I-5.1.1), derived from ownership and copies.
INVALID, READ_ONLY, READ_ONLY_OWNED, READ_WRITE = "INVALID", "READ_ONLY", "READ_ONLY_OWNED", "READ_WRITE"

# A side of a channel. The last three are one state to the library, CLOSED; they differ in the error that calls raise.
UNBOUND, INITIALIZED, CONNECTED, TEARDOWN = "UNBOUND", "INITIALIZED", "CONNECTED", "TEARDOWN"
CLOSED, ENDED, BROKEN = "CLOSED", "ENDED", "BROKEN"
OVER = frozenset((CLOSED, ENDED, BROKEN))

# A pool on a channel, as one side sees it. DETACHED: the channel ended, and this side waits for the lease (rule 16).
ABSENT, PENDING, ACTIVE, REMOVING, DETACHED = "ABSENT", "PENDING", "ACTIVE", "REMOVING", "DETACHED"
THERE = frozenset((ACTIVE, REMOVING))  # arrivals are accepted

# Messages. Those of the first row carry the right to write.
MOVE, PASS, MOVE_REFUSED = "MOVE", "PASS", "MOVE_REFUSED"
COPY, RELEASE, COPY_REFUSED = "COPY", "RELEASE", "COPY_REFUSED"
ASSIGN, ASSIGN_YES, ASSIGN_NO, LEASE = "ASSIGN", "ASSIGN_YES", "ASSIGN_NO", "LEASE"
REMOVE, REMOVE_YES, REMOVE_NO, END = "REMOVE", "REMOVE_YES", "REMOVE_NO", "END"
TOKENS = frozenset((MOVE, PASS, MOVE_REFUSED))
CARRY_LEASES = frozenset((ASSIGN, ASSIGN_YES, LEASE))
TRANSFERS = frozenset((MOVE, PASS, COPY, RELEASE, MOVE_REFUSED, COPY_REFUSED))
MESSAGES = (*sorted(TRANSFERS), ASSIGN, ASSIGN_YES, ASSIGN_NO, LEASE, REMOVE, REMOVE_YES, REMOVE_NO, END)


class Rules(NamedTuple):
    """What the specification takes as given; `mistakes` names rules that are broken on purpose (mistakes.py)."""

    shared: bool = True  # both sides of a channel see the same memory
    slots: int = 2  # entries of a ring: what lies beyond is unpublished, and lost when its domain dies
    mistakes: frozenset[str] = frozenset()


class Channel(NamedTuple):
    """Two endpoints: the domain, role and stage of each side; trust is the creator's."""

    domains: tuple[int, int]
    roles: tuple[str, str]
    stages: tuple[str, str]
    trust: str = "FULL"

    def side_of(self, domain: int, sending: str) -> int:
        """The side that sends messages of this kind, if it is this domain's; else -1."""
        side = SOURCE if sending in (MOVE, COPY) else SINK
        return side if self.domains[side] == domain else -1


class Pool(NamedTuple):
    """Buffers `first` to `first + buffer_count - 1`, allocated by `home`, who may have fixed the trust."""

    home: int
    first: int
    buffer_count: int
    trust: str = "UNINITIALIZED"

    def buffers(self) -> range:
        """The numbers of its buffers."""
        return range(self.first, self.first + self.buffer_count)


class Standing(NamedTuple):
    """One pool on one channel: who assigned it (NOBODY while it is asked), how each side sees it."""

    by: int = NOBODY
    sides: tuple[str, str] = (ABSENT, ABSENT)


class View(NamedTuple):
    """One buffer as one domain sees it.

    out: channels over which a copy went that is not back; held: channels over which a copy came that is here;
    via: the channel over which the buffer last came or left as a whole; free: on the allocator's free list.
    """

    owned: bool = False
    out: Mask = 0
    held: Mask = 0
    via: int = NOBODY
    data: object = UNKNOWN
    free: bool = False

    @property
    def state(self) -> str:
        """The buffer state (I-5.1.1): derived, where the library keeps it and steps it by a table."""
        if self.owned:
            return READ_ONLY_OWNED if self.out else READ_WRITE
        return READ_ONLY if self.held else INVALID


class Message(NamedTuple):
    """Something under way; `item` is a buffer or a pool. `leases` travel with ASSIGN, ASSIGN_YES and LEASE."""

    kind: str
    item: int = NOBODY
    data: object = UNKNOWN
    leases: Mask = 0


class State(NamedTuple):
    """Everything. The last two rows are the report's own variables, kept beside what the domains know."""

    rules: Rules
    alive: tuple[bool, ...]  # by domain
    channels: tuple[Channel, ...] = ()
    pools: tuple[Pool, ...] = ()
    standings: tuple[tuple[Standing, ...], ...] = ()  # [channel][pool]
    views: tuple[tuple[View, ...], ...] = ()  # [domain][buffer]
    queues: tuple[tuple[tuple[Message, ...], tuple[Message, ...]], ...] = ()  # [channel][side that receives]
    leases: tuple[tuple[Mask, ...], ...] = ()  # [domain][pool]: write ends held, see lease()
    owner: tuple[int, ...] = ()  # buffer_ownership, from the moment of the call; NOBODY, PARTED
    copies: tuple[Mask, ...] = ()  # buffer_copies, from the call until it is back

    def pool_of(self, buffer: int) -> int:
        """buffers_to_pools."""
        return next(p for p, pool in enumerate(self.pools) if pool.first <= buffer < pool.first + pool.buffer_count)


class Refused(NamedTuple):
    """The call is refused and nothing changed: `error` is the name of the class that the library raises."""

    error: str
    why: str


def begin(domains: int, rules: Rules | None = None) -> State:
    """A system of so many domains, with nothing in it."""
    return State(rules or Rules(), (True,) * domains, views=((),) * domains, leases=((),) * domains)


def lease(channel: int, side: int) -> Mask:
    """The write end of the pipe that this side made for a pool on this channel, as a set of one (rule 16)."""
    return 1 << 2 * channel + side


def bits(mask: Mask) -> Iterator[int]:
    """The channels of a set."""
    channel = 0
    while mask:
        if mask & 1:
            yield channel
        mask >>= 1
        channel += 1


# ---- changing one fact ----


def with_view(state: State, domain: int, buffer: int, view: View) -> State:
    """The state with another view of one buffer."""
    row = state.views[domain]
    row = (*row[:buffer], view, *row[buffer + 1 :])
    return state._replace(views=(*state.views[:domain], row, *state.views[domain + 1 :]))


def with_stage(state: State, channel: int, side: int, stage: str) -> State:
    """The state with one side of a channel in another stage."""
    it = state.channels[channel]
    stages = (stage, it.stages[1]) if side == SOURCE else (it.stages[0], stage)
    return with_channel(state, channel, it._replace(stages=stages))


def with_channel(state: State, channel: int, it: Channel) -> State:
    """The state with another channel in the place of one."""
    return state._replace(channels=(*state.channels[:channel], it, *state.channels[channel + 1 :]))


def with_standing(state: State, channel: int, pool: int, side: int, value: str, by: int | None = None) -> State:
    """The state where one side sees a pool on a channel otherwise; a standing that both sides lost has no assigner.

    A lease that nobody reads any more says nothing, so its write ends are forgotten wherever they are.
    """
    if value == ABSENT:
        state = without_lease(state, pool, lease(channel, side))
    row = state.standings[channel]
    old = row[pool]
    sides = (value, old.sides[1]) if side == SOURCE else (old.sides[0], value)
    assigner = old.by if by is None else by
    new = Standing(NOBODY if sides == (ABSENT, ABSENT) else assigner, sides)
    row = (*row[:pool], new, *row[pool + 1 :])
    return state._replace(standings=(*state.standings[:channel], row, *state.standings[channel + 1 :]))


def with_owner(state: State, buffer: int, owner: int) -> State:
    """The state with another owner; twins that parted stay parted."""
    if state.owner[buffer] in (owner, PARTED):
        return state
    return state._replace(owner=(*state.owner[:buffer], owner, *state.owner[buffer + 1 :]))


def with_copies(state: State, buffer: int, mask: Mask) -> State:
    """The state with another set of channels that carry a copy."""
    return state._replace(copies=(*state.copies[:buffer], mask, *state.copies[buffer + 1 :]))


def with_leases(state: State, domain: int, pool: int, mask: Mask) -> State:
    """The state with other leases in a domain."""
    row = state.leases[domain]
    row = (*row[:pool], mask, *row[pool + 1 :])
    return state._replace(leases=(*state.leases[:domain], row, *state.leases[domain + 1 :]))


def without_lease(state: State, pool: int, mask: Mask) -> State:
    """The state where these write ends of a pool are nowhere."""
    for domain, row in enumerate(state.leases):
        if row[pool] & mask:
            state = with_leases(state, domain, pool, row[pool] & ~mask)
    for channel, queues in enumerate(state.queues):
        for side, queue in enumerate(queues):
            if any(m.leases & mask and m.kind in CARRY_LEASES and m.item == pool for m in queue):
                kept = (m._replace(leases=m.leases & ~mask) if m.item == pool else m for m in queue)
                state = with_queue(state, channel, side, tuple(m for m in kept if m.kind != LEASE or m.leases))
    return state


def with_queue(state: State, channel: int, side: int, queue: tuple[Message, ...]) -> State:
    """The state with another queue towards one side."""
    pair = state.queues[channel]
    pair = (queue, pair[1]) if side == SOURCE else (pair[0], queue)
    return state._replace(queues=(*state.queues[:channel], pair, *state.queues[channel + 1 :]))


def listens(state: State, channel: int, side: int) -> bool:
    """Whether that side still takes what arrives."""
    it = state.channels[channel]
    return it.stages[side] in (CONNECTED, TEARDOWN) and state.alive[it.domains[side]]


def lose(state: State, messages: tuple[Message, ...]) -> State:
    """Messages that nobody will take: what they carried the ownership of belongs to nobody."""
    for message in messages:
        if message.kind in TOKENS:
            state = with_owner(state, message.item, NOBODY)
    return state


def post(state: State, channel: int, side: int, message: Message) -> State:
    """Send a message towards a side; if nobody listens there any more it is lost at once."""
    if not listens(state, channel, side):
        return lose(state, (message,))
    return with_queue(state, channel, side, (*state.queues[channel][side], message))
