"""Every example runs by itself to its end, without a warning, and says what it should."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from spawning import Child

EXAMPLES = Path(__file__).parents[1] / "examples"

# The lines that must be there, as patterns. Several processes write, so their order says nothing.
SAYS: dict[str, list[str]] = {
    "arrow_pipeline": ["38000 warm readings, mean 30.00"],
    "batch_loader": ["12 batches, the sum of their means is 66"],
    "callbacks": [r"readings: {'left': 30, 'right': 20}"],
    "camera": [*(rf"frame {n} has a mean of {n}0?\.0" for n in range(10)), "the camera is off"],
    "camera_streams": ["quick: the last picture was 49", "slow: the last picture was 49", r"camera: sent \d+"],
    "child_process": [
        *(line for line in ["child: may write: False", "parent: the child reads it"] * 2),
        *(
            f"{who}: sha256 {digest}"
            for who in ("child", "parent")
            for digest in ("2fce97fe6ec88114", "afd878e28a488ffd")
        ),
    ],
    "crash_restart": [
        *(f"worker: doing job {n}" for n in (0, 1, 1, 2)),
        "the worker died; 1 buffer is back",
        "all jobs are done, free buffers: 2",
    ],
    "file_copy": [f"{word} 4194304 bytes, sha256 a2b3fe2aa8e675ec" for word in ("received", "sent    ")],
    "forwarder": [*(f"C got: message {n}, seen by B" for n in range(3)), *["A has it back: True"] * 3],
    "image_parser": [
        "good.ppm: 64 x 64, mean 80.0",
        r"evil.ppm: the parser did not survive it \(exit code 3\)",
        "again.ppm: 64 x 64, mean 80.0",
    ],
    "log_fanout": ["archive: smaller than the log", "alarm: 200 errors", "counter: 20000 lines"],
    "many_clients": [*(f"client: hello, number {n}" for n in range(3)), "server: served 3 clients"],
    "receive_master": [*(f"master: reading {n}" for n in range(6)), "sensor: nobody wants more"],
    "request_response": [
        r"client: how big\? -> HOW BIG\?",
        r"client: how fast\? -> HOW FAST\?",
        r"client: whose is it\? -> WHOSE IS IT\?",
        "server: no more requests",
    ],
    "worker_pool": ["the sum is 204472320 and right"],
}
NEEDS = {
    **dict.fromkeys(("batch_loader", "camera", "camera_streams", "image_parser"), "numpy"),
    "arrow_pipeline": "pyarrow",
}


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SAYS, "test_with_fixture"}


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(spawn: Callable[..., Child], name: str) -> None:
    if name in NEEDS and not importlib.util.find_spec(NEEDS[name]):
        pytest.skip(f"{NEEDS[name]} is not installed")
    child = spawn(
        (EXAMPLES / f"{name}.py").read_text(), verbatim=True, env={"PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": ""}
    )
    lines = child.join().splitlines()
    missing = []
    for pattern in SAYS[name]:
        found = next((line for line in lines if re.fullmatch(pattern, line)), None)
        if found is None:
            missing.append(pattern)
        else:
            lines.remove(found)
    assert (missing, lines) == ([], [])


def test_the_example_of_a_pytest_fixture_passes_under_pytest(spawn: Callable[..., Child]) -> None:
    path = EXAMPLES / "test_with_fixture.py"
    arguments = ["-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", str(EXAMPLES), "-c", os.devnull, str(path)]
    child = spawn(f"import pytest; raise SystemExit(pytest.main({arguments!r}))", verbatim=True)
    assert "2 passed" in child.join()
