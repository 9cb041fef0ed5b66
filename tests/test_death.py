"""A peer that dies without a word: what it had published arrives, then the channel is broken, and memory comes back."""

from __future__ import annotations

import os
import select
import signal

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import ChannelState, Direction, EventKind, Trust
from meeting import Background, receive_on
from worlds import INVALID, PATIENCE_S, READ_WRITE, take


def sink(pipe, address, keep):
    """Binds, takes a pool and some buffers, does as it is told, and waits to be killed."""
    import bulktransfer as bulk

    rx = bulk.bind(address, domain=bulk.current_domain())
    kept = [rx.receive_buffer().buffer for _ in range(keep)]
    pipe.send("ready")
    while True:
        word = pipe.recv()
        if word == "pass":
            rx.pass_(kept.pop())
        elif word == "serve":
            rx.receive_many(1)
        elif word == "block":
            pipe.send("blocking")
            rx.receive()
        elif word == "close":
            rx.close()
        elif word == "drop":
            kept.pop().drop()
        elif word == "end":
            return
        pipe.send(word)


class Line:
    """This process as the source, and a child as the sink."""

    def __init__(self, spawn, keep=0, buffers=4, **options):
        self.tx = bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL, **options)
        self.alloc = bulk.Allocator(count=buffers, size=4096)
        self.child = spawn(sink, self.tx.address, keep)
        self.tx.wait_bound(PATIENCE_S)
        outcomes = []
        self.tx.assign_pool(self.alloc.pool, done=outcomes.append)
        if not keep:  # it serves while it binds or receives only
            self.child.receive()
            self.child.send("serve")
        while not outcomes:
            try:
                self.tx.receive(0.05)
            except TimeoutError:
                continue
        assert outcomes[0].error is None
        if not keep:
            assert self.child.receive() == "serve"
        self.buffers = [self.alloc.alloc() for _ in range(keep)]
        for buffer in self.buffers:
            self.tx.move(buffer)
        if keep:
            self.child.receive()

    def tell(self, word):
        self.child.send(word)
        assert self.child.receive() == word

    def close(self):
        self.tx.close()
        self.alloc.close()


