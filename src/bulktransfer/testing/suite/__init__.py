"""The conformance suite, as classes of pytest tests: derive from `Conformance` and say what the subject is.

Knows: which parts there are. Must not know: what they test.
"""

import pytest

pytest.register_assert_rewrite(f"{__name__}.world")
for _part in (
    "batches",
    "copies",
    "ends",
    "guarantees",
    "pools",
    "refusals",
    "routes",
    "setup",
    "transfers",
    "views",
    "waiting",
):
    pytest.register_assert_rewrite(f"{__name__}.{_part}")

from .batches import Batches  # noqa: E402 - after the modules with assertions were registered
from .copies import Copies  # noqa: E402
from .ends import Ends  # noqa: E402
from .guarantees import Guarantees  # noqa: E402
from .pools import Pools  # noqa: E402
from .refusals import Refusals  # noqa: E402
from .routes import Routes  # noqa: E402
from .setup import SetUp  # noqa: E402
from .transfers import Transfers  # noqa: E402
from .views import Views  # noqa: E402
from .waiting import Waiting  # noqa: E402


class Conformance(SetUp, Pools, Transfers, Copies, Routes, Batches, Refusals, Views, Waiting, Ends, Guarantees):
    """Every test, at every trust level and in both role modes."""


__all__ = [
    "Batches",
    "Conformance",
    "Copies",
    "Ends",
    "Guarantees",
    "Pools",
    "Refusals",
    "Routes",
    "SetUp",
    "Transfers",
    "Views",
    "Waiting",
]
