"""What a side of a network channel grants the other: memory for twins, pools, connections, time to shake hands."""

from __future__ import annotations

import contextlib
import shutil
import socket

import pytest

import bulktransfer as bulk
from bulktransfer import ChannelState, Direction, EventKind, Limits, Trust
from certificates import Authority
from meeting import Background, pump
from worlds import PATIENCE_S, World, take, together

PAGE = 4096


@pytest.fixture
def world():
    with World("tcp") as world:
        yield world


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """The networks of a tls: channel: of who creates, and of who binds."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl program to make certificates with")
    authority = Authority(tmp_path_factory.mktemp("papers"))
    return (
        bulk.Network(**authority.papers("creator")._asdict()),
        bulk.Network(authority=authority.certificate),
    )


def asked(tx, rx, pool):
    """How an assignment ended."""
    outcomes = []
    tx.assign_pool(pool, done=outcomes.append)
    pump(lambda: outcomes, tx, rx)
    return outcomes[0].error


@pytest.mark.parametrize(
    ("limits", "count", "size", "why"),
    [
        ({"pool_bytes": 4 * PAGE}, 5, PAGE, f"{4 * PAGE} bytes in all are accepted"),
        ({"buffers": 4}, 5, PAGE, "5 buffers"),
        ({"total_bytes": 4 * PAGE}, 5, PAGE, f"{4 * PAGE} bytes of pools from peers are the limit"),
    ],
)
@pytest.mark.parametrize("creator", ["source", "sink"])
def test_a_pool_beyond_the_limits_gets_no_twin(world, limits, count, size, why, creator):
    mine = {"limits": Limits(**limits)}
    options = mine if creator == "sink" else {"binder": mine}
    tx, rx = world.channel(*world.domains(2), creator=creator, **options)
    alloc = world.allocator(tx.domain, count=count, size=size)
    fits = world.allocator(tx.domain, count=4, size=PAGE)
    error = asked(tx, rx, alloc.pool)
    assert isinstance(error, bulk.LimitError)
    assert why in str(error)
    assert (tx.pools, rx.pools, dict(rx.domain.pools)) == ((), (), {})
    assert asked(tx, rx, fits.pool) is None  # the channel goes on, and what fits is taken


def test_twins_of_several_channels_count_together(world):
    a, b = world.domains(2)
    limits = {"limits": Limits(total_bytes=6 * PAGE)}
    first, second = (world.channel(a, b, binder=limits) for _ in range(2))
    pools = [world.allocator(a, count=4, size=PAGE).pool for _ in range(2)]
    assert asked(*first, pools[0]) is None
    assert isinstance(asked(*second, pools[1]), bulk.LimitError)
    with pytest.raises(bulk.BulkError):
        first[0].move(pools[1][0])
    removing = Background(lambda: first[0].remove_pool(pools[0]))
    assert take(first[1], EventKind.POOL_REMOVED).kind is EventKind.POOL_REMOVED
    removing.result()
    assert asked(*second, pools[1]) is None  # what was given back counts no more


def test_pools_of_a_channel_are_counted(world):
    tx, rx = world.channel(*world.domains(2), binder={"limits": Limits(pools=1)})
    first, second = (world.allocator(tx.domain) for _ in range(2))
    assert asked(tx, rx, first.pool) is None
    assert isinstance(asked(tx, rx, second.pool), bulk.LimitError)
    assert len(rx.pools) == 1


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01", b"bulktransfer"])
def test_whoever_begins_and_does_not_go_on_has_its_time_and_no_more(paper, scheme, said):
    mine, its = paper if scheme == "tls" else (None, None)
    with World(scheme) as world, contextlib.ExitStack() as stack:
        channel = bulk.create(
            f"{scheme}://127.0.0.1:0",
            direction=Direction.RX,
            trust=Trust.NONE,
            network=mine,
            limits=Limits(half_open=2, handshake_s=0.05),
            domain=bulk.Domain(),
        )
        world.made.append(channel)
        place = "127.0.0.1", int(channel.address.rpartition(":")[2])
        silent = [stack.enter_context(socket.create_connection(place, timeout=PATIENCE_S)) for _ in range(3)]
        for sock in silent:
            sock.sendall(said)
        bound, _ = together(
            lambda: bulk.bind(channel.address, network=its, timeout=PATIENCE_S, domain=bulk.Domain()),
            lambda: channel.wait_bound(PATIENCE_S),
        )
        world.made.append(bound)
        assert (channel.state, bound.state) == (ChannelState.CONNECTED,) * 2
        for sock in silent[:2]:  # hung up on, in order or not
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(4096):
                    continue


def test_a_domain_has_so_many_channels_and_the_next_client_is_told(world):
    specs = [bulk.ChannelSpec(direction=Direction.TX, trust=Trust.NONE)]
    listener = bulk.listen("tcp://127.0.0.1:0", specs, limits=Limits(channels=1), domain=bulk.Domain())
    world.made.append(listener)
    first, accepted = together(
        lambda: bulk.connect(listener.address, domain=bulk.Domain()), lambda: listener.accept(PATIENCE_S)
    )
    world.made += [*first, *accepted]
    second = Background(lambda: bulk.connect(listener.address, domain=bulk.Domain()))
    while second.running:
        listener.domain.serve()
    with pytest.raises(bulk.BulkError, match="limit"):
        second.result()
    assert [channel.state for channel in (*first, *accepted)] == [ChannelState.CONNECTED] * 2
