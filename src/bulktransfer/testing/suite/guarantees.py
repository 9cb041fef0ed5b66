"""The report's tests 0 to 6 (II-5.1) with real processes, on one core and on two."""

from __future__ import annotations

import pytest

from .. import guarantees, nursery
from .world import Case, Suite


class Guarantees(Suite):
    """What was given away is out of reach, where the trust level promises it."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Both placements as the report has it (the source is MASTER), two cores in the other role mode."""
        if "pin" not in metafunc.fixturenames:
            super().pytest_generate_tests(metafunc)
            return
        nursery.ready()
        ways = [
            (c, pin) for c in self.cases() for pin in ("same", "split") if pin == "split" or c.mode.source_is_master
        ]
        metafunc.parametrize(("case", "pin"), ways, ids=[f"{case}-{pin}" for case, pin in ways])

    @pytest.mark.parametrize("test", [0, 2, 3, 4, 5, 6])
    def test_what_arrives_is_what_was_sent_and_what_is_gone_is_out_of_reach(
        self, case: Case, test: int, pin: str
    ) -> None:
        number = guarantees.tests_of(case.trust)[0] if test == 0 else test
        try:
            found = guarantees.run(number, case.subject, case.trust, case.mode, pin)
        except guarantees.CannotPin as reason:
            pytest.skip(str(reason))
        assert found.seen == found.expected
