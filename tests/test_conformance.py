"""Our own backends pass the suite that ships for others, at every trust level that they offer."""

from __future__ import annotations

import worlds  # noqa: F401 - it starts the helper thread before descriptors are counted
from bulktransfer.testing import Subject
from bulktransfer.testing.suite import Conformance


class TestLocal(Conformance):
    subject = Subject("local:", processes=False)


class TestShm(Conformance):
    subject = Subject("shm:")
