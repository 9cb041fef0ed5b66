"""The list of attacks: what each is called, what it tries, at which levels, and what has to come of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

SHARED = ("FULL", "HALF")
BY_VALUE = ("NONE",)
SHM = (*SHARED, *BY_VALUE)
ANY = ("any",)  # the same code whatever the level
STREAM = ("fullcopy",)
NET = ("tcp", "tls", *STREAM)  # one protocol

VIOLATION = "ProtocolViolation on that channel"
REFUSED = "refused with a typed error; the channel goes on"
IGNORED = "ignored; the channel goes on"
KEPT_OUT = "kept out; others get in"
KERNEL = "the kernel refuses it"
SPOILT = "contents of that channel may be spoilt, nothing else happens"
UNCHANGED = "what was received does not change"
BOUNDED = "memory, descriptors and time stay bounded"


class Attack(NamedTuple):
    name: str
    group: str
    aim: str
    levels: tuple[str, ...]
    expected: str
    run: Callable[[Any], None]
    root: bool = False  # it takes several users


ATTACKS: dict[str, Attack] = {}


def attack(
    levels: tuple[str, ...], expected: str, *, root: bool = False
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Enter a function into the list: its name is the attack's, its docstring the aim."""

    def enter(function: Callable[[Any], None]) -> Callable[[Any], None]:
        name = function.__name__.replace("_", " ")
        aim = " ".join((function.__doc__ or "").split())
        assert aim, f"{name} does not say what it tries"
        assert name not in ATTACKS, name
        group = function.__module__.rpartition(".")[2]
        ATTACKS[name] = Attack(name, group, aim.rstrip("."), levels, expected, function, root)
        return function

    return enter


def cases() -> list[tuple[Attack, str]]:
    """Every attack at every level."""
    return [(attack, level) for attack in ATTACKS.values() for level in attack.levels]
