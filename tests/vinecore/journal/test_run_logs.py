"""The logs in ``vine-logs`` have the formats that tools for TaskVine read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, wait_for_task, wait_until
from vinecore import PythonTask, Task
from vinecore.futures import FuturesExecutor
from vinecore.journal.run_log_formats import COLUMNS

LARGE = 300_000
LINE = re.compile(r"(\d{16}) (\d+) (MANAGER|WORKER|TASK|CATEGORY|LIBRARY|APPLICATION) (.*)")


def transactions(folder):
    """Return the fields of all lines but the comments, which come first."""
    lines = (folder / "transactions").read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert lines[: len(comments)] == comments
    found = [LINE.fullmatch(line).groups() for line in lines[len(comments) :]]
    return [(int(time), subject, rest) for time, _pid, subject, rest in found]


def run_computation(local_cluster):
    """Run tasks with files on two workers; return the folder with the logs, and the statistics."""
    m = local_cluster.start_manager(run_info_path=local_cluster.path("info"), vine_logs=True)
    local_cluster.start_workers(m, 2)
    m.set_category_resources_max("limited", {"cores": 1, "memory": 100})
    library = m.create_library_from_functions("adder", sample_tasks.add)
    m.install_library(library)
    with FuturesExecutor(manager=m, factory=False) as executor:
        parts = [executor.submit(bytes, LARGE + number) for number in range(5)]
        assert executor.submit(lambda parts: sum(map(len, parts)), parts).result() == 5 * LARGE + 10
        m.log_txn_app("begins with\n5 lists")
        m.log_debug_app("begins to look")
        assert executor.submit(int, "x").exception() is not None
        assert executor.submit(executor.future_funcall("adder", "add", 4, 4)).result() == 8
    command = Task("wc -c < 'my input' > out; exit 3", cores=1, category="my category")
    command.add_input(m.declare_buffer(b"x" * LARGE), "my input")
    command.add_output(m.declare_temp(), "out")
    m.submit(command)
    assert wait_for_task(m).exit_code == 3
    stats = m.stats
    m.close()
    return local_cluster.path("info") / "most-recent" / "vine-logs", stats, command.id


@pytest.fixture(scope="module")
def run(shared_cluster):
    return run_computation(shared_cluster)


def test_transactions_follow_each_task(run):
    folder, _stats, command = run
    lines = transactions(folder)
    assert lines[0][1:] == ("MANAGER", lines[0][2])
    assert lines[0][2].endswith(" START")
    assert lines[-1][2].endswith(" END")
    assert [time for time, *_ in lines] == sorted(time for time, *_ in lines)
    of_command = [rest.split(" ", 2)[1:] for _t, kind, rest in lines if kind == "TASK" and rest.startswith(f"{command} ")]  # fmt: skip
    assert [event for event, _rest in of_command] == [
        "READY",
        "RUNNING",
        "WAITING_RETRIEVAL",
        "RETRIEVED",
        "DONE",
    ]
    ready, running, _waiting, retrieved, done = [rest for _event, rest in of_command]
    assert ready == 'my%20category FIRST_RESOURCES 1 {"cores":[1,"cores"]}'
    assert re.fullmatch(r"worker-\d+ FIRST_RESOURCES \{.*\}", running)
    assert done == "SUCCESS 3"
    result, code, limits, measured = retrieved.split(" ")
    assert (result, code, limits) == ("SUCCESS", "3", "{}")
    assert json.loads(measured)["wall_time"][1] == "s"


def test_transactions_name_workers_and_files(run):
    folder, *_ = run
    of_workers = [rest for _t, kind, rest in transactions(folder) if kind == "WORKER"]
    assert sum(bool(re.fullmatch(r"worker-\d+ CONNECTION 127\.0\.0\.1:\d+", rest)) for rest in of_workers) == 2  # fmt: skip
    [first, _second] = [rest.split(" ", 2)[2] for rest in of_workers if " RESOURCES " in rest]
    assert json.loads(first)["memory"] == [2000, "MB"]
    sizes = {int(rest.split(" ")[3]) for rest in of_workers if " CACHE_UPDATE result-" in rest}
    # the pickles of five values
    assert len([size for size in sizes if LARGE < size < LARGE + 1000]) == 5
    moved = [rest for rest in of_workers if re.search(r"TRANSFER INPUT buffer-\w+ 300000 \d+ \d{16}", rest)]
    assert len(moved) == 1


def test_transactions_have_other_subjects(run):
    folder, *_ = run
    others = [(kind, rest) for _t, kind, rest in transactions(folder) if kind not in ("TASK", "WORKER")]
    assert ("APPLICATION", "begins with 5 lists") in others
    assert ("CATEGORY", 'limited MAX FIXED {"cores":[1,"cores"],"memory":[100,"MB"]}') in [
        (kind, rest.replace(".0", "")) for kind, rest in others
    ]
    libraries = [rest.split(" ")[1] for kind, rest in others if kind == "LIBRARY"]
    assert libraries[:2] == ["SENT", "STARTED"]


def test_performance_has_documented_columns(run):
    folder, stats, _command = run
    header, *rows = (folder / "performance").read_text().splitlines()
    assert header.split(" ")[:2] == ["#", "timestamp"]
    names = header.split(" ")[2:]
    assert tuple(names) == COLUMNS
    last = dict(zip(names, map(float, rows[-1].split(" ")[1:]), strict=True))
    for name in ("tasks_done", "tasks_failed", "tasks_submitted", "workers_joined", "total_memory"):
        assert last[name] == getattr(stats, name), name
    assert int(rows[0].split(" ")[0]) <= int(rows[-1].split(" ")[0])


def test_taskgraph_connects_tasks_by_files(run):
    folder, *_ = run
    text = (folder / "taskgraph").read_text()
    assert text.startswith("digraph ")
    assert text.endswith("}\n")
    made = re.findall(r'^"(task-\d+)" -> "(\S+)";$', text, re.MULTILINE)
    read = re.findall(r'^"(\S+)" -> "(task-\d+)";$', text, re.MULTILINE)
    files = {name for _task, name in made}
    assert len([name for name, _task in read if name in files]) == 5
    if shutil.which("dot"):
        subprocess.run(["dot", "-Tsvg"], input=text.encode(), check=True, stdout=subprocess.DEVNULL)


def test_debug_log_repeats_the_messages(run):
    folder, _stats, command = run
    text = (folder / "debug").read_text()
    assert all(re.match(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} vine_manager\[\d+\] ", line) for line in text.splitlines())  # fmt: skip
    assert "APPLICATION begins to look" in text
    assert f"Task {command} state change: INITIAL (0) to READY (1)" in text
    assert f"Task {command} state change: RETRIEVED (4) to DONE (5)" in text
    assert re.search(rf" complete 0 3 0 0 \d+ \d+ 0 {command}\n", text)


def test_report_tool_reads_the_logs(run):
    """The program `vine_parse` of the package taskvine-report-tool, beside this Python or on the path."""
    tool = shutil.which("vine_parse") or shutil.which("vine_parse", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("vine_parse is not installed: pip install taskvine-report-tool 'polars<2'")
    folder, *_ = run
    run_folder = folder.parent.resolve()
    command = [tool, "--logs-dir", str(run_folder.parent), "--templates", run_folder.name]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert "1 log directory processed successfully" in ended.stdout, ended.stdout + ended.stderr
    details = (run_folder / "csv-files" / "task_execution_details.csv").read_text().splitlines()
    assert len(details) > 9


def test_lost_worker_and_second_attempt(local_cluster):
    """Rows of the performance log come in the interval that was set."""
    m = local_cluster.start_manager(run_info_path=local_cluster.path("info"), vine_logs=True)
    m.tune("perf-log-interval", 1)
    [first] = local_cluster.start_workers(m, 1)
    task = PythonTask(sample_tasks.held, str(local_cluster.folder), "begun", "gate")
    m.submit(task)
    wait_until(local_cluster.path("begun").exists, "the start")
    first.kill()
    local_cluster.path("gate").touch()
    local_cluster.start_worker(m)
    assert wait_for_task(m).successful()
    folder = Path(m.logging_directory)
    wait_until(lambda: len((folder / "performance").read_text().splitlines()) > 3, "the third row")
    m.close()
    lines = [f"{kind} {rest}" for _t, kind, rest in transactions(folder)]
    assert "WORKER worker-1 DISCONNECTION FAILURE" in lines
    attempts = [line.split(" ")[2:6:3] for line in lines if line.startswith(f"TASK {task.id} READY")]
    assert attempts == [["READY", "1"], ["READY", "2"]]
    assert f"TASK {task.id} DONE SUCCESS 0" in lines


def test_no_logs_by_default(local_cluster):
    m = local_cluster.start_manager(run_info_path=local_cluster.path("info"))
    m.log_txn_app("to nowhere")
    m.log_debug_app("to nowhere")
    folder = m.journal.parent
    m.close()
    assert not (folder / "vine-logs").exists()
    with pytest.raises(ValueError, match="run_info_path"):
        local_cluster.start_manager(vine_logs=True)
    with pytest.raises(TypeError, match="entry"):
        m.log_txn_app(5)
