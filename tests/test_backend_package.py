"""A backend of another package: the page that says how to write one is followed, and the suite is run on the result."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "write-a-backend.md"

# A build backend in the package itself: the test needs no network, and no other build tool than pip.
BUILD = """
import tomllib, zipfile

def build_wheel(directory, config_settings=None, metadata_directory=None):
    project = tomllib.load(open("pyproject.toml", "rb"))["project"]
    name = f"{project['name'].replace('-', '_')}-{project['version']}"
    about = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}", ""]
    kind = ["Wheel-Version: 1.0", "Generator: test", "Root-Is-Purelib: true", "Tag: py3-none-any", ""]
    points = "".join(
        f"[{group}]\\n" + "".join(f"{key} = {value}\\n" for key, value in entries.items())
        for group, entries in project["entry-points"].items()
    )
    with zipfile.ZipFile(f"{directory}/{name}-py3-none-any.whl", "w") as wheel:
        wheel.write("abstract_backend.py")
        info = f"{name}.dist-info"
        wheel.writestr(f"{info}/METADATA", "\\n".join(about))
        wheel.writestr(f"{info}/WHEEL", "\\n".join(kind))
        wheel.writestr(f"{info}/entry_points.txt", points)
        wheel.writestr(f"{info}/RECORD", "")
    return f"{name}-py3-none-any.whl"
"""
BUILD_SYSTEM = '[build-system]\nrequires = []\nbuild-backend = "_build"\nbackend-path = ["."]\n\n'


def block(kind: str, begins: str) -> str:
    """The one block of the page that begins so."""
    (found,) = re.findall(rf"```{kind}\n({re.escape(begins)}.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package of the page is installed."""
    package = tmp_path_factory.mktemp("package")
    (package / "abstract_backend.py").write_text(block("python no-run", "# abstract_backend.py"))
    (package / "pyproject.toml").write_text(BUILD_SYSTEM + block("toml", "[project]"))
    (package / "_build.py").write_text(BUILD)
    target = tmp_path_factory.mktemp("site")
    options = ["--no-build-isolation", "--no-index", "--no-deps", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, package], check=True)
    return target


def python(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.watchdog(120)
def test_an_installed_package_brings_its_scheme(site: Path, tmp_path: Path) -> None:
    program = """
import bulktransfer as bulk
with bulk.create("abstract:", direction=bulk.Direction.TX, trust=bulk.Trust.FULL) as channel:
    print(channel.address)
try:
    bulk.bind("abstract:nobody", timeout=0.1)
except bulk.EndpointNotFoundError as error:
    print(error)
try:
    bulk.bind("nothing:x")
except ValueError as error:
    print(error)
"""
    done = python(site, "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert re.fullmatch(r"abstract:\d+-[0-9a-f]{16}", first)
    assert "nobody created it within 0.1 s" in second
    assert "known are abstract:, fullcopy:, local:" in third


@pytest.mark.watchdog(600)
def test_an_installed_package_passes_the_suite(site: Path, tmp_path: Path) -> None:
    (tmp_path / "test_abstract.py").write_text(block("python no-run", "# test_abstract.py"))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = python(site, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-x", "-k", "FULL", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    found = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert found, done.stdout
    assert int(found[1]) > 100  # one level of trust: our own backends are held against the others
