"""Who may import whom: the list is held by reading every import, also of Cython files, under src/bulktransfer.

A room is a folder or a file right under the package. The list names what each room may import from inside; the
standard library is open to all, and what comes from elsewhere is named as well. What the list lacks is forbidden.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "bulktransfer"

PUBLIC = "the public names"  # `import bulktransfer as bulk`, `from bulktransfer import create`

# From inside the package. A room may always import from itself, except that a backend is a room of its own.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "states": set(),
    "spec": set(),
    "messages": {"states", "errors"},
    "abc": {"errors", "states", "messages"},
    "_native": {"errors", "states", "messages"},
    "core": {"_native", "states", "messages", "abc", "errors"},
    "wire": {"errors", "states", "messages"},
    "backends": {"core", "_native", "wire", "abc", "errors", "states", "messages"},
    "objects": {"core", "backends", PUBLIC},
    "aio": {PUBLIC},
    "arrow": {PUBLIC},
    "names": {PUBLIC},
    "flow": {PUBLIC},
    "block": {PUBLIC},
    "streams": {PUBLIC},
    "observe": {PUBLIC},
    "bench": {PUBLIC},
    "cli": {
        PUBLIC,
        "bench",
        "block",
        "observe",
        "testing",
    },  # a user of what they offer; `bulk check` is tests 0 to 6 of testing
    "testing": {"spec", "abc", "errors", PUBLIC},
    "__main__": {"cli"},
}
FREE = "__init__"  # the public names come from everywhere

# From outside, besides the standard library. The core has no dependencies.
OUTSIDE: dict[str, set[str]] = {
    "_native": {"libc", "posix", "cpython", "cython", "numpy"},  # numpy on demand, see the last test
    "bench": {
        "libc",
        "posix",
        "cpython",
        "cython",
        "numpy",
        "iceoryx2",
        "zmq",
        "pynng",
        "zenoh",
        "faster_fifo",
        "ray",
        "mpi4py",
        "torch",  # what it compares with, where installed
        "matplotlib",  # and what draws
    },
    "arrow": {"pyarrow"},
    "objects": {"libc", "cpython", "torch"},  # torch on demand: how its tensors travel
    "cli": {"numpy", "rich", "shtab"},
    "names": {"zenoh"},  # on demand, where it is asked for
    "flow": {"numpy"},
    "observe": {"opentelemetry"},  # on demand
    "streams": {"numpy"},
    "testing": {"hypothesis", "pytest"},
}
SEALED = {"errors", "states", "spec"}  # the standard library and nothing else, whatever the lists above come to say


class Import(NamedTuple):
    """`module` as an absolute name; `name` is what is taken from it, or empty for the module itself."""

    line: int
    module: str
    name: str


def package_of(path: Path, root: Path) -> list[str]:
    """The package that relative imports of `path` start from."""
    return [root.name, *path.relative_to(root).parts[:-1]]


def absolute(module: str, level: int, package: list[str]) -> str:
    if level == 0:
        return module
    base = package[: len(package) - level + 1]
    return ".".join([*base, module] if module else base)


def imports_of_python(text: str, package: list[str]) -> Iterator[Import]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, "")
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node.module or "", node.level, package)
            for alias in node.names:
                yield Import(node.lineno, module, alias.name)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    name = argument.value
                    level = len(name) - len(name.lstrip("."))
                    yield Import(node.lineno, absolute(name.lstrip("."), level, package), "")


_STRING = re.compile(r'"""[\s\S]*?"""|\'\'\'[\s\S]*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|#[^\n]*')
_FROM = re.compile(r"^[ \t]*from[ \t]+(\.*)([\w.]*)[ \t]+c?import[ \t]+(\([^)]*\)|[^\n;]*)", re.MULTILINE)
_IMPORT = re.compile(r"^[ \t]*c?import[ \t]+([^\n;(]+)", re.MULTILINE)


def imports_of_cython(text: str, package: list[str]) -> Iterator[Import]:
    """The same for Cython, whose grammar `ast` does not know: strings and comments are blanked, lines matched."""
    text = _STRING.sub(lambda found: "\n" * found.group().count("\n"), text.replace("\\\n", "  "))
    for found in _FROM.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        module = absolute(found[2], len(found[1]), package)
        for name in found[3].strip("() \t\n").split(","):
            if name.strip():
                yield Import(line, module, name.split()[0])
    for found in _IMPORT.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        for name in found[1].split(","):
            yield Import(line, name.split()[0], "")


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    read = imports_of_python if path.suffix in {".py", ".pyi"} else imports_of_cython
    return read(path.read_text(), package_of(path, root))


def rooms_of(root: Path) -> set[str]:
    return set(MAY_IMPORT) | {p.stem for p in root.iterdir() if p.is_dir() or p.suffix == ".py"} - {FREE, "__pycache__"}


def room_of(path: Path, root: Path) -> str:
    return path.relative_to(root).parts[0].partition(".")[0]


def backend_of(parts: tuple[str, ...]) -> str:
    """The backend that a module of `backends` belongs to; empty for what they share: the registry and _modules."""
    name = parts[0].partition(".")[0] if parts else ""
    return "" if name.startswith("_") or name == "registry" else name


def targets_of(found: Import, root: Path) -> list[str]:
    """The path inside the package that an import names, as parts; PUBLIC for the package's own names."""
    parts = found.module.split(".")[1:]
    if not parts and found.name in rooms_of(root):
        parts = [found.name]
    elif parts == ["backends"] and found.name:
        beside = root / "backends" / found.name
        parts += [found.name] if beside.is_dir() or beside.with_suffix(".py").exists() else []
    return parts or [PUBLIC]


