"""Tests that every backend passes, ours and yours: what the library promises, held against a backend.

Knows: how they are used, said below. Must not know: what they test.

A backend's authors write one file of tests. `Subject` says what is tested; each test runs at every trust level that the
backend offers, and in both role modes: transmit-master, where the source creates, allocates and assigns, and
receive-master, where the sink does.

    # test_conformance.py
    from bulktransfer.testing import Subject
    from bulktransfer.testing.suite import Conformance

    class TestMine(Conformance):
        subject = Subject("mine:", imports=("mybackend",), processes=True)

`imports` are modules that the child processes import first, for instance to register the backend; `processes=False` is
for a backend that connects domains of one process only. `bulktransfer.testing.machine` drives random transfers beside
the executable specification, and `bulktransfer.testing.guarantees` are the report's tests 0 to 6 (II-5.1), which
`bulk check` runs. `suite` needs pytest, `machine` needs Hypothesis (`pip install bulktransfer[test]`); the rest needs
Python only.
"""

from .subject import MODES, Mode, Subject

__all__ = ["MODES", "Mode", "Subject"]
