"""A random walk over three domains in a chain and one more way back, held against a plain model after every step.

The model knows the table of design section 3 in its own words: what each domain may do with each buffer, which
copies are out over which channel, and what the shared memory holds.
"""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import bulktransfer as bulk
from bulktransfer import BufferState, EventKind
from worlds import World

BUFFERS = 3
NAMES = "abc"
# each channel: source domain, sink domain; c -> a closes the circle, and two lead from a to b
CHANNELS = ((0, 1), (0, 1), (1, 2), (2, 0))

buffers = st.integers(0, BUFFERS - 1)
channels = st.integers(0, len(CHANNELS) - 1)
texts = st.binary(min_size=0, max_size=40)


class Model:
    """One domain's account of one buffer."""

    def __init__(self):
        self.owned = False
        self.out: set[int] = set()  # channels over which a copy is out
        self.held: set[int] = set()  # channels over which a copy came
        self.length = 0

    @property
    def state(self):
        if self.owned:
            return BufferState.READ_ONLY_OWNED if self.out else BufferState.READ_WRITE
        return BufferState.READ_ONLY if self.held else BufferState.INVALID


class Chain(RuleBasedStateMachine):
    """What the library does, and what the model says."""

    scheme = "local"

    def __init__(self):
        super().__init__()
        self.world = World(self.scheme)
        domains = self.world.domains(3)
        self.alloc = self.world.allocator(domains[0], count=BUFFERS)
        self.ends = []
        self.pools = {0: self.alloc.pool}
        for source, sink in CHANNELS:
            tx, rx = self.world.channel(domains[source], domains[sink], meta_size=48, limits=bulk.Limits(slot_count=2))
            self.pools[sink] = self.world.assign(tx, rx, self.pools[source])
            self.ends.append((tx, rx))
        self.alloc.alloc_many(BUFFERS)
        self.model = [[Model() for _ in range(BUFFERS)] for _ in range(3)]
        for number, mine in enumerate(self.model[0]):
            mine.owned, mine.length = True, 4096
            self.pools[0][number].put(b"%d" % number)
            mine.length = 1
        self.contents = [b"%d" % number for number in range(BUFFERS)]
        self.flying = [([], []) for _ in CHANNELS]  # to the sink, to the source: (kind, buffer, meta, length)

    def teardown(self):
        self.world.__exit__()

    # ---- what users do ----

    def expect(self, error, call, *args):
        """The call raises exactly that, or nothing if None; that a refusal changes nothing the invariant sees."""
        if error is None:
            call(*args)
            return True
        with pytest.raises(bulk.BulkError) as caught:
            call(*args)
        assert type(caught.value) is error, caught.value
        return False

    @rule(channel=channels, buffer=buffers, meta=texts)
    def move(self, channel, buffer, meta):
        source = self.model[CHANNELS[channel][0]][buffer]
        if self.expect(self.not_given(source), self.ends[channel][0].move, self.at(channel, 0, buffer), meta):
            self.flying[channel][0].append((EventKind.MOVE_RECEIVED, buffer, meta, source.length))
            source.owned = False

    @rule(channel=channels, buffer=buffers, meta=texts)
    def pass_(self, channel, buffer, meta):
        sink = self.model[CHANNELS[channel][1]][buffer]
        if self.expect(self.not_given(sink), self.ends[channel][1].pass_, self.at(channel, 1, buffer), meta):
            self.flying[channel][1].append((EventKind.BUFFER_RECEIVED, buffer, meta, 4096))
            sink.owned = False

    @rule(channel=channels, buffer=buffers, meta=texts)
    def copy(self, channel, buffer, meta):
        source = self.model[CHANNELS[channel][0]][buffer]
        error = None
        if source.state is BufferState.INVALID:
            error = bulk.InvalidBufferError
        elif channel in source.out:
            error = bulk.AlreadyCopiedError
        if self.expect(error, self.ends[channel][0].copy, self.at(channel, 0, buffer), meta):
            self.flying[channel][0].append((EventKind.COPY_RECEIVED, buffer, meta, source.length))
            source.out.add(channel)

    @rule(channel=channels, buffer=buffers)
    def release(self, channel, buffer):
        sink = self.model[CHANNELS[channel][1]][buffer]
        error = None
        if channel not in sink.held:
            error = bulk.NotACopyError
        elif sink.out:
            error = bulk.CopiesOutstandingError
        if self.expect(error, self.ends[channel][1].release, self.at(channel, 1, buffer)):
            self.flying[channel][1].append((EventKind.COPY_RELEASED, buffer, b"", None))
            sink.held.discard(channel)

    @rule(domain=st.integers(0, 2), buffer=buffers, text=texts)
    def write(self, domain, buffer, text):
        mine = self.model[domain][buffer]
        error = self.not_given(mine)
        if self.expect(error, self.pools[domain][buffer].put, text):
            self.contents[buffer] = text
            mine.length = len(text)

    @rule(channel=channels, end=st.integers(0, 1), buffer=buffers)
    def turn_the_wrong_way(self, channel, end, buffer):
        chan = self.ends[channel][end]
        calls = (chan.pass_, chan.release) if end == 0 else (chan.move, chan.copy)
        for call in calls:
            self.expect(bulk.DirectionError, call, self.at(channel, end, buffer))

    @rule(channel=channels, buffers=st.lists(buffers, min_size=1, max_size=3))
    def move_batch(self, channel, buffers):
        source = self.model[CHANNELS[channel][0]]
        batch = [self.at(channel, 0, buffer) for buffer in buffers]
        refused = [self.not_given(source[b]) for b in buffers]
        if any(refused):
            with pytest.raises((bulk.BulkError, ValueError)):
                self.ends[channel][0].move_many(batch)
        elif len(set(buffers)) < len(buffers):
            with pytest.raises(ValueError, match="in it twice"):
                self.ends[channel][0].move_many(batch)
        else:
            self.ends[channel][0].move_many(batch, [b"%d" % b for b in buffers])
            for b in buffers:
                self.flying[channel][0].append((EventKind.MOVE_RECEIVED, b, b"%d" % b, source[b].length))
                source[b].owned = False

    # ---- what arrives ----

    @rule(channel=channels, end=st.integers(0, 1))
    def receive(self, channel, end):
        """The next event of this end, or none; a copy that is refused goes back unseen by the user."""
        chan, me = self.ends[channel][1 - end], CHANNELS[channel][1 - end]
        queue = self.flying[channel][end]
        while queue:
            kind, buffer, meta, length = queue.pop(0)
            if self.arrive(channel, me, kind, buffer, length):
                event = chan.receive(10)
                assert (event.kind, event.buffer, event.meta) == (kind, self.pools[me][buffer], meta)
                if kind is EventKind.OPERATION_REFUSED:
                    assert type(event.error) is bulk.CopyRefusedError
                return
        with contextlib.suppress(bulk.WouldBlock):
            raise AssertionError(chan.receive_nowait())

    def arrive(self, channel, me, kind, buffer, length):
        """Apply an arrival to the model; whether the user hears of it."""
        mine = self.model[me][buffer]
        if kind is EventKind.COPY_RECEIVED and (mine.owned or mine.out):
            self.flying[channel][1].append((EventKind.OPERATION_REFUSED, buffer, b"", None))
            return False
        if kind in (EventKind.MOVE_RECEIVED, EventKind.BUFFER_RECEIVED):
            assert mine.state is BufferState.INVALID
            mine.owned, mine.length = True, length
        elif kind is EventKind.COPY_RECEIVED:
            if not mine.held:
                mine.length = length
            mine.held.add(channel)
        else:
            mine.out.discard(channel)
        return True

    @precondition(lambda self: any(any(pair) for pair in self.flying))
    @rule()
    def receive_everything(self):
        for channel in range(len(CHANNELS)):
            for end in (0, 1):
                for _ in range(len(self.flying[channel][end])):
                    self.receive(channel, end)

    # ---- helpers ----

    def at(self, channel, end, buffer):
        return self.pools[CHANNELS[channel][end]][buffer]

    def not_given(self, mine):
        """Why a domain may not give away or write a buffer in that state; None: it may."""
        return {
            BufferState.INVALID: bulk.InvalidBufferError,
            BufferState.READ_ONLY: bulk.NotOwnedError,
            BufferState.READ_ONLY_OWNED: bulk.CopiesOutstandingError,
            BufferState.READ_WRITE: None,
        }[mine.state]

    @invariant()
    def every_buffer_is_as_the_model_says(self):
        for domain in range(3):
            for number, mine in enumerate(self.model[domain]):
                buffer = self.pools[domain][number]
                assert buffer.state is mine.state, f"{buffer} in domain {NAMES[domain]}"
                assert self.pools[domain].counts(number) == (len(mine.out), len(mine.held))
                if mine.state is not BufferState.INVALID:
                    assert buffer.length == mine.length
                    have, text = buffer.tobytes(), self.contents[number]
                    assert have[: len(text)] == text[: len(have)]

    @invariant()
    def at_most_one_domain_owns_a_buffer_and_nobody_reads_what_another_may_write(self):
        for number in range(BUFFERS):
            states = Counter(self.pools[domain][number].state for domain in range(3))
            owners = states[BufferState.READ_WRITE] + states[BufferState.READ_ONLY_OWNED]
            assert owners <= 1
            if states[BufferState.READ_WRITE]:
                assert not states[BufferState.READ_ONLY]


@pytest.mark.watchdog(240)
@pytest.mark.parametrize("scheme", ["local", "shm"])
def test_whatever_users_do_the_domains_agree_with_the_table(scheme):
    machine = type("Chain", (Chain,), {"scheme": scheme})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=100, stateful_step_count=60, suppress_health_check=list(HealthCheck), deadline=None
        ),
    )
