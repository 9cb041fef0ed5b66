"""One misdeed of a demonstration, and what came of it.

Knows: what was tried and what was to come. Must not know: how it was tried, or how it is printed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """`right`: what was to come came, and nothing had changed."""

    tried: str
    expected: str
    error: str | None  # the type that came, or the signal that ended the process; None: it went through
    text: str
    right: bool
