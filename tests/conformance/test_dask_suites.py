"""Dask's own tests, which come with dask, computed by the get under test.

Each suite runs in a pytest of its own with `reroute` loaded. Tests that cannot work outside of the caller's
process, with any scheduler, are excluded by name; everything else has to pass.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

IDENTITY = "expects the very object back, not an equal one"
GENERATOR = "a generator is the result of a task, and cannot be pickled"
SIDE_EFFECT = "counts calls in a variable of the caller's process"
WARNING = "expects a warning of a task in the caller's process"
IN_PLACE = "stores into an array of the caller's process"
LOCK = "a threading.Lock is part of the graph"
DISK = "groups through a shared folder, which is refused; what dask offers instead does not do this"
NOT_OURS = "fails with dask's own schedulers too"

EXCLUDED = {
    "dask.tests.test_delayed": {
        "test_callable_obj": IDENTITY,
        "test_traverse_false": IDENTITY,
        "test_np_dtype_of_delayed": f"{NOT_OURS}: numpy is newer than dask 2025.3",
    },
    "dask.bag.tests.test_bag": {
        "test_bag_with_single_callable": IDENTITY,
        "test_repartition_partition_size_complex_dtypes": f"{IDENTITY}: compares lists of arrays",
        "test_from_delayed_iterator": GENERATOR,
        "test_reductions_are_lazy": GENERATOR,
        "test_to_delayed_optimize_graph": SIDE_EFFECT,
        "test_take_npartitions_warn": WARNING,
        "test_groupby_with_indexer": DISK,
        "test_groupby_with_npartitions_changed": DISK,
        "test_msgpack_unicode": DISK,
        "test_temporary_directory": f"{DISK}; looks for its files",
    },
    "dask.array.tests.test_array_core": {
        "test_store": IN_PLACE,
        "test_store_compute_false": IN_PLACE,
        "test_store_delayed_target": IN_PLACE,
        "test_store_method_return": LOCK,
        "test_store_regions": IN_PLACE,
        "test_store_sources_unoptimized_nocompute": SIDE_EFFECT,
        "test_store_locks": LOCK,
        "test_store_locks_count_calls": LOCK,
        "test_store_locks_dont_assume_threadsafe": LOCK,
        "test_store_locks_failure_lock_released": LOCK,
        "test_store_locks_no_lock": LOCK,
        "test_store_locks_one_lock_two_stores": LOCK,
        "test_from_array_with_lock": LOCK,
        "test_from_array_getitem[True-True]": SIDE_EFFECT,
        "test_from_array_getitem[False-True]": SIDE_EFFECT,
        "test_memmap": IN_PLACE,
        "test_binary_operator_delegation": f"{NOT_OURS}: needs pytest-mock",
    },
    "dask.dataframe.tests.test_shuffle": {
        "test_disk_shuffle_with_unknown_compression": DISK,
    },
}

# Somewhat less than what passes with the oldest and the newest dask, so that a suite that is not found, or
# does not reach get, cannot pass for one that works.
LEAST_PASSED = {
    "dask.tests.test_delayed": 55,
    "dask.bag.tests.test_bag": 165,
    "dask.array.tests.test_array_core": 480,
    "dask.dataframe.tests.test_shuffle": 180,
}
LEAST_CALLS = {
    "dask.tests.test_delayed": 60,
    "dask.bag.tests.test_bag": 300,
    "dask.array.tests.test_array_core": 1500,
    "dask.dataframe.tests.test_shuffle": 350,
}


@dataclass
class Outcome:
    """What one suite came to."""

    passed: int = 0
    calls: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    output: str = ""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("suite", EXCLUDED)
def test_suite(suite, tmp_path):
    outcome = run(suite, tmp_path)
    assert outcome.failures == {}, outcome.output
    assert outcome.passed >= LEAST_PASSED[suite], outcome.output
    assert outcome.calls >= LEAST_CALLS[suite], outcome.output


def run(suite, folder):
    """Run one suite in a pytest of its own, which does not see this project's settings."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    report, calls = folder / "report.xml", folder / "calls.json"
    options = [f"--exclude-test={name}" for name in EXCLUDED[suite]]
    command = [
        *(
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "tests.conformance.dask_test_plugin",
            "-p",
            "no:cacheprovider",
        ),
        *("-q", "--disable-warnings", "--tb=short", "--timeout=120", "-m", "not slow and not network"),
        *(f"--junitxml={report}", f"--calls-to={calls}"),
        *("--exclude-parameter=shuffle_method=disk", "--exclude-parameter=shuffle=disk"),
        *(*options, "--pyargs", suite),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *map(os.path.abspath, sys.path)])}
    ended = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return outcome_of(report, calls, ended)


def outcome_of(report, calls, ended):
    outcome = Outcome(output=ended.stdout)
    if not report.exists() or not calls.exists():
        outcome.failures["pytest"] = f"ended with {ended.returncode}"
        return outcome
    outcome.calls = json.loads(calls.read_text())["calls"]
    for case in ET.parse(report).iter("testcase"):
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        if bad is not None:
            outcome.failures[case.get("name")] = bad.get("message")
        elif case.find("skipped") is None:
            outcome.passed += 1
    return outcome
