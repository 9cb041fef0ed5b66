"""What the members of a crew do in tests: functions that a fresh process can import."""

from __future__ import annotations

import os
from typing import Any


def fail(pipe: Any) -> None:
    raise KeyError("lost")


def die(pipe: Any) -> None:
    os._exit(7)


def hang(pipe: Any) -> None:
    pipe.recv()
