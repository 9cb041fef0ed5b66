"""Whatever a hostile peer tries, the victim stays correct: see tests/adversary, and docs/security.md for the list."""

from __future__ import annotations

import os

import pytest

import adversary.everything
from adversary.arena import strike
from adversary.registry import cases
from adversary.table import PAGE, rewritten

assert adversary.everything


@pytest.mark.parametrize(
    ("attack", "level"), cases(), ids=[f"{attack.name.replace(' ', '_')}-{level}" for attack, level in cases()]
)
def test_the_victim_stays_correct(attack, level):
    if attack.root and os.geteuid() != 0:
        pytest.skip("only root can be several users")
    strike(attack, level)


def test_the_page_on_security_lists_every_attack():
    text = PAGE.read_text()
    assert rewritten(text) == text, "run: python -m tests.adversary.table"
