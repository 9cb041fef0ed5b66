"""An argument of the wrong kind is refused by name, before anything is made or changed."""

from __future__ import annotations

import array
import pickle

import pytest

import bulktransfer as bulk
import meeting
from bulktransfer import Direction, Trust
from worlds import unchanged

scheme, world = meeting.scheme, meeting.world

OPTIONS = ["callbacks", "constraints", "limits", "domain"]


@pytest.mark.parametrize("option", [*OPTIONS, "waitset"])
def test_create_and_bind_name_the_argument_and_leave_nothing(scheme, option):
    address = f"{scheme}:wrong"
    with pytest.raises(TypeError, match=f"{option}=5"):
        bulk.create(address, direction=Direction.TX, trust=Trust.FULL, **{option: 5})
    with pytest.raises(TypeError, match=f"{option}=5"):
        bulk.bind(address, timeout=0, **{option: 5})
    bulk.create(address, direction=Direction.TX, trust=Trust.FULL).close()


@pytest.mark.parametrize("option", OPTIONS)
def test_connect_and_pair_name_the_argument(scheme, option):
    with pytest.raises(TypeError, match=f"{option}=5"):
        bulk.connect(f"{scheme}:wrong", timeout=0, **{option: 5})
    with pytest.raises(TypeError, match=f"{option}=5"):
        bulk.pair(direction=Direction.TX, trust=Trust.FULL, **{option: 5})


@pytest.mark.parametrize("option", ["limits", "domain"])
def test_a_listener_names_the_argument(scheme, option):
    spec = bulk.ChannelSpec(direction=Direction.TX, trust=Trust.FULL)
    with pytest.raises(TypeError, match=f"{option}=5"):
        bulk.listen(f"{scheme}:wrong", [spec], **{option: 5})
    bulk.listen(f"{scheme}:wrong", [spec]).close()


@pytest.mark.parametrize("option", ["wait", "callbacks", "constraints"])
def test_a_spec_is_judged_when_it_is_made_and_not_when_a_client_comes(option):
    with pytest.raises(ValueError if option == "wait" else TypeError, match=f"{option}=5"):
        bulk.ChannelSpec(direction=Direction.TX, trust=Trust.FULL, **{option: 5})


@pytest.mark.parametrize("option", ["constraints", "domain"])
def test_an_allocator_names_the_argument(option):
    with pytest.raises(TypeError, match=f"{option}=5"):
        bulk.Allocator(count=1, size=1, **{option: 5})


@pytest.mark.parametrize("wrong", [{"pools": 1.5}, {"slot_count": 2.0}, {"handshake_s": float("nan")}, {"channels": 0}])
def test_limits_are_whole_and_time_is_a_number(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        bulk.Limits(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"alignment": 4096.0}, {"alignment": None}, {"address_min": "0"}, {"address_max": 1.5}]
)
def test_constraints_are_whole_numbers(wrong):
    (name,) = wrong
    with pytest.raises(TypeError, match=name):
        bulk.Constraints(**wrong)


@pytest.mark.parametrize("meta", ["text", None, 5, array.array("q", range(3))])
def test_a_full_copy_with_meta_data_that_is_refused_writes_nothing(world, meta):
    tx, _, alloc, _ = world.line(meta_size=16)
    one, two = alloc.alloc_many(2)
    one.put(b"new")
    two.put(b"precious")
    with unchanged(one, two), pytest.raises((TypeError, bulk.MetaSizeError)):
        tx.full_copy(one, two, meta)
    assert two.tobytes() == b"precious"


def test_pools_and_allocators_say_why_they_do_not_travel(world):
    alloc = world.allocator(*world.domains(1))
    for thing in (alloc, alloc.pool):
        with pytest.raises(TypeError, match="assign_pool"):
            pickle.dumps(thing)
