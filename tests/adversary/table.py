"""The list of attacks as docs/security.md shows it.

python -m tests.adversary.table     writes it into the page
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import adversary.everything
from adversary.registry import ATTACKS

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
_PART = re.compile(r"(<!-- attacks -->\n).*?(<!-- end of attacks -->)", re.DOTALL)


def table() -> str:
    """Every attack: its name, what it tries, at which levels, and what has to come of it."""
    assert adversary.everything
    head = "| attack | what it tries | levels | what comes of it |\n|---|---|---|---|\n"
    return head + "".join(
        f"| {attack.name} | {attack.aim} | {', '.join(attack.levels)} | {attack.expected} |\n"
        for attack in sorted(ATTACKS.values(), key=lambda each: (each.group, each.name))
    )


def rewritten(text: str) -> str:
    """The page with its table made anew."""
    return _PART.sub(lambda found: found[1] + table() + found[2], text)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
