"""What the documentation shows works: each ```python block of a page runs as a script of its own.

A block that starts with ```python no-run is only read; ```python needs NAME runs where the package NAME is installed.
Examples in docstrings run too.
"""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from typing import NamedTuple

import pytest

TOP = Path(__file__).parents[1]
PACKAGE = TOP / "src" / "bulktransfer"

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    page: str
    line: int
    info: str
    text: str


def blocks_of(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page; `line` is that of a block's first line."""
    return [
        Block(page, text.count("\n", 0, m.start("text")) + 1, m["info"].strip(), m["text"])
        for m in _FENCE.finditer(text)
    ]


def pages() -> list[Path]:
    return [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md"))]


BLOCKS = [block for page in pages() for block in blocks_of(str(page.relative_to(TOP)), page.read_text())]
NEEDS = re.compile(r"python needs (\w+)")
SCRIPTS = [block for block in BLOCKS if block.info == "python" or NEEDS.fullmatch(block.info)]


@pytest.mark.parametrize("block", SCRIPTS, ids=lambda block: f"{block.page}:{block.line}")
def test_a_block_of_a_page_runs(spawn, block: Block) -> None:
    needed = NEEDS.fullmatch(block.info)
    if needed:
        pytest.importorskip(needed[1])
    # Blank lines in front: a traceback then names the line of the page.
    spawn("\n" * (block.line - 1) + block.text, verbatim=True).join()


def test_every_python_block_runs_or_says_that_it_does_not() -> None:
    named = [block for block in BLOCKS if block.info.startswith(("py", "Py"))]
    odd = [b for b in named if b.info not in {"python", "python no-run"} and not NEEDS.fullmatch(b.info)]
    assert [f"{b.page}:{b.line}: {b.info}" for b in odd] == []


def modules_with_examples() -> list[str]:
    found = []
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyx")]):
        if ">>> " in path.read_text():
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def test_the_examples_in_docstrings_hold() -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for name in modules_with_examples():
        tries = runner.tries
        for example in doctest.DocTestFinder().find(importlib.import_module(name), name):
            runner.run(example)
        assert runner.tries > tries, f"no example of {name} was found"
    assert runner.failures == 0


def test_blocks_are_found_with_their_line_and_kind() -> None:
    page = "# A\n\n```python\nimport os\n\nprint(1)\n```\n\n```python no-run\nx\n```\n\n```sh\n`ls`\n```\n"
    assert blocks_of("p", page) == [
        Block("p", 4, "python", "import os\n\nprint(1)\n"),
        Block("p", 10, "python no-run", "x\n"),
        Block("p", 14, "sh", "`ls`\n"),
    ]


def test_a_block_that_fails_is_reported_with_the_line_of_the_page(spawn) -> None:
    (block,) = blocks_of("p", "# A\n\n```python\nx = 1\nassert x == 2\n```\n")
    child = spawn("\n" * (block.line - 1) + block.text, verbatim=True)
    assert "line 5" in child.join(1)
