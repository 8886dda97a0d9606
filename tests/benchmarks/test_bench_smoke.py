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


def test_prints_a_row_writes_a_record_and_leaves_nothing_behind(tmp_path):
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


def test_what_is_moved_loaded_and_sent_is_measured(tmp_path):
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


def test_an_unknown_case_is_named_with_the_known_ones(tmp_path):
    done, _left = bench(tmp_path, "--only", "colls")
    assert done.returncode == 2
    assert "no case colls" in done.stderr
    assert "calls" in done.stderr


def test_somebody_has_to_be_left(tmp_path):
    done, _left = bench(tmp_path, "--only", "batched", "--without", "bare")
    assert done.returncode == 2
    assert "nobody is left" in done.stderr


def test_a_contender_that_fails_is_told_with_its_traceback():
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


def test_a_relative_budget_is_judged_by_the_part_of_the_time():
    case = Case("adl", "ADL", "s", ("daskvine", "synchronous"), "synchronous", budget=0.6, relative=True)
    row = Row(case, "Q1", {"daskvine": [0.5], "synchronous": [1.0]})
    assert row.ratio() == pytest.approx(0.5)
    assert row.meets() is True


def test_a_relative_budget_of_a_rate_is_judged_by_the_part_of_the_rate():
    case = Case("transfer", "transfer", "GB/s", ("daskvine", "bare"), "bare", budget=0.8, relative=True)
    row = Row(case, "", {"daskvine": [1.0], "bare": [0.9]})
    assert row.ratio() == pytest.approx(0.9)
    assert row.meets() is True
    row.seconds["bare"] = [0.7]
    assert row.meets() is False


def test_where_bare_misses_the_budget_too_the_verdict_says_so():
    case = Case("calls", "calls", "calls/s", ("daskvine", "bare"), "", budget=10)
    row = Row(case, "", {"daskvine": [0.2], "bare": [0.3]})
    assert (row.meets(), row.meets("bare")) == (False, False)
    console = Console(file=io.StringIO(), width=170)
    console.print(table([row], QUICK, 1))
    assert "no, nor bare" in console.file.getvalue()


def test_contenders_that_disagree_are_named():
    results = {"daskvine": [np.ones(3)], "synchronous": [np.ones(3)], "threads": [np.zeros(3)]}
    assert disagreements("Q1", results) == ["Q1: threads and daskvine"]


def test_a_packed_histogram_and_its_merge_in_turn_take_less(tmp_path):
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
