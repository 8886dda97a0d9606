"""Coffea's own executor for TaskVine, unchanged."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.harness.processes import PATIENCE_S, variables_of_new_user

PROGRAM = """
import sys
import ndcctools.taskvine as vine
from coffea.processor import IterativeExecutor, TaskVineExecutor
from coffea.processor.executor import WorkItem

def count(item):
    return {"out": {"n": item.entrystop - item.entrystart}, "processed": {item}}

items = [WorkItem("d", "root://x/f.root", "Events", 10 * i, 10 * i + 9, b"0" * 16, {}) for i in range(8)]
executor = TaskVineExecutor(port=0, manager_name="of-coffea", status=False, verbose=False, print_stdout=False,
                            concurrent_reads=2, treereduction=3)
workers = vine.Factory("local", manager_name="of-coffea")
workers.min_workers = workers.max_workers = 1
workers.cores = 2
with workers:
    found, problem = executor(items, count, None)
expected, _ = IterativeExecutor(status=False)(items, count, None)
print([found["out"], found["processed"] == expected["processed"], problem, expected["out"]])
"""


def test_coffeas_executor_gives_equal_results(tmp_path):
    pytest.importorskip("coffea", reason="coffea is not installed")
    (tmp_path / "program.py").write_text(PROGRAM)
    ended = subprocess.run(
        [sys.executable, "-m", "vinecore.compat.cli", "program.py"], cwd=tmp_path, env=variables_of_new_user(tmp_path),
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ast.literal_eval(ended.stdout.splitlines()[-1]) == [{"n": 72}, True, 0, {"n": 72}]
