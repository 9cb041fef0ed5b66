"""The evaluation as one command: every run is a call that the benchmarks take, the page has what was measured, two
reports can be compared, and a difference needs more than noise. Speed is not judged here."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bulktransfer.bench import compare, evaluation, main, page, plots


def parsed(run: evaluation.Run) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    main.add_parsers(parser.add_subparsers(required=True))
    return parser.parse_args(["bench", *run.arguments, "--json"])


@pytest.mark.parametrize("quick", [False, True])
def test_every_run_is_a_call_that_the_benchmarks_take(quick: bool) -> None:
    runs = list(evaluation.runs(quick=quick))
    assert [parsed(run).benchmark for run in runs]
    assert len({run.key for run in runs}) == len(runs)
    assert {"5.5", "5.6", "5.7", "5.8", "5.9"} <= {run.figure for run in runs}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = [
        evaluation.Run("latency-full-same-block", "5.6", ("rtt", "--size", "4KiB", *BRIEF)),
        evaluation.Run("throughput-full-same-block", "5.7", ("throughput", "--only", "report", *BRIEF)),
        evaluation.Run("broken", "none", ("rtt", "shm:only-one")),
    ]
    return evaluation.measure(runs, say=lambda _: None)


BRIEF = ("--pin", "same", "--wait", "block", "--pairs", "5", "--runs", "10")


def test_what_fails_is_kept_and_the_others_go_on(report: dict[str, Any]) -> None:
    assert list(report["runs"]) == ["latency-full-same-block", "throughput-full-same-block", "broken"]
    assert "two addresses" in report["runs"]["broken"]["error"]
    assert "error" not in report["runs"]["throughput-full-same-block"]


def test_the_page_has_the_figures_and_what_gave_none(report: dict[str, Any]) -> None:
    text = page.write(report, {"fig.svg": "A plot"})
    assert "| 5.6 | latency-full-same-block | 4 KiB | 1 |" in text
    assert "100 moves until the last echo, 4 KiB" in text
    assert "![A plot](fig.svg)" in text
    assert "| broken |" in text


@pytest.mark.leaks_fds  # matplotlib keeps its fonts open
def test_the_plots_are_drawn_where_matplotlib_is(report: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = plots.draw(report, tmp_path)
    assert drawn.keys() == {"fig5-6-8.svg", "fig5-7-9.svg"}
    assert all((tmp_path / name).read_text().lstrip().startswith("<?xml") for name in drawn)


def test_a_report_does_not_differ_from_itself(report: dict[str, Any]) -> None:
    changes = list(compare.compare(report, report))
    assert {change.verdict for change in changes} == {"no difference"}
    assert {"round trip, 4 KiB", "100 moves until issued, 4 KiB"} <= {change.what for change in changes}


def test_twice_the_time_is_worse_and_half_of_it_better(report: dict[str, Any]) -> None:
    slow = copy.deepcopy(report)
    figures = slow["runs"]["latency-full-same-block"]["found"]["data"]["4096"]
    figures["direct_medians_ns"] = [1000.0, 1001.0, 1002.0, 1003.0, 1004.0]
    quick = copy.deepcopy(slow)
    figures = quick["runs"]["latency-full-same-block"]["found"]["data"]["4096"]
    figures["direct_medians_ns"] = [500.0, 501.0, 502.0, 503.0, 504.0]

    def verdicts(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
        return {change.verdict for change in compare.compare(a, b) if change.what == "round trip, 4 KiB"}

    assert verdicts(quick, slow) == {"worse"}
    assert verdicts(slow, quick) == {"better"}


@pytest.mark.leaks_fds  # matplotlib keeps its fonts open
def test_the_commands_write_and_compare_files(
    report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert main.main(["bench", "report", "--redraw", str(tmp_path)]) == 1  # one run gave no figures
    assert (tmp_path / "report.md").read_text().startswith("# What this machine does")
    assert main.main(["bench", "compare", str(tmp_path), str(tmp_path / "report.json"), "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out[out.index("[") :])[0]["ratio"] == 1.0


@pytest.mark.parametrize("other", [b"{}", b"no JSON", b"\xff", None])
def test_what_is_no_report_is_not_compared(
    report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], other: bytes | None
) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report))
    if other is not None:
        (tmp_path / "other.json").write_bytes(other)
    assert main.main(["bench", "compare", str(tmp_path), str(tmp_path / "other.json")]) == 2
    assert str(tmp_path / "other.json") in capsys.readouterr().err