@pytest.fixture
def line(spawn):
    made = []

    def make(**options):
        made.append(Line(spawn, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("wait", ["auto", "block", "spin"])
def test_a_killed_peer_wakes_a_blocked_receive_with_broken_channel(line, wait):
    one = line(wait=wait)
    waiting = Background(one.tx.receive)
    one.child.kill()
    with pytest.raises(bulk.BrokenChannelError, match="the peer is gone") as caught:
        waiting.result()
    assert caught.value.errno == 104
    assert one.tx.state is ChannelState.CLOSED
    for _ in range(3):
        with pytest.raises(bulk.BrokenChannelError):
            one.tx.receive()
    with pytest.raises(bulk.BrokenChannelError):
        one.tx.move(one.alloc.alloc())


def test_a_death_that_something_else_noticed_before_is_told_without_a_wait(line):
    one = line(wait="block")
    one.child.kill()
    one.tx.hung_up = True  # as whoever reads the socket for another reason leaves it
    with pytest.raises(bulk.BrokenChannelError, match="the peer is gone"):
        one.tx.receive()


def test_what_the_dead_had_published_is_delivered_first(line):
    one = line(keep=3)
    one.tell("pass")
    one.tell("pass")
    one.child.kill()
    back = [take(one.tx, EventKind.BUFFER_RECEIVED).buffer for _ in range(2)]
    assert back == [one.buffers[2], one.buffers[1]]
    with pytest.raises(bulk.BrokenChannelError) as caught:
        one.tx.receive()
    assert caught.value.buffers == (one.buffers[0],)


def test_memory_of_the_dead_comes_back_by_its_lease(line):
    one = line(keep=2)
    one.child.kill()
    assert one.buffers[0].state is INVALID
    with pytest.raises(bulk.BrokenChannelError) as caught:
        one.tx.receive()
    assert set(caught.value.buffers) == set(one.buffers)
    assert one.alloc.detached == 0
    assert all(buffer.state is READ_WRITE for buffer in one.buffers)
    one.alloc.free_many(one.buffers)
    assert one.alloc.available == 4


def test_memory_of_the_dead_stays_away_while_somebody_behind_it_has_it(line, spawn):
    def keeper(pipe, address):
        import bulktransfer as bulk

        rx = bulk.bind(address)
        kept = rx.receive_buffer().buffer
        pipe.send("ready")
        pipe.recv()
        rx.close()
        kept.drop()
        pipe.send("dropped")
        pipe.recv()

    def middle(pipe, address):
        import bulktransfer as bulk

        tx = bulk.create("shm:", direction=bulk.Direction.TX, trust=bulk.Trust.FULL)
        pipe.send(tx.address)
        tx.wait_bound()
        rx = bulk.bind(address)
        event = rx.receive()
        tx.assign_pool(event.pool)
        tx.move(rx.receive_buffer().buffer)
        pipe.recv()

    tx = bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL)
    alloc = bulk.Allocator(count=2, size=4096)
    hop = spawn(middle, tx.address)
    end = spawn(keeper, hop.receive())
    tx.wait_bound(PATIENCE_S)
    tx.assign_pool(alloc.pool)
    buffer = alloc.alloc()
    tx.move(buffer)
    assert end.receive() == "ready"
    hop.kill()
    with pytest.raises(bulk.BrokenChannelError) as caught:
        tx.receive()
    assert caught.value.buffers == (buffer,)
    assert alloc.detached == 1
    assert buffer.state is INVALID
    end.send("drop it")
    assert end.receive() == "dropped"
    assert alloc.detached == 0
    assert buffer.state is READ_WRITE
    end.send("end")
    end.join()
    tx.close()


def test_a_peer_that_closed_but_keeps_a_buffer_keeps_it_detached_until_it_drops_it(line):
    one = line(keep=1)
    one.tell("close")
    event = take(one.tx, EventKind.TEARDOWN_RECEIVED)
    assert event.buffers == (one.buffers[0],)
    assert one.alloc.detached == 1
    one.tell("drop")
    assert one.alloc.detached == 0
    assert one.buffers[0].state is READ_WRITE
    one.child.send("end")
    one.child.join()


def test_a_waiting_alloc_gets_what_a_dead_peer_had(line):
    one = line(keep=4)
    waiting = Background(lambda: one.alloc.alloc(timeout=None))
    one.child.kill()
    with pytest.raises(bulk.BrokenChannelError):
        one.tx.receive()
    assert one.alloc.detached == 0
    one.alloc.free(one.buffers[0])
    assert waiting.result() is one.buffers[0]


def test_what_one_owns_from_the_dead_one_keeps_as_long_as_one_likes(spawn):
    def source(pipe, address):
        import bulktransfer as bulk

        tx = bulk.bind(address)
        alloc = bulk.Allocator(count=2, size=4096)
        tx.assign_pool(alloc.pool)
        first, second = alloc.alloc(), alloc.alloc()
        first.put(b"given")
        second.put(b"lent")
        tx.move(first)
        tx.copy(second)
        pipe.recv()

    rx = bulk.create("shm:", direction=Direction.RX, trust=Trust.FULL)
    child = spawn(source, rx.address)
    rx.wait_bound(PATIENCE_S)
    mine = rx.receive_buffer(PATIENCE_S).buffer
    lent = rx.receive_buffer(PATIENCE_S).buffer
    child.kill()
    assert take(rx, EventKind.POOL_ASSIGNED)
    with pytest.raises(bulk.BrokenChannelError):
        rx.receive()
    assert mine.tobytes() == b"given"
    mine.put(b"mine now")
    assert lent.tobytes() == b"lent"
    rx.close()
    pool = mine.pool
    mine.drop()
    assert pool.present
    lent.drop()
    assert not pool.present
    for buffer in (mine, lent):
        with pytest.raises(bulk.InvalidBufferError):
            buffer.tobytes()


def test_a_dead_peer_is_noticed_though_a_child_of_it_keeps_the_socket_open(spawn):
    def parent(pipe, address):
        import os
        import signal
        import stat

        import bulktransfer as bulk

        bulk.bind(address)
        copies = []
        for name in os.listdir("/proc/self/fd"):
            try:
                if int(name) > 2 and stat.S_ISSOCK(os.stat(int(name)).st_mode):
                    copies.append(os.dup(int(name)))  # the library closes its own in a child, not these
            except OSError:
                continue
        if os.fork() == 0:
            import ctypes

            ctypes.CDLL(None).prctl(1, 0)
            os.setsid()
            pipe.send(os.getpid())
            signal.pause()
        pipe.recv()

    tx = bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL)
    quiet = bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL)
    watched = bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL)
    children = [spawn(parent, channel.address) for channel in (tx, quiet, watched)]
    for channel in (tx, quiet, watched):
        channel.wait_bound(PATIENCE_S)
    orphans = [child.receive() for child in children]
    try:
        number = watched.fileno()
        with pytest.raises(bulk.WouldBlock):
            watched.receive_nowait()
        for child in children:
            child.kill()
        with pytest.raises(bulk.BrokenChannelError):
            tx.receive()
        with pytest.raises(bulk.BrokenChannelError):
            quiet.receive(0)
        assert select.select([number], [], [], PATIENCE_S)[0]
        with pytest.raises(bulk.BrokenChannelError):
            watched.receive_nowait()
    finally:
        for orphan in orphans:
            os.kill(orphan, signal.SIGKILL)


