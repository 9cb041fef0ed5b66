"""How the code reads, as far as a test can tell."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

TOP = Path(__file__).parents[1]
FILE_LINES_MAX = 450
FUNCTION_LINES_MAX = 70

# With [brackets], so that this file does not find itself.
SLEEP = re.compile(r"\btime\.[s]leep\b|\bfrom time import\b.*\b[s]leep\b")
LEFT_OVER = re.compile(r"\b(TOD[O]|FIXM[E]|XX[X])\b")
_BROAD = r"(?:\(?(?:Base)?Exception\)?(?:[ \t]+as[ \t]+\w+)?)?"
SWALLOW = re.compile(rf"^[ \t]*except[ \t]*{_BROAD}[ \t]*:\s*(?:pass|\.\.\.)[ \t]*$", re.MULTILINE)


class Function(NamedTuple):
    name: str
    first: int
    last: int


def python_functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(node.name, node.lineno, node.end_lineno or node.lineno)


_CYTHON_DEF = re.compile(r"^([ \t]*)(?:async[ \t]+)?(?:def|cdef|cpdef)\b(?![ \t]+class\b)[^=\n]*?(\w+)[ \t]*\(")


def cython_functions(text: str) -> Iterator[Function]:
    """By indentation: a function lasts until a line that is not deeper than its own, blank lines aside."""
    lines = text.split("\n")
    for start, line in enumerate(lines):
        found = _CYTHON_DEF.match(line)
        if not found:
            continue
        indent = len(found[1])
        last = start
        in_head = not line.split("#")[0].rstrip().endswith(":")
        for number in range(start + 1, len(lines)):
            inner = lines[number]
            if not inner.strip():
                continue
            deeper = len(inner) - len(inner.lstrip()) > indent
            if not deeper and not (in_head and inner.lstrip().startswith(")")):
                break
            in_head = in_head and not inner.split("#")[0].rstrip().endswith(":")
            last = number
        yield Function(found[2], start + 1, last + 1)


_C_HEAD = re.compile(r"^(?:\w[^;=]*?[\s*])?(\w+)[ \t]*\(")


def c_functions(text: str) -> Iterator[Function]:
    """By layout: a head that begins in the first column, a body that a brace in the first column ends."""
    name, first = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        found = _C_HEAD.match(line)
        if found:
            name, first = found[1], number
        elif line.startswith("}") and first:
            yield Function(name, first, number)
            first = 0
        elif line.endswith(";") and first and not line.startswith((" ", "\t")):
            first = 0


FUNCTIONS: dict[str, Callable[[str], Iterator[Function]]] = {
    ".py": python_functions,
    ".pyx": cython_functions,
    ".h": c_functions,
}


def too_long(path: Path) -> list[str]:
    text = path.read_text()
    found = []
    lines = text.count("\n")
    if lines > FILE_LINES_MAX:
        found.append(f"{path.name}: {lines} lines, {FILE_LINES_MAX} at most")
    for function in FUNCTIONS[path.suffix](text):
        length = function.last - function.first + 1
        if length > FUNCTION_LINES_MAX:
            found.append(f"{path.name}:{function.first}: {function.name}: {length} lines, {FUNCTION_LINES_MAX} at most")
    return found


def written(*rooms: str) -> list[Path]:
    """Every text that a person wrote in these folders."""
    kinds = {".py", ".pyi", ".pyx", ".pxd", ".h", ".c"}
    return sorted(p for room in rooms for p in (TOP / room).rglob("*") if p.suffix in kinds)


def matches(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    found = []
    for path in paths:
        text = path.read_text()
        found += [f"{path.relative_to(TOP)}:{text.count(chr(10), 0, m.start()) + 1}" for m in pattern.finditer(text)]
    return found


def test_files_and_functions_stay_short() -> None:
    paths = [path for path in written("src") if path.suffix in FUNCTIONS]
    assert paths
    assert [line for path in paths for line in too_long(path)] == []


def test_nothing_waits_for_a_fixed_time() -> None:
    assert matches(SLEEP, written("src", "tests")) == []


def test_nothing_is_left_for_later() -> None:
    assert matches(LEFT_OVER, written("src", "tests", "examples")) == []


def test_no_error_is_swallowed_whole() -> None:
    assert matches(SWALLOW, written("src", "tests", "examples")) == []


# -- the checks themselves -----------------------------------------------------------------------------------------

LONG = "    x = 1;\n" * FUNCTION_LINES_MAX
LONG_PYTHON = f"""\
class C:
  def short(self): pass
  async def long(self):
{LONG}
"""
LONG_CYTHON = f"""\
cdef class C:
  cdef int x
  cpdef inline int *long(
    self, int a,
  ) except -1 nogil:
{LONG}
  def short(self): pass
"""
LONG_C = f"""\
struct s {{
  int a;
}};
static int shorter(void);
static inline int
long(int a,
     int b)
{{
{LONG}}}
"""


@pytest.mark.parametrize(("name", "text"), [("a.py", LONG_PYTHON), ("a.pyx", LONG_CYTHON), ("a.h", LONG_C)])
def test_a_long_function_is_found(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    (line,) = too_long(path)
    assert ": long: 7" in line


@pytest.mark.parametrize("suffix", FUNCTIONS)
def test_a_long_file_is_found(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text("\n" * (FILE_LINES_MAX + 1))
    assert too_long(path) == [f"{path.name}: {FILE_LINES_MAX + 1} lines, {FILE_LINES_MAX} at most"]


WORDS = {"S": "sleep", "T": "TOD" + "O", "E": "except"}


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (SLEEP, "import time; time.{S}(1)"),
        (SLEEP, "from time import monotonic, {S}"),
        (LEFT_OVER, "# {T}: later"),
        (SWALLOW, "try:\n    f()\n{E} Exception: pass\n"),
        (SWALLOW, "try:\n    f()\n{E} BaseException as e:\n    pass\n"),
        (SWALLOW, "try:\n    f()\n{E}:\n    ...\n"),
    ],
)
def test_a_forbidden_text_is_found(pattern: re.Pattern[str], text: str) -> None:
    assert pattern.search(text.format(**WORDS))


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (SLEEP, "self.time.{S}er(1)"),
        (LEFT_OVER, "{T}S_PER_DAY"),
        (SWALLOW, "{E} ValueError:\n    pass\n"),
        (SWALLOW, "{E} Exception:\n    undo()\n"),
    ],
)
def test_a_text_that_only_resembles_one_passes(pattern: re.Pattern[str], text: str) -> None:
    assert not pattern.search(text.format(**WORDS))
