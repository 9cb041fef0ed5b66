"""What `bulk bench` may claim of noisy figures, and how it lays them out."""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable

import pytest

from bulktransfer.bench import options, stats, table

TRIALS = 4_000
THREE_STANDARD_ERRORS = 3 * math.sqrt(0.95 * 0.05 / TRIALS)


def test_bounds_are_order_statistics_of_the_binomial() -> None:
    eleven = list(range(11, 0, -1))
    assert stats.upper_bound(eleven) == 9
    assert stats.lower_bound(eleven) == 3
    assert stats.upper_bound(range(5)) == 4  # all five below the median: once in 32
    assert stats.upper_bound(eleven, 0.5) == 6


@pytest.mark.parametrize("count", [0, 1, 4])
def test_bounds_refuse_too_few_samples(count: int) -> None:
    with pytest.raises(ValueError, match="too few"):
        stats.upper_bound([1.0] * count)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_bounds_refuse_what_is_no_confidence(confidence: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.lower_bound([1.0] * 11, confidence)


def skewed(chance: random.Random) -> float:
    """Median 1, mean 1.6."""
    return chance.lognormvariate(0.0, 1.0)


def two_humps(chance: random.Random) -> float:
    """Median 1: half of it around 0, half around 2."""
    return 1.0 + chance.choice((-1.0, 1.0)) * (1.0 + chance.random() / 2)


def normal(chance: random.Random) -> float:
    """Median 1."""
    return chance.gauss(1.0, 1.0)


@pytest.mark.parametrize("count", [5, 11, 12, 25])
@pytest.mark.parametrize("draw", [skewed, two_humps, normal])
def test_bounds_hold_as_often_as_they_say_whatever_the_distribution(
    count: int, draw: Callable[[random.Random], float]
) -> None:
    chance = random.Random(5)
    above = below = 0
    for _ in range(TRIALS):
        samples = [draw(chance) for _ in range(count)]
        above += stats.upper_bound(samples) >= 1.0
        below += stats.lower_bound(samples) <= 1.0
    assert above / TRIALS >= 0.95 - THREE_STANDARD_ERRORS
    assert below / TRIALS >= 0.95 - THREE_STANDARD_ERRORS


def test_a_bound_of_the_ratio_withstands_a_drift_of_both_sides() -> None:
    chance = random.Random(7)
    drift = [chance.uniform(1.0, 4.0) for _ in range(11)]
    reference = [factor * chance.uniform(0.98, 1.02) for factor in drift]
    found = stats.ratio([1.5 * factor * chance.uniform(0.98, 1.02) for factor in drift], reference)
    assert found.pairs == 11
    assert 1.4 < found.lower <= found.median <= found.upper < 1.6


def test_a_ratio_refuses_rows_of_different_lengths() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        stats.ratio([1.0] * 11, [1.0] * 12)


def test_verdicts_count_the_bound_and_call_small_differences_ties() -> None:
    found = stats.Ratio(median=0.9, lower=0.8, upper=1.05, pairs=11)
    assert found.at_most(1.1) == "held"
    assert found.at_most(1.0) == "noise"
    assert found.at_most(0.9) == "missed"
    assert found.at_least(0.7) == "held"
    assert found.at_least(0.85) == "noise"
    assert found.at_least(1.0) == "missed"


def test_a_summary_has_the_six_figures_of_the_report() -> None:
    found = stats.summarize(range(200, 0, -1))
    assert found == stats.Summary(
        count=200,
        mean=100.5,
        median=100.5,
        minimum=1,
        p99=198,
        maximum=200,
        stddev=pytest.approx(57.879, abs=1e-3),
        p999=200,
    )
    assert stats.summarize([7.0]).stddev == 0.0
    with pytest.raises(ValueError, match="no samples"):
        stats.summarize([])


def test_a_table_sets_numbers_to_the_right_and_text_to_the_left() -> None:
    text = table.render(["what", "n", "µs"], [("one", 1, 0.25), ("million", 1_000_000, None)])
    assert text.splitlines() == [
        "what             n     µs",
        "-------  ---------  -----",
        "one              1  0.250",
        "million  1,000,000      -",
    ]


def test_a_table_refuses_a_row_of_another_length() -> None:
    with pytest.raises(ValueError, match="2 cells under 1"):
        table.render(["what"], [("one", 1)])


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "0.123"), (1.234, "1.23"), (56.78, "56.8"), (1234.5, "1,234"), (-12.34, "-12.3")]
)
def test_numbers_show_the_digits_that_matter(value: float, text: str) -> None:
    assert table.number_text(value) == text


@pytest.mark.parametrize(("text", "value"), [("4096", 4096), ("4KiB", 4096), ("1M", 1 << 20), ("1 GiB", 1 << 30)])
def test_sizes_are_read_as_people_write_them(text: str, value: int) -> None:
    assert options.size(text) == value
    assert options.size(table.size_text(value)) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "4KiBs", "1.5M", "big"])
def test_sizes_refuse_what_is_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not a size"):
        options.size(text)


def test_fewer_pairs_than_a_bound_needs_are_refused() -> None:
    assert options.pairs("5") == 5
    with pytest.raises(argparse.ArgumentTypeError, match="no bound"):
        options.pairs("4")
