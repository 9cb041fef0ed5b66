"""Promises of the registry: each scheme has one backend, found where it is."""

from __future__ import annotations

import importlib.metadata
import types

import pytest

from bulktransfer import backends
from bulktransfer.backends import backend_for, local, register, shm
from bulktransfer.states import Trust
from bulktransfer.wire.control import CODEC


class Fake:
    spins = False
    trusts = (Trust.FULL,)
    codec = CODEC

    def __init__(self, scheme="fake"):
        self.scheme = scheme

    def listen(self, address, *, backlog, allow_users): ...

    def connect(self, address, *, owner): ...

    def appearance(self, address): ...


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.setattr(backends, "_registered", {})


@pytest.fixture
def installed(monkeypatch):
    """Entry points as an installed package would have: a dict from scheme to what its entry point loads."""
    found = {}

    class Point(types.SimpleNamespace):
        def load(self):
            return found[self.name]

    def entry_points(*, group, name=None):
        assert group == "bulktransfer.backends"
        points = [Point(name=one, value=f"plugin:{one}") for one in found if name in (None, one)]
        return types.SimpleNamespace(names={point.name for point in points}, __iter__=None) if name is None else points

    monkeypatch.setattr(backends, "entry_points", entry_points)
    return found


def test_the_built_in_backends_are_found():
    assert backend_for("local:camera") is local.BACKEND
    assert backend_for("shm:/tmp/camera") is shm.BACKEND
    assert backend_for("shm:") is shm.BACKEND


def test_no_backend_is_imported_before_it_is_asked_for(spawn):
    def look(pipe):
        import sys

        from bulktransfer.backends import backend_for

        before = {name for name in ("local", "shm") if f"bulktransfer.backends.{name}" in sys.modules}
        backend_for("local:camera")
        after = {name for name in ("local", "shm") if f"bulktransfer.backends.{name}" in sys.modules}
        pipe.send((before, after))

    child = spawn(look)
    before, after = child.receive()
    child.join()
    assert after - before <= {"local"}
    assert "shm" not in before


def test_an_unknown_scheme_is_named_beside_the_known_ones():
    with pytest.raises(
        ValueError, match=r"address 'smh:camera': the scheme 'smh' is unknown; known are fullcopy:, local:, name:, shm:"
    ):
        backend_for("smh:camera")
    with pytest.raises(ValueError, match=r"address 'camera' has no scheme; known are fullcopy:, local:, name:, shm:"):
        backend_for("camera")
    with pytest.raises(ValueError, match="the scheme '' is unknown"):
        backend_for(":camera")


@pytest.mark.parametrize("address", [None, b"shm:camera", 7])
def test_an_address_is_a_str(address):
    with pytest.raises(TypeError, match="an address is a str, not a"):
        backend_for(address)


def test_a_registered_backend_is_found():
    fake = Fake()
    register(fake)
    register(fake)
    assert backend_for("fake:anything") is fake
    with pytest.raises(ValueError, match="known are fake:, fullcopy:, local:, name:, shm:"):
        backend_for("other:anything")


def test_a_scheme_has_one_backend():
    register(Fake())
    with pytest.raises(ValueError, match="the scheme 'fake' belongs to"):
        register(Fake())
    with pytest.raises(ValueError, match="the scheme 'shm' belongs to a built-in backend"):
        register(Fake("shm"))
    register(shm.BACKEND)


@pytest.mark.parametrize("scheme", ["", "Fake", "a b", "a:", "1a", "a" * 33, None])
def test_a_malformed_scheme_is_refused(scheme):
    with pytest.raises(ValueError, match="is not a scheme"):
        register(Fake(scheme))


@pytest.mark.parametrize("thing", [None, "shm", object(), Fake])
def test_what_is_no_backend_is_refused(thing):
    with pytest.raises(TypeError, match="is not a Backend"):
        register(thing)


def test_an_entry_point_serves_an_unknown_scheme(installed):
    installed["fake"] = fake = Fake()
    assert backend_for("fake:anything") is fake
    installed.clear()
    assert backend_for("fake:anything") is fake  # it was asked for once


def test_an_entry_point_may_be_a_class(installed):
    installed["fake"] = Fake
    assert isinstance(backend_for("fake:anything"), Fake)
    assert backend_for("fake:anything") is backend_for("fake:else")


def test_an_entry_point_does_not_replace_a_built_in(installed):
    installed["shm"] = Fake("shm")
    assert backend_for("shm:camera") is shm.BACKEND


@pytest.mark.parametrize("thing", [None, Fake("other"), lambda: None])
def test_an_entry_point_that_is_no_backend_of_its_scheme_is_refused(installed, thing):
    installed["fake"] = thing
    with pytest.raises(TypeError, match=r"entry point 'plugin:fake' of bulktransfer\.backends is not a Backend of"):
        backend_for("fake:anything")


def test_the_real_entry_points_can_be_asked():
    assert backends.entry_points is importlib.metadata.entry_points
    with pytest.raises(ValueError, match="unknown"):
        backend_for("no-such-scheme:x")
