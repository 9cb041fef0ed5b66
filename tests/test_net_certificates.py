"""Who gets in between machines: certificates of both sides, a shared secret; who does not changes nothing."""

from __future__ import annotations

import shutil
import ssl

import pytest

import bulktransfer as bulk
from bulktransfer import ChannelState, Direction, Network, Trust
from certificates import Authority
from meeting import refused
from worlds import PATIENCE_S, World, together

SECRET, OTHER_SECRET = b"a secret of 25 bytes, ...", b"another one of some bytes"


@pytest.fixture
def world():
    with World("tls") as world:
        yield world


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    """Ours, and somebody else's of the same name."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl program to make certificates with")
    return {name: Authority(tmp_path_factory.mktemp(name), "authority") for name in ("ours", "theirs")}


@pytest.fixture(scope="module")
def papers(authorities):
    """Certificates by what they are like."""
    ours, theirs = authorities["ours"], authorities["theirs"]
    return {
        "good": ours.papers("good"),
        "expired": ours.papers("expired", days=-1),
        "elsewhere": ours.papers("elsewhere", names="DNS:elsewhere.example"),
        "strange": theirs.papers("strange"),
    }


@pytest.fixture
def net(authorities, papers):
    """`net(paper, *, trusts=..., **more)`: the bulk.Network of a side with that certificate and that authority."""

    def make(paper=None, *, trusts=None, **more):
        if paper is not None:
            more |= papers[paper]._asdict()
        if trusts is not None:
            more["authority"] = authorities[trusts].certificate
        return Network(**more)

    return make


def created(world, network):
    options = {"direction": Direction.TX, "trust": Trust.NONE, "network": network, "domain": bulk.Domain()}
    channel = bulk.create(f"{world.scheme}://127.0.0.1:0", **options)
    world.made.append(channel)
    return channel


def gets_in(world, channel, network):
    """A binder with these papers gets in, and has what the creator offers."""
    bound, _ = together(
        lambda: bulk.bind(channel.address, network=network, domain=bulk.Domain()),
        lambda: channel.wait_bound(PATIENCE_S),
    )
    world.made.append(bound)
    return (channel.state, bound.state) == (ChannelState.CONNECTED,) * 2


def turned_away(world, channel, network):
    """The error of a binder with these papers; the creator is as it was."""
    error = refused(world, channel, network=network)
    assert isinstance(error, bulk.BindRefusedError), error
    assert channel.state is ChannelState.INITIALIZED
    return str(error)


# ---- what a creator shows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shows", "trusts", "name", "why"),
    [
        ("strange", "ours", None, "CERTIFICATE_VERIFY_FAILED"),
        ("good", "theirs", None, "CERTIFICATE_VERIFY_FAILED"),
        ("good", None, None, "CERTIFICATE_VERIFY_FAILED"),  # the system's authorities know nothing of it
        ("expired", "ours", None, "CERTIFICATE_VERIFY_FAILED"),
        ("elsewhere", "ours", None, "CERTIFICATE_VERIFY_FAILED"),
        ("good", "ours", "elsewhere.example", "CERTIFICATE_VERIFY_FAILED"),
    ],
)
def test_a_creator_whose_certificate_does_not_do_is_left_alone(world, net, shows, trusts, name, why):
    channel = created(world, net(shows))
    assert why in turned_away(world, channel, net(trusts=trusts, server_name=name))


@pytest.mark.parametrize(("shows", "name"), [("good", None), ("good", "localhost"), ("elsewhere", "elsewhere.example")])
def test_a_creator_with_a_certificate_for_the_name_that_is_asked_for_is_believed(world, net, shows, name):
    assert gets_in(world, created(world, net(shows)), net(trusts="ours", server_name=name))


def test_a_certificate_is_no_matter_of_the_host_alone(world, net):
    channel = created(world, net("elsewhere"))
    assert "CERTIFICATE_VERIFY_FAILED" in turned_away(world, channel, net(trusts="ours"))
    assert gets_in(world, channel, net(trusts="ours", server_name="elsewhere.example"))


# ---- what a binder shows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shows", [None, "strange", "expired"])
def test_a_creator_that_names_an_authority_lets_in_nobody_else(world, net, shows):
    channel = created(world, net("good", trusts="ours"))
    turned_away(world, channel, net(shows, trusts="ours"))
    assert gets_in(world, channel, net("good", trusts="ours"))  # who was turned away is forgotten


def test_a_creator_that_names_no_authority_asks_nobody_for_a_certificate(world, net):
    assert gets_in(world, created(world, net("good")), net("strange", trusts="ours"))


def test_a_listener_turns_one_away_and_serves_the_next(world, net):
    specs = [bulk.ChannelSpec(direction=way, trust=Trust.NONE) for way in (Direction.TX, Direction.RX)]
    listener = bulk.listen("tls://127.0.0.1:0", specs, network=net("good", trusts="ours"), domain=bulk.Domain())
    world.made.append(listener)
    found = []

    def knock():
        for shows in (None, "strange", "good"):
            try:
                found.append(bulk.connect(listener.address, network=net(shows, trusts="ours"), domain=bulk.Domain()))
            except bulk.BindRefusedError as error:
                found.append(error)

    _, accepted = together(lambda: knock() or True, lambda: listener.accept(PATIENCE_S))
    world.made.extend([*accepted, *found[-1]])
    assert [type(one) for one in found] == [bulk.BindRefusedError, bulk.BindRefusedError, tuple]
    assert [channel.state for channel in found[-1]] == [ChannelState.CONNECTED] * 2


# ---- what both have to speak -----------------------------------------------------------------------------------


def test_older_versions_of_tls_are_refused(world, net, authorities):
    channel = created(world, net("good"))
    old = ssl.create_default_context(cafile=authorities["ours"].certificate)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    turned_away(world, channel, Network(tls=old))


def test_one_that_speaks_no_tls_does_not_get_into_tls(world, net):
    channel = created(world, net("good"))
    plain = channel.address.replace("tls:", "tcp:")
    failure = refused(world, Elsewhere(channel, plain))
    assert isinstance(failure, bulk.BulkError), failure  # the alert is no frame, or the hang-up comes first
    assert gets_in(world, channel, net(trusts="ours"))


class Elsewhere:
    """A creator that is knocked at under another address."""

    def __init__(self, channel, address):
        self.address = address
        self._channel = channel

    def __getattr__(self, name):
        return getattr(self._channel, name)


# ---- a secret --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
@pytest.mark.parametrize(
    ("mine", "its", "why"),
    [
        (SECRET, OTHER_SECRET, "is the secret the same"),
        (SECRET, None, "secret"),
        (None, SECRET, "secret"),
    ],
)
def test_without_the_same_secret_nobody_gets_in(net, scheme, mine, its, why):
    papers = ({"paper": "good"}, {"trusts": "ours"}) if scheme == "tls" else ({}, {})
    with World(scheme) as world:
        channel = created(world, net(**papers[0], secret=mine))
        assert why in turned_away(world, channel, net(**papers[1], secret=its))
        assert gets_in(world, channel, net(**papers[1], secret=mine))


# ---- beyond this machine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "tcp://[::]:0", "tcp://192.0.2.1:7000"])
def test_beyond_loopback_plain_tcp_takes_a_word(address):
    for act in (
        lambda **more: bulk.create(
            address, direction=Direction.TX, trust=Trust.NONE, domain=bulk.Domain(), network=Network(**more)
        ),
        lambda **more: bulk.bind(
            address.replace(":0", ":7000"), timeout=0, domain=bulk.Domain(), network=Network(**more)
        ),
    ):
        with pytest.raises(PermissionError, match=r"beyond this machine.*use tls:, or say bulk\.Network"):
            act()
        with pytest.raises(PermissionError, match="beyond this machine"):
            act(secret=SECRET)  # it keeps strangers out, and nobody from listening


def test_insecure_is_that_word(world):
    options = {"direction": Direction.TX, "trust": Trust.NONE, "domain": bulk.Domain()}
    channel = bulk.create("tcp://0.0.0.0:0?insecure=1", **options)
    world.made.append(channel)
    port = channel.address.rpartition(":")[2]
    channel_here = Elsewhere(channel, f"tcp://127.0.0.1:{port}")  # by loopback: nothing to be said
    assert gets_in(world, channel_here, None)
