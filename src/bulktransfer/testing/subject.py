"""What is tested: a scheme of addresses, at one of its trust levels, in one of two role modes.

Knows: how to ask a backend for an address and for its trust levels. Must not know: any test.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import bulktransfer as bulk


@dataclass(frozen=True, slots=True)
class Subject:
    """A backend under test.

    address: what to create, where the backend chooses the free part ("shm:", "tcp://127.0.0.1:0").
    imports: modules that every process imports first. processes: the two ends may be in different processes.
    create, bind: options that the backend needs in every such call (certificates and the like).
    assign: options of every assignment (by which means contents travel).
    only: the trust levels to test; all that the backend offers, if left out.
    """

    address: str
    imports: tuple[str, ...] = ()
    processes: bool = True
    create: Mapping[str, Any] = field(default_factory=dict)
    bind: Mapping[str, Any] = field(default_factory=dict)
    assign: Mapping[str, Any] = field(default_factory=dict)
    only: tuple[bulk.Trust, ...] | None = None

    @property
    def scheme(self) -> str:
        """The part before the colon."""
        return self.address.partition(":")[0]

    @property
    def is_far(self) -> bool:
        """Whether its channels go over a stream, as between machines: what was sent is not there at once, and which
        domain is at the other end is the peer's word. Raises: ValueError.
        """
        self.prepare()
        backend = bulk.backends.backend_for(self.address)
        return bool(getattr(backend, "takes_network", False) or getattr(backend, "is_far", False))

    def prepare(self) -> None:
        """Import what it needs. Raises: ImportError."""
        for module in self.imports:
            importlib.import_module(module)

    @property
    def trusts(self) -> tuple[bulk.Trust, ...]:
        """The levels to test, the most trusting first. Raises: ValueError (no such scheme)."""
        self.prepare()
        offered = bulk.backends.backend_for(self.address).trusts
        wanted = offered if self.only is None else self.only
        return tuple(trust for trust in sorted(wanted, key=lambda trust: -trust.value) if trust in offered)


class Mode(NamedTuple):
    """Who is MASTER: it creates the channel, and allocates and assigns the pool (I-4.2.4)."""

    name: str
    source_is_master: bool


MODES = (Mode("transmit-master", True), Mode("receive-master", False))


def seals(subject: Subject, trust: bulk.Trust) -> bool:
    """Whether contents travel as sealed frames, so that each domain's mapping follows what it may do."""
    return trust is bulk.Trust.NONE and subject.assign.get("means") == "sealed"


def memory_is_shared(trust: bulk.Trust) -> bool:
    """Whether both sides see the same memory; else they hold twins (design rule 7)."""
    return trust in (bulk.Trust.FULL, bulk.Trust.HALF)
