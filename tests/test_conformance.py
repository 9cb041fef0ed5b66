"""Our own backends pass the suite that ships for others, at every trust level that they offer."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import bulktransfer as bulk
import worlds  # noqa: F401 - it starts the helper thread before descriptors are counted
from bulktransfer import Trust
from bulktransfer.testing import Subject
from bulktransfer.testing.suite import Conformance
from certificates import Authority


class TestLocal(Conformance):
    subject = Subject("local:", processes=False)


class TestShm(Conformance):
    subject = Subject("shm:")


class TestLocalSealed(Conformance):
    subject = Subject("local:", processes=False, only=(Trust.NONE,), assign={"means": "sealed"})


class TestShmSealed(Conformance):
    subject = Subject("shm:", only=(Trust.NONE,), assign={"means": "sealed"})


class TestFullCopy(Conformance):
    subject = Subject("fullcopy:")


class TestTcp(Conformance):
    subject = Subject("tcp://127.0.0.1:0")


# Named when tests are collected, there when they run.
PAPERS = Path(tempfile.gettempdir()) / f"bulk-papers-{os.getpid()}"


@pytest.fixture(scope="module")
def papers() -> Iterator[None]:
    """A certificate, and who vouches for it."""
    PAPERS.mkdir(mode=0o700)
    Authority(PAPERS).papers("creator")
    yield
    shutil.rmtree(PAPERS)


@pytest.mark.usefixtures("papers")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl program to make certificates with")
class TestTls(Conformance):
    subject = Subject(
        "tls://127.0.0.1:0",
        create={"network": bulk.Network(certificate=PAPERS / "creator.pem", key=PAPERS / "creator.key")},
        bind={"network": bulk.Network(authority=PAPERS / "authority.pem")},
    )
