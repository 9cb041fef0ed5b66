"""Children of tests of pipes and queues, which end with the test."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import object_tasks


@contextlib.contextmanager
def child(method: str, target: Callable[..., None], *args: Any) -> Iterator[Any]:
    """A process that is killed at the latest when the block ends."""
    process = multiprocessing.get_context(method).Process(target=object_tasks.run, args=(target, args), daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
        process.close()