def complaint(path: Path, found: Import, root: Path) -> str | None:
    """Why `path` may not import that, or None if it may."""
    room = room_of(path, root)
    top = found.module.partition(".")[0]
    if top != root.name:
        open_to_all = top in sys.stdlib_module_names
        named = top in OUTSIDE.get(room, set()) and room not in SEALED
        return None if open_to_all or named else f"{room} may not import {top}"
    if room == FREE:
        return None
    if room not in MAY_IMPORT:
        return f"the list has no room {room}"
    target, *inner = targets_of(found, root)
    if target == room == "backends":
        mine, other = backend_of(path.relative_to(root).parts[1:]), backend_of(tuple(inner))
        allowed = not other or not mine or mine == other
        return None if allowed else f"backend {mine} may not import backend {other}"
    if target == room or target in MAY_IMPORT[room]:
        return None
    return f"{room} may not import {target}"


def sources(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.suffix in {".py", ".pyi", ".pyx", ".pxd", ".pxi"})


def complaints(root: Path) -> list[str]:
    found = []
    for path in sources(root):
        for one in imports_of(path, root):
            why = complaint(path, one, root)
            if why:
                found.append(f"{path.relative_to(root.parent)}:{one.line}: {why}")
    return found


def test_every_room_imports_only_what_the_list_allows() -> None:
    assert sources(PACKAGE), "there is no source to read"
    assert complaints(PACKAGE) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package with the real rooms, all empty."""
    root = tmp_path / "bulktransfer"
    for room in MAY_IMPORT:
        if room in {"errors", "states", "messages", "abc", "arrow", "__main__"}:
            root.mkdir(exist_ok=True)
            (root / f"{room}.py").touch()
        else:
            (root / room).mkdir(parents=True)
            (root / room / "__init__.py").touch()
    (root / "__init__.py").touch()
    for backend in ("local", "shm", "_common"):
        (root / "backends" / f"{backend}.py").touch()
    assert complaints(root) == []
    return root


FORBIDDEN = [
    ("errors.py", "import numpy", "errors may not import numpy"),
    ("errors.py", "from .states import Trust", "errors may not import states"),
    ("spec/model.py", "import bulktransfer", f"spec may not import {PUBLIC}"),
    ("states.py", "if True:\n    from bulktransfer import errors", "states may not import errors"),
    ("messages.py", "from . import core", "messages may not import core"),
    ("wire/codec.py", "from ..core.pool import Pool", "wire may not import core"),
    ("core/domain.py", "from .. import backends", "core may not import backends"),
    ("core/domain.py", "from ..backends import shm", "core may not import backends"),
    ("core/domain.py", "import bulktransfer as bulk", f"core may not import {PUBLIC}"),
    ("core/domain.py", "import importlib\nimportlib.import_module('bulktransfer.wire')", "core may not import wire"),
    ("core/sub/deep.py", "from ...wire import codec", "core may not import wire"),
    ("core/domain.py", "import numpy", "core may not import numpy"),
    ("backends/shm.py", "from .local import Rendezvous", "backend shm may not import backend local"),
    ("backends/shm.py", "from . import local", "backend shm may not import backend local"),
    ("backends/net/tcp.py", "from bulktransfer.backends.shm import x", "backend net may not import backend shm"),
    ("flow/merge.py", "from ..core import pool", "flow may not import core"),
    ("aio/channel.py", "from bulktransfer import errors", "aio may not import errors"),
    ("cli/main.py", "from bulktransfer._native.kernel import Descriptor", "cli may not import _native"),
    ("bench/main.py", "import bulktransfer.core.pool", "bench may not import core"),
    ("bench/_fast.pyx", "from bulktransfer._native.kernel cimport Descriptor", "bench may not import _native"),
    ("_native/pool.pyx", "from bulktransfer.core cimport pool", "_native may not import core"),
    ("_native/pool.pxd", "cimport bulktransfer.core.pool as p, libc.stdint", "_native may not import core"),
    (
        "_native/pool.pyx",
        "def f():\n    from ..wire import (\n        codec, # x\n    )",
        "_native may not import wire",
    ),
    ("_native/pool.pyx", "cimport pyarrow as pa", "_native may not import pyarrow"),
    ("testing/suite.py", "from ..core import pool", "testing may not import core"),
    ("testing/machine.py", "from ..states import Trust", "testing may not import states"),
    ("attic.py", "from . import core", "the list has no room attic"),
]


@pytest.mark.parametrize(("where", "text", "why"), FORBIDDEN)
def test_a_forbidden_import_is_found(tree: Path, where: str, text: str, why: str) -> None:
    path = tree / where
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'"""Text that says: import numpy."""\nimport os\n{text}\n')
    assert [one.partition(": ")[2] for one in complaints(tree)] == [why]


ALLOWED = [
    ("__init__.py", "from .core import pool\nfrom .flow import merge\nfrom .backends import shm"),
    (
        "core/domain.py",
        "from .._native import kernel\nfrom ..abc import Backend\nfrom .pool import Pool\nimport os.path",
    ),
    ("wire/codec.py", "from ..messages import Hello\nfrom .. import errors, states"),
    (
        "backends/shm.py",
        "from ..wire import codec\nfrom . import register\nfrom ._common import lock\nfrom ..core import pool",
    ),
    ("backends/__init__.py", "from . import local, shm"),
    ("backends/net/tcp.py", "from .tls import wrap\nfrom ...wire import codec"),
    ("objects/queue.py", "import bulktransfer as bulk\nfrom ..core import pool"),
    ("flow/merge.py", "import bulktransfer as bulk\nfrom bulktransfer import Channel\nfrom .base import Step"),
    ("cli/main.py", "import bulktransfer as bulk\nfrom ..bench import run\nimport argparse"),
    ("cli/check.py", "from ..testing import guarantees"),
    ("testing/suite/copies.py", "from .. import guarantees\nfrom ...spec import model\nimport pytest"),
    (
        "_native/pool.pyx",
        "from libc.stdint cimport uint32_t\nfrom .kernel cimport (Mapping,\n  Descriptor)\ncimport cython",
    ),
    ("_native/pool.pyx", 's = "\\\nimport numpy"\n# import numpy\nfrom ..states import Trust  # import numpy'),
]


@pytest.mark.parametrize(("where", "text"), ALLOWED)
def test_an_allowed_import_passes(tree: Path, where: str, text: str) -> None:
    path = tree / where
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "\n")
    assert complaints(tree) == []


def test_the_library_needs_nothing_but_python(spawn) -> None:
    def import_it(pipe):
        import sys

        sys.modules.update(dict.fromkeys(["numpy", "hypothesis", "pytest"]))  # None: importing it raises ImportError
        import bulktransfer.cli.main

        pipe.send(bulktransfer.__name__)

    child = spawn(import_it)
    assert child.receive() == "bulktransfer"
    child.join()
