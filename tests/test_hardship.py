"""No memory, none that may be locked, every call interrupted, a peer that stops: typed errors, or nothing at all."""

from __future__ import annotations

import os
import signal

import pytest

import bulktransfer as bulk
import worlds  # noqa: F401 - it starts the helper thread before descriptors are counted
from bulktransfer import BufferState, Direction, EventKind, Trust
from worlds import PATIENCE_S, take

levels = pytest.mark.parametrize("trust", ["FULL", "HALF", "NONE"])


def poor(pipe, address):
    """Takes pools with an address space that is nearly full, then with room again."""
    import resource

    import bulktransfer as bulk

    rx = bulk.bind(address)
    with open("/proc/self/statm") as text:
        pages = int(text.read().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (32 << 20), before[1]))
    try:
        bulk.Allocator(count=64, size=1 << 20)
    except (MemoryError, OSError) as error:
        pipe.send(type(error).__name__)
    else:
        pipe.send("nothing")
    small = bulk.Allocator(count=1, size=4096)  # what fits is granted
    small.close()
    while True:
        try:
            event = rx.receive(0.01)
        except TimeoutError:
            if pipe.poll(0):
                pipe.recv()
                resource.setrlimit(resource.RLIMIT_AS, before)
                pipe.send("there is room")
        except bulk.EndOfChannelError:
            break
        else:
            if event.buffer is not None:
                pipe.send(event.buffer.tobytes())
                rx.pass_(event.buffer)


@levels
def test_a_process_without_memory_refuses_a_pool_and_takes_it_once_there_is_room(spawn, trust):
    tx = bulk.create("shm:", direction=Direction.TX, trust=Trust[trust])
    child = spawn(poor, tx.address)
    tx.wait_bound(PATIENCE_S)
    assert child.receive() in ("MemoryError", "OSError")
    with bulk.Allocator(count=64, size=1 << 20) as alloc:
        with pytest.raises(bulk.LimitError, match="could not be mapped"):
            tx.assign_pool(alloc.pool)
        assert tx.pools == ()
        with bulk.Allocator(count=1, size=4096) as small:  # the channel goes on
            tx.assign_pool(small.pool)
            buffer = small.alloc()
            buffer.put(b"small")
            tx.move(buffer)
            assert child.receive() == b"small"
            assert take(tx, EventKind.BUFFER_RECEIVED).buffer is buffer
        child.send("room")
        assert child.receive() == "there is room"
        tx.assign_pool(alloc.pool)
        buffer = alloc.alloc()
        buffer.put(b"large")
        tx.move(buffer)
        assert child.receive() == b"large"
        assert take(tx, EventKind.BUFFER_RECEIVED).buffer is buffer
        tx.close()
        child.join()


def test_memory_that_the_machine_does_not_have_is_refused_before_it_is_touched():
    with open("/proc/meminfo") as text:
        total = next(int(line.split()[1]) for line in text if line.startswith("MemTotal")) << 10
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="the machine has") as caught:
        bulk.Allocator(count=4, size=total)
    assert caught.value.errno == 12
    assert len(os.listdir("/proc/self/fd")) == before


