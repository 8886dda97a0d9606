"""The ladder runs, shows published and simulated times, and its stacks differ in what they should."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.ladder import stacks, study
from benchmarks.ladder.measure import Measured
from benchmarks.ladder.stacks import QUICK, Scale
from tests.harness.processes import PATIENCE_S
from vinecore.simulate import Costs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rungs():
    measured = Measured(Costs(imports_s=1.0), ("numpy",), 5000.0, 50.0)
    said = []
    found = study.climb(measured, Scale(300, 8, 12, 300 * 86e6), 0, said.append)
    assert len(said) == len(stacks.STACKS)
    return {rung.stack.name: rung for rung in found}


def through_manager(rung):
    return rung.central.bytes_moved["to_workers"] + rung.central.bytes_moved["to_manager"]


def test_results_move_through_manager_or_peers(rungs):
    """Results go through the manager or between workers."""
    for name in "12":
        assert rungs[name].central.bytes_moved["peers"] == 0
        assert through_manager(rungs[name]) > 2 * 250 * stacks.CENTRAL.result
    for name in ("3", "3b", "4"):
        assert rungs[name].central.bytes_moved["peers"] > 0
        assert through_manager(rungs[name]) < 2 * stacks.CENTRAL.result


def test_all_stacks_do_the_same_work(rungs):
    assert len({round(rung.central.useful_core_s, 6) for rung in rungs.values()}) == 1
    assert {rung.central.bytes_moved["streamed"] for rung in rungs.values()} == {285 * 86_000_000}


def test_every_rung_beats_the_previous(rungs):
    """Every rung is faster than the one below."""
    seconds = [rungs[name].central.makespan_s for name in ("1", "2", "3", "4")]
    assert seconds == sorted(seconds, reverse=True)
    assert all(
        rung.low.makespan_s < rung.central.makespan_s < rung.high.makespan_s for rung in rungs.values()
    )


def test_a_slower_manager_makes_nothing_faster(rungs):
    assert all(rung.other.manager_busy_s > rung.central.manager_busy_s + 3 for rung in rungs.values())


def test_every_number_says_where_it_comes_from():
    rows = stacks.provenance(Costs(), ("numpy",))
    assert {kind for _what, _much, kind, _from in rows} == {
        "published",
        "measured",
        "measured before",
        "assumed",
    }
    assert all(what and much for what, much, _kind, _from in rows)


def test_the_command_prints_records_and_draws(tmp_path):
    pytest.importorskip("matplotlib")
    scratch, record, plot = tmp_path / "scratch", tmp_path / "ladder.json", tmp_path / "ladder.png"
    scratch.mkdir()
    command = [
        sys.executable,
        "-m",
        "benchmarks.ladder",
        "--quick",
        "--rounds",
        "1",
        "--json",
        str(record),
        "--plot",
        str(plot),
    ]
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "not what was published" in done.stdout
    assert "3,545" in done.stdout
    said = json.loads(record.read_text())
    assert [stack["stack"] for stack in said["stacks"]] == ["1", "2", "3", "3b", "4"]
    assert said["scale"]["tasks"] == QUICK.tasks
    assert said["costs"]["event_s"] > 0
    assert said["costs"]["interpreter_s"] > 0
    assert plot.stat().st_size > 10_000
    assert not list(scratch.iterdir())
