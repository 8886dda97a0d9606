"""The benchmarks run and show the rows that were asked for. Nothing here depends on how fast anything is."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.cases import Case
from benchmarks.contenders import ContenderFailed, Contestant
from benchmarks.contest import Row, disagreements
from benchmarks.sizes import QUICK
from benchmarks.table import table
from tests.harness.processes import PATIENCE_S

ROOT = Path(__file__).parents[2]


def bench(tmp_path, *arguments):
    """Run the command as ``make bench`` does; temporary files go where they can be counted."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "benchmarks", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    return done, list(scratch.iterdir())


def test_benchmark_writes_record_and_leaves_nothing(tmp_path):
    """Prints a row writes a record and leaves nothing behind."""
    pytest.importorskip("distributed")
    record = tmp_path / "bench.json"
    done, left = bench(tmp_path, "--quick", "--rounds", "1", "--only", "calls", "--json", str(record))
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "function calls" in line)
    assert "distributed" in line
    assert "≥ 10,000" in line
    (row,) = json.loads(record.read_text())["rows"]
    assert set(row["seconds"]) == {"daskvine", "distributed", "bare"}
    assert row["ratio"] > 0
    assert not left


def test_moved_loaded_and_sent_are_measured(tmp_path):
    """What is moved loaded and sent is measured."""
    record = tmp_path / "bench.json"
    rows = [option for name in ("transfer", "compared", "load", "sent") for option in ("--only", name)]
    done, left = bench(tmp_path, "--quick", "--rounds", "1", *rows, "--json", str(record))
    assert done.returncode == 0, done.stderr
    transfer, compared, load, sent = json.loads(record.read_text())["rows"]
    for row in (transfer, compared):
        assert set(row["seconds"]) == {"daskvine", "bare"}
        assert row["ratio"] > 0
    assert load["medians"]["bare"] > 0.9 * QUICK.array_mb > load["medians"]["daskvine"]
    assert 0 < sent["medians"]["daskvine"] < 10_000
    assert sent["met"] in (True, False)
    assert not left


def test_unknown_case_names_known_ones(tmp_path):
    """An unknown case is named with the known ones."""
    done, _left = bench(tmp_path, "--only", "colls")
    assert done.returncode == 2
    assert "no case colls" in done.stderr
    assert "calls" in done.stderr


def test_somebody_has_to_be_left(tmp_path):
    done, _left = bench(tmp_path, "--only", "batched", "--without", "bare")
    assert done.returncode == 2
    assert "nobody is left" in done.stderr


def test_failing_contender_shows_traceback():
    """A contender that fails is told with its traceback."""
    with (
        contextlib.closing(Contestant("bare", "juggling")) as contestant,
        pytest.raises(ContenderFailed, match="no attribute 'juggling'") as caught,
    ):
        contestant.ready()
    assert "Traceback" in str(caught.value)


def test_ratios_are_those_of_neighbouring_runs():
    case = Case("calls", "calls", "calls/s", ("daskvine", "distributed"), "distributed", budget=10)
    row = Row(case, "", {"daskvine": [0.1, 0.2, 0.4], "distributed": [4.0, 1.0, 2.0]})
    assert row.median("daskvine") == pytest.approx(5)
    assert row.ratio() == pytest.approx(5)  # of 40, 5 and 5; the ratio of the medians would be 10
    assert row.meets() is False


def test_relative_budget_compares_times():
    """A relative budget is judged by the part of the time."""
    case = Case("adl", "ADL", "s", ("daskvine", "synchronous"), "synchronous", budget=0.6, relative=True)
    row = Row(case, "Q1", {"daskvine": [0.5], "synchronous": [1.0]})
    assert row.ratio() == pytest.approx(0.5)
    assert row.meets() is True


def test_relative_budget_compares_rates():
    """A relative budget of a rate is judged by the part of the rate."""
    case = Case("transfer", "transfer", "GB/s", ("daskvine", "bare"), "bare", budget=0.8, relative=True)
    row = Row(case, "", {"daskvine": [1.0], "bare": [0.9]})
    assert row.ratio() == pytest.approx(0.9)
    assert row.meets() is True
    row.seconds["bare"] = [0.7]
    assert row.meets() is False


def test_verdict_mentions_bare_missing_budget():
    """Where bare misses the budget too the verdict says so."""
    case = Case("calls", "calls", "calls/s", ("daskvine", "bare"), "", budget=10)
    row = Row(case, "", {"daskvine": [0.2], "bare": [0.3]})
    assert (row.meets(), row.meets("bare")) == (False, False)
    console = Console(file=io.StringIO(), width=170)
    console.print(table([row], QUICK, 1))
    assert "no, nor bare" in console.file.getvalue()


def test_contenders_that_disagree_are_named():
    results = {"daskvine": [np.ones(3)], "synchronous": [np.ones(3)], "threads": [np.zeros(3)]}
    assert disagreements("Q1", results) == ["Q1: threads and daskvine"]


def test_packed_histogram_and_merge_take_less(tmp_path):
    """A packed histogram and its merge in turn take less."""
    pytest.importorskip("dask_histogram")
    script = (
        "import json; from benchmarks.accumulation import Variant, measure; "
        "print(json.dumps([measure(Variant('scattered', new, new, 20, 0.15, 4))._asdict() for new in (True, False)]))"
    )
    environment = {
        **os.environ,
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    new, old = json.loads(done.stdout)
    assert new["stored"] < old["stored"] / 5
    assert new["merge_mb"] < old["merge_mb"] / 2
    assert not list(tmp_path.iterdir())
