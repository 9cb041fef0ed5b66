"""What is released is said the same everywhere."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import bulktransfer as bulk

TOP = Path(__file__).parents[1]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())


def test_the_version_is_one():
    found = re.search(r"version: '([^']+)'", (TOP / "meson.build").read_text())
    assert found
    assert {PROJECT["project"]["version"], found[1]} == {bulk.__version__}


def test_a_wheel_is_built_for_every_interpreter_that_is_promised():
    promised = {
        entry.rpartition(" ")[2].replace(".", "")
        for entry in PROJECT["project"]["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", entry)
    }
    built = {re.fullmatch(r"cp(\d+)-manylinux_\*", one)[1] for one in PROJECT["tool"]["cibuildwheel"]["build"].split()}
    assert built == promised == {"311", "312", "313", "314"}
    assert PROJECT["tool"]["cibuildwheel"]["linux"]["archs"] == ["x86_64", "aarch64"]


def test_the_release_script_can_be_run():
    script = TOP / ".ci" / "wheel"
    if script.exists():  # an installed tree has none
        assert os.access(script, os.X_OK)
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_every_extra_that_the_library_names_exists():
    extras = set(PROJECT["project"]["optional-dependencies"])
    named = set()
    for path in (TOP / "src").rglob("*.py"):
        named |= set(re.findall(r"bulktransfer\[(\w+)\]", path.read_text()))
    assert {"cli"} <= named <= extras
    assert {"numpy", "arrow", "zenoh", "cli", "otel"} <= extras