def test_a_peer_that_stops_is_not_dead(line):
    one = line()
    one.child.signal(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        one.tx.receive(0.01)
    one.tx.move(one.alloc.alloc())
    one.child.signal(signal.SIGCONT)
    one.tell("serve")
    assert one.tx.state is ChannelState.CONNECTED
    one.child.send("end")
    one.child.join()


@pytest.mark.parametrize("point", ["before the welcome", "assigning", "removing", "destroying"])
def test_a_peer_killed_in_the_middle_of_a_request_ends_it(spawn, point):
    if point == "before the welcome":
        creator = spawn(
            """
            import bulktransfer as bulk
            c = bulk.create("shm:", direction=bulk.Direction.TX, trust=bulk.Trust.FULL)
            pipe.send(c.address)
            pipe.recv()
            """
        )
        outcomes = []
        channel = bulk.bind(creator.receive(), done=outcomes.append)
        creator.kill()
        with pytest.raises(bulk.ClosedChannelError):
            channel.receive()
        assert isinstance(outcomes[0].error, bulk.BrokenChannelError)
        return
    tx = bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL)
    alloc = bulk.Allocator(count=1, size=4096)
    child = spawn(
        """
        import bulktransfer as bulk
        address, serve = pipe.recv()
        c = bulk.bind(address)
        if serve:
            c.receive()
        pipe.send("bound")
        pipe.recv()
        """
    )
    child.send((tx.address, point == "removing"))
    tx.wait_bound(PATIENCE_S)
    if point == "removing":
        tx.assign_pool(alloc.pool)
    assert child.receive() == "bound"
    call = {"assigning": tx.assign_pool, "removing": tx.remove_pool, "destroying": lambda _: tx.destroy(timeout=None)}
    waiting = Background(lambda: call[point](alloc.pool))
    while not (tx.assigning.requests or tx.farewell):
        assert waiting.running
    child.kill()
    with pytest.raises(bulk.BrokenChannelError):
        waiting.result()
    assert alloc.pool.channels == set()
    assert meeting.descriptors()


def test_kill_9_at_any_moment_of_a_busy_exchange_loses_nothing_that_was_published(spawn):
    def echo(pipe, address, back):
        import bulktransfer as bulk

        rx, tx = bulk.bind(address), bulk.bind(back)
        pipe.send("ready")
        while True:
            tx.move(rx.receive_buffer().buffer)

    for turn in range(8):
        out = bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL)
        back = bulk.create("shm:", direction=Direction.RX, trust=Trust.FULL)
        child = spawn(echo, out.address, back.address)
        out.wait_bound(PATIENCE_S)
        back.wait_bound(PATIENCE_S)
        assert child.receive() == "ready"
        alloc = bulk.Allocator(count=8, size=4096)
        out.assign_pool(alloc.pool)
        back.assign_pool(alloc.pool)
        received = 0
        try:
            for number in range(200 + 37 * turn):
                while alloc.available:
                    out.move(alloc.alloc())
                if number == 100 + 37 * turn:
                    os.kill(child.pid, signal.SIGKILL)
                alloc.free(back.receive_buffer(PATIENCE_S).buffer)
                received += 1
        except bulk.BrokenChannelError:
            pass
        child.kill()
        assert received >= 100
        for channel in (out, back):
            with pytest.raises(bulk.BrokenChannelError):
                receive_on(channel)
        assert alloc.detached == 0
        assert sum(buffer.state is READ_WRITE for buffer in alloc.pool) == 8
        out.close()
        back.close()
        alloc.close()


@pytest.mark.parametrize("wait", ["auto", "block"])
@pytest.mark.parametrize("trust", list(Trust)[1:])
def test_a_sink_without_a_time_limit_hears_of_a_source_that_was_dead_when_it_began_to_wait(spawn, trust, wait):
    def source(pipe, trust):
        import bulktransfer as bulk

        with (
            bulk.create("shm:dies", direction=bulk.Direction.TX, trust=bulk.Trust[trust]) as tx,
            bulk.Allocator(count=2, size=1 << 20, trust=bulk.Trust[trust]) as frames,
        ):
            tx.wait_bound()
            tx.assign_pool(frames.pool)
            tx.move(frames.alloc())
            pipe.send("sent")
            pipe.recv()

    child = spawn(source, trust.name)
    with bulk.bind("shm:dies", wait=wait, timeout=PATIENCE_S) as rx:
        assert rx.receive_buffer().buffer.state is READ_WRITE
        child.receive()
        child.kill()
        with pytest.raises(bulk.BrokenChannelError, match="the peer is gone"):
            rx.receive_buffer()
