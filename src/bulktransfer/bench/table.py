"""Plain text tables and numbers as a reader wants them.

Knows: text. Must not know: what is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def size_text(size: int) -> str:
    """`4096` as `4 KiB`: in the largest unit that divides it."""
    for unit, factor in _UNITS:
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} B"


def number_text(value: float) -> str:
    """Three digits that matter: `1,234`, `56.7`, `8.90`, `0.123`."""
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 1
        else f"{value:.3f}"
    )


def render(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in columns: numbers to the right, text to the left, two blanks between.

    Floats go through `number_text`, integers get thousands separators, None is `-`. A column is numeric when its
    cells are numbers or None. Raises ValueError for a row of another length than the headings.
    """
    body = [list(row) for row in rows]
    for row in body:
        if len(row) != len(headings):
            raise ValueError(f"a row of {len(row)} cells under {len(headings)} headings")
    numeric = [all(isinstance(row[i], int | float | None) for row in body) for i in range(len(headings))]
    lines = [list(headings), *([_cell(value) for value in row] for row in body)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return number_text(value)
    return f"{value:,d}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
