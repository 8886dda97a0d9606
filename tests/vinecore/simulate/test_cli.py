"""The command, as people type it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.harness.processes import PATIENCE_S
from vinecore.simulate.cli import main

ROOT = Path(__file__).parents[3]
SMALL = ["--tasks", "50", "--workers", "2", "--cores", "2"]


def said(*arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)), prog_name="simulate")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def test_it_prints_a_table():
    result = said(*SMALL)
    assert result.exit_code == 0
    for what in ("makespan", "cores with a task", "from worker to worker", "CPU time of the scheduler"):
        assert what in result.output


def test_it_writes_all_figures_as_json(tmp_path):
    path = tmp_path / "report.json"
    assert said(*SMALL, "--json", path).exit_code == 0
    report = json.loads(path.read_text())
    assert report["tasks"] in (49, 50)
    assert report["outcome"] == "success"
    assert report["makespan_s"] > 0
    assert {"peers", "to_workers", "to_manager", "storage", "streamed"} == set(report["bytes_moved"])


def test_json_output_is_pure():
    """Json on the standard output is nothing but that."""
    assert json.loads(said(*SMALL, "--json", "-").output)["useful_utilization"] > 0


def test_help_explains_itself_with_an_example():
    text = said("--help").output
    assert "python -m vinecore.simulate --graph tree" in text
    assert '"tasks": [' in text


def test_a_description_is_run(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"tasks": [{"key": "a", "seconds": 2}, {"key": "b", "inputs": ["a"], "seconds": 3}]}')
    report = json.loads(said("--workload", path, "--json", "-").output)
    assert 5 < report["makespan_s"] < 6


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--graph", "three"], "'three' is not one of"),
        (["--size", "3x"], "'3x' is not bytes: a number of 0 or more, such as 500M, 2e9 or 2GB"),
        (["--seconds", "1e300"], "is not seconds: a number of 0 or more"),
        (["--spread", "inf"], "is not sigma of a lognormal: a number of 0 or more"),
        (["--losses-per-hour", "nan"], "is not losses per hour: a number of 0 or more"),
        (
            ["--replaced-after", "-1"],
            "is not seconds: a number of 0 or more, such as 0.5 or 60, or inf for never",
        ),
        (["--memory-mb", "9" * 400], "is not in the range"),
        (["--tasks", "10000000000000"], "is not in the range"),
        (["--workers", "0"], "0 is not in the range"),
        (["--bandwidth", "0"], "'0' is not bytes per second: a number of more than 0"),
        (["--scheduler", "best"], "there are files"),
        (["--graph", "tree", "--fan-in", "1"], "a tree merges two or more"),
        (["--workload", "nothing.json"], "does not exist"),
    ],
)
def test_bad_input_is_a_clear_error(arguments, what):
    result = said(*arguments)
    assert result.exit_code == 2
    assert what in result.output


TIMES = ["seconds", "latency", "turn", "event", "message", "interpreter", "imports", "arrive"]
RATES = ["bandwidth", "manager-bandwidth", "storage-bandwidth", "storage-stream"]


@pytest.mark.parametrize("name", TIMES)
def test_infinite_time_is_refused_with_limits(name):
    """A time that never ends is refused with its option and what is allowed."""
    for value in ("inf", "nan", "-1", "soon"):
        result = said(f"--{name}", value)
        assert result.exit_code == 2
        assert (
            f"Invalid value for '--{name}': '{value}' is not seconds: a number of 0 or more" in result.output
        )


@pytest.mark.parametrize("name", RATES)
def test_zero_bandwidth_is_refused_unlimited_allowed(name):
    """What nothing can be read through is refused and what has no limit is not."""
    result = said(f"--{name}", "0")
    assert result.exit_code == 2
    assert f"'--{name}': '0' is not bytes per second: a number of more than 0" in result.output
    assert "inf for no limit" in result.output
    assert said(*SMALL, "--reads", "1M", f"--{name}", "inf").exit_code == 0


def test_a_description_goes_with_no_graph(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text("{}")
    assert "give one of them" in said("--workload", path, "--graph", "tree").output
    wrong = said("--workload", path)
    assert (wrong.exit_code, 'expected {"tasks"' in wrong.output) == (2, True)


def test_failed_run_has_reason_and_status():
    """A run that fails says why and has a status of its own."""
    result = said(*SMALL, "--disk-mb", 1, "--size", "1G")
    assert result.exit_code == 1
    assert "the run has failed" in result.output
    stuck = said(*SMALL, "--seconds", 1000, "--losses-per-hour", 3600)
    assert (stuck.exit_code, "nothing will" in stuck.output) == (1, True)


def test_hash_order_changes_nothing():
    """The order of hashes changes nothing and the worker is loaded only to simulate."""
    lines = [
        "import sys, vinecore.simulate as s",
        "assert not any(name.startswith('vineworker') for name in sys.modules)",
        "failures = s.Failures(losses_per_hour=60, replaced_after_s=5)",
        "report = s.simulate(s.generate('random', 200), s.Cluster(workers=5, cores=2), failures=failures, seed=5)",
        "print(report.makespan_s, report.events, report.reexecuted, report.bytes_moved)",
    ]
    outputs = set()
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}:{ROOT / 'worker'}"}
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert outputs != {""}
