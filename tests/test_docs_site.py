"""The pages say what is so: the messages that are explained are the library's, and every page is in the menu."""

from __future__ import annotations

import re
from pathlib import Path

import bulktransfer as bulk

TOP = Path(__file__).parents[1]
DOCS = TOP / "docs"
HEADING = re.compile(r"^### `(?P<text>.+)`$", re.MULTILINE)


def source() -> str:
    """The library's sources as one text: what stands in braces is cut out, and literals over two lines are joined."""
    text = "".join(
        path.read_text() for suffix in ("py", "pyx", "h") for path in sorted((TOP / "src").rglob(f"*.{suffix}"))
    )
    text = re.sub(r'"\n\s*f?"', "", text)
    return re.sub(r"\{[^{}\n]*\}", "…", text)


def test_each_message_that_the_page_of_errors_explains_is_one_of_the_librarys() -> None:
    library = source()
    unknown = []
    for match in HEADING.finditer((DOCS / "faq.md").read_text()):
        name, _, message = match["text"].partition(": ")
        pieces = [p.strip() for p in re.sub(r"\[Errno \d+\]", "", message).split("…")]
        unknown += [f"{name}: {piece!r}" for piece in pieces if piece and piece not in library]
        if not (
            hasattr(bulk, name) or name in {"BufferError", "OSError", "TimeoutError", "TypeError", "ResourceWarning"}
        ):
            unknown.append(name)
    assert unknown == []


def test_the_page_of_errors_has_every_error_that_users_meet() -> None:
    page = (DOCS / "faq.md").read_text()
    rare = {
        "BulkError",
        "ChannelStateError",
        "ClosedChannelError",
        "DirectionError",
        "MetaSizeError",
        "RoleConflictError",
    }
    names = {name for name in bulk.__all__ if name.endswith(("Error", "Violation"))}
    told_elsewhere = {"PoolAlreadyAssignedError"}
    assert sorted(names - rare - told_elsewhere - set(re.findall(r"\w+(?:Error|Violation)\b", page))) == []


def test_every_page_is_in_the_menu() -> None:
    menu = set(re.findall(r": (\S+\.md)$", (TOP / "mkdocs.yml").read_text(), re.MULTILINE))
    assert menu == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


def test_every_public_name_has_its_place_in_the_reference() -> None:
    named = set(
        re.findall(r"^::: bulktransfer\.(\w+)", "\n".join(p.read_text() for p in DOCS.rglob("*.md")), re.MULTILINE)
    )
    assert sorted(set(bulk.__all__) - named) == []
