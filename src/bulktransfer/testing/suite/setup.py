"""Channels come into being: roles, trust, direction, and who is refused (design rules 1 to 3)."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest

import bulktransfer as bulk
from bulktransfer import Direction, Role, Trust

from ..party import PATIENCE_S
from ..subject import MODES
from .world import Line, Suite, World, together


class SetUp(Suite):
    """What the creator fixes, and what the binder may ask for."""

    def refused(self, world: World, creator: bulk.Channel, **options: Any) -> BaseException:
        """The error that a binder gets."""
        failure: list[BaseException] = []

        def attempt() -> None:
            try:
                world.bind(creator.address, bulk.Domain(), **options)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked at
                failure.append(error)

        thread = threading.Thread(target=attempt)
        thread.start()
        while thread.is_alive():
            with contextlib.suppress(TimeoutError, bulk.WouldBlock):
                creator.wait_bound(0.01) if creator.state.name == "INITIALIZED" else creator.receive(0.01)
        assert failure, "the binder was accepted"
        return failure[0]

    def test_both_ends_agree_on_everything(self, line: Line) -> None:
        assert (line.tx.direction, line.rx.direction) == (Direction.TX, Direction.RX)
        assert line.tx.trust is line.rx.trust is line.case.trust
        assert line.tx.meta_size == line.rx.meta_size
        assert {line.tx.role, line.rx.role} == {Role.MASTER, Role.SLAVE}
        assert (line.tx.role is Role.MASTER) == line.case.mode.source_is_master
        assert line.tx.state is line.rx.state is bulk.ChannelState.CONNECTED

    @pytest.mark.parametrize("creator", list(Role))
    @pytest.mark.parametrize("binder", list(Role))
    def test_roles_are_complements_and_never_generic(self, world: World, creator: Role, binder: Role) -> None:
        direction = Direction.TX if world.case.mode.source_is_master else Direction.RX
        first = world.create(bulk.Domain(), direction, role=creator)
        if creator is binder is not Role.GENERIC:
            assert isinstance(self.refused(world, first, role=binder), bulk.RoleConflictError)
            assert first.state is bulk.ChannelState.INITIALIZED
            binder = Role.GENERIC
        second, _ = together(
            lambda: world.bind(first.address, bulk.Domain(), role=binder), lambda: first.wait_bound(PATIENCE_S)
        )
        assert {first.role, second.role} == {Role.MASTER, Role.SLAVE}
        if creator is not Role.GENERIC:
            assert first.role is creator
        elif binder is not Role.GENERIC:
            assert second.role is binder
        else:
            assert first.role is Role.MASTER

    def test_a_binder_gets_the_trust_that_it_names_or_nothing(self, world: World) -> None:
        first = world.create(bulk.Domain(), Direction.TX)
        wrong = next(trust for trust in (Trust.FULL, Trust.NONE) if trust is not world.case.trust)
        offered = wrong in bulk.backends.backend_for(world.case.subject.address).trusts
        error = self.refused(world, first, trust=wrong)
        assert isinstance(error, bulk.TrustMismatchError), (error, offered)
        second, _ = together(
            lambda: world.bind(first.address, bulk.Domain(), trust=world.case.trust),
            lambda: first.wait_bound(PATIENCE_S),
        )
        assert second.trust is world.case.trust

    def test_a_second_binder_is_refused_and_touches_nothing(self, line: Line) -> None:
        creator = line.tx if line.case.mode.source_is_master else line.rx
        with World(line.case) as other:
            error = self.refused(other, creator, timeout=2.0)
        assert isinstance(error, bulk.BindRefusedError | bulk.EndpointNotFoundError)
        line.near[0].put(b"unharmed")
        assert line.send("move", 0).buffer.tobytes() == b"unharmed"

    def test_a_veto_reaches_the_binder_and_the_creator_goes_on_waiting(self, world: World) -> None:
        answers = [RuntimeError("not you"), None]

        def ask(event: bulk.Event) -> None:
            answer = answers.pop(0)
            if answer is not None:
                raise answer

        callbacks = bulk.Callbacks(bind_received=ask)
        first = world.create(bulk.Domain(), Direction.RX, callbacks=callbacks)
        error = self.refused(world, first)
        assert isinstance(error, bulk.BindRefusedError)
        assert "not you" in str(error)
        assert first.state is bulk.ChannelState.INITIALIZED
        second, _ = together(lambda: world.bind(first.address, bulk.Domain()), lambda: first.wait_bound(PATIENCE_S))
        assert second.state is bulk.ChannelState.CONNECTED

    def test_trust_is_said_and_never_none(self, world: World) -> None:
        nothing: Any = None
        with pytest.raises(TypeError, match=r"Trust\.NONE"):
            world.create(bulk.Domain(), Direction.TX, trust=nothing)
        with pytest.raises(ValueError, match="trust"):
            world.create(bulk.Domain(), Direction.TX, trust=Trust.UNINITIALIZED)

    def test_binding_where_nobody_created_is_said_so(self, world: World) -> None:
        first = world.create(bulk.Domain(), Direction.TX)
        address = first.address
        first.close()
        with pytest.raises(bulk.EndpointNotFoundError):
            world.bind(address, bulk.Domain(), timeout=0.05)

    def test_two_channels_between_two_domains_are_apart(self, line: Line) -> None:
        with World(line.case._replace(mode=MODES[0])) as other:
            tx, rx = other.channel(line.tx.domain, line.rx.domain)
            assert tx.pools == rx.pools == ()
            with pytest.raises(bulk.PoolNotAssignedError):
                tx.move(line.near[0])
            tx.close()
        line.send("move", 0)