def echo(pipe, address, back, storm):
    """Sends back what comes; with a storm of signals, and where nothing may be locked."""
    import resource
    import signal

    import bulktransfer as bulk

    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    heard = []
    signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    signal.setitimer(signal.ITIMER_REAL, storm, storm)
    rx, tx = bulk.bind(address, wait="block"), bulk.bind(back, wait="block")
    pipe.send("bound")
    try:
        while True:
            event = rx.receive_buffer()
            assert event.buffer.tobytes() == event.meta * (event.buffer.length // len(event.meta))
            tx.move(event.buffer, event.meta)
    except bulk.EndOfChannelError:
        signal.setitimer(signal.ITIMER_REAL, 0)
        tx.close()
        pipe.send(len(heard))


@levels
def test_a_storm_of_signals_disturbs_neither_set_up_nor_transfers(spawn, trust):
    options = {"trust": Trust[trust], "meta_size": 8, "wait": "block"}
    out = bulk.create("shm:", direction=Direction.TX, **options)
    back = bulk.create("shm:", direction=Direction.RX, **options)
    heard = []
    child = spawn(echo, out.address, back.address, 0.001)
    signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        out.wait_bound(PATIENCE_S)
        back.wait_bound(PATIENCE_S)
        assert child.receive() == "bound"
        with bulk.Allocator(count=4, size=256 << 10) as alloc:
            out.assign_pool(alloc.pool)
            back.set_callbacks(bulk.Callbacks(pool_assigned=lambda event: None))
            back.assign_pool(alloc.pool)
            for number in range(300):
                buffer = alloc.alloc()
                meta = b"%08d" % number
                buffer.put(meta * (1 + number * 97 % 32768))
                out.move(buffer, meta)
                event = back.receive_buffer(PATIENCE_S)
                assert event.buffer is buffer
                assert event.meta == meta
                assert buffer.tobytes() == meta * (1 + number * 97 % 32768)
                alloc.free(buffer)
            out.close()
            assert child.receive() > 0
            assert alloc.available == 4
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert heard
    back.close()
    child.join()


def stopped(pipe, address):
    """Takes two buffers and stops."""
    import os
    import signal

    import bulktransfer as bulk

    rx = bulk.bind(address)
    kept = [rx.receive_buffer().buffer for _ in range(2)]
    pipe.send([buffer.index for buffer in kept])
    os.kill(os.getpid(), signal.SIGSTOP)
    pipe.recv()


@levels
def test_what_a_stopped_peer_has_stays_away_until_it_is_dead(spawn, trust):
    tx = bulk.create("shm:", direction=Direction.TX, trust=Trust[trust])
    child = spawn(stopped, tx.address)
    tx.wait_bound(PATIENCE_S)
    with bulk.Allocator(count=2, size=4096) as alloc:
        tx.assign_pool(alloc.pool)
        moved, copied = alloc.alloc_many(2)
        copied.put(b"lent")
        tx.move(moved)
        tx.copy(copied)
        assert child.receive() == [moved.index, copied.index]
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        with pytest.raises(bulk.BrokenChannelError, match="did not answer"):
            tx.destroy(timeout=0.1)  # the one deadline that the user set
        if trust != "NONE":  # where memory is not shared nobody has what is here
            assert alloc.detached == 2
            assert (moved.state, copied.state) == (BufferState.INVALID, BufferState.READ_ONLY_OWNED)
        child.kill()
        assert alloc.detached == 0
        assert moved.state is copied.state is BufferState.READ_WRITE
        assert copied.tobytes() == b"lent"


def test_a_fork_in_the_middle_of_an_exchange_disturbs_nobody(spawn):
    out = bulk.create("shm:", direction=Direction.TX, trust=Trust.FULL, meta_size=8)
    back = bulk.create("shm:", direction=Direction.RX, trust=Trust.FULL, meta_size=8)
    child = spawn(echo, out.address, back.address, 0.05)
    out.wait_bound(PATIENCE_S)
    back.wait_bound(PATIENCE_S)
    assert child.receive() == "bound"
    with bulk.Allocator(count=4, size=4096) as alloc:
        out.assign_pool(alloc.pool)
        back.assign_pool(alloc.pool)
        for number in range(40):
            buffer = alloc.alloc()
            meta = b"%08d" % number
            buffer.put(meta)
            out.move(buffer, meta)
            pid = os.fork()
            if pid == 0:  # it has none of it, and says so
                try:
                    out.receive(0)
                except bulk.ForkedError:
                    os._exit(0)
                finally:
                    os._exit(1)
            assert back.receive_buffer(PATIENCE_S).buffer is buffer
            assert buffer.tobytes() == meta
            alloc.free(buffer)
            assert os.waitpid(pid, 0)[1] == 0
        out.close()
        child.receive()
        assert alloc.available == 4
    back.close()
    child.join()
