"""The state diagrams of docs/semantics.md, drawn from the tables of states.py.

python tests/drawings.py     writes them into the page
"""

from __future__ import annotations

import re
from pathlib import Path

from bulktransfer.states import BUFFER_TABLE, CHANNEL_TABLE, ChannelAct, When

PAGE = Path(__file__).parents[1] / "docs" / "semantics.md"
_BLOCK = re.compile(r"(<!-- drawn: (\w+) -->\n)```mermaid\n.*?```\n", re.DOTALL)
_WHEN = {
    When.ALWAYS: "",
    When.OUT_MANY: " [more out]",
    When.OUT_LAST: " [the last out]",
    When.OUT_NONE: " [out 0]",
    When.OUT_NONE_IN_MANY: " [out 0, more in]",
    When.OUT_NONE_IN_LAST: " [out 0, the last in]",
}


def buffers() -> str:
    """What one domain may do with one buffer."""
    edges: dict[tuple[str, str], list[str]] = {}
    for row in BUFFER_TABLE:
        edges.setdefault((row.state.name, row.next.name), []).append(row.act.name.lower() + _WHEN[row.when])
    lines = [f"    {a} --> {b}: {'<br/>'.join(labels)}" for (a, b), labels in edges.items()]
    lines[:0] = ["    [*] --> READ_WRITE: pool allocated here", "    [*] --> INVALID: pool first seen"]
    return "stateDiagram-v2\n" + "\n".join(lines) + "\n"


def channels() -> str:
    """The life of a channel."""
    edges: dict[tuple[str, str], list[str]] = {}
    for (state, act), following in CHANNEL_TABLE.items():
        if act is not ChannelAct.CLOSE:
            edges.setdefault((state.name, following.name), []).append(act.name.lower())
    lines = [f"    {a} --> {b}: {'<br/>'.join(labels)}" for (a, b), labels in edges.items()]
    return (
        "stateDiagram-v2\n    [*] --> UNINITIALIZED\n"
        + "\n".join(lines)
        + "\n    note left of CLOSED: close leads here from everywhere\n"
    )


DRAWINGS = {"buffers": buffers, "channels": channels}


def redrawn(text: str) -> str:
    """The page with its diagrams drawn anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}```mermaid\n{DRAWINGS[found[2]]()}```\n", text)


if __name__ == "__main__":
    PAGE.write_text(redrawn(PAGE.read_text()))
