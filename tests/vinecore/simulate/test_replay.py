"""Journals of runs as workloads: one that is written here, record by record, and one of a real run."""

import json
import math

import msgspec
import pytest
from click.testing import CliRunner

from daskvine import DaskVine
from tests.harness import sample_tasks
from vinecore.journal import records as j
from vinecore.simulate import Cluster, WorkloadError, load_recording, simulate
from vinecore.simulate.cli import main

HEADER = j.Header(0.0, j.VERSION, 0.0, "host", 1, "vine", 1, "0", "3.11", {})
WORKERS = (
    j.WorkerConnectedRecord(1.0, 1, "one", "one", "3.11", 4, 8000, 9000),
    j.WorkerConnectedRecord(12.0, 2, "two", "two", "3.11", 4, 8000, 9000),
)
RUN = (
    j.FileDeclaredRecord(9.0, "buffer-a", 5000, at_manager=True),
    j.FileDeclaredRecord(9.0, "url-b", 7_000_000, url="https://example.org/b"),
    j.TaskSubmittedRecord(10.0, 1, "first", "map", 1, "lib", "f", ("buffer-a", "url-b"), result="result-1"),
    j.TaskSubmittedRecord(10.0, 2, "second", "map", 1, "lib", "f", ("url-b",), result="result-2"),
    j.TaskSubmittedRecord(15.0, 3, "both", "merge", 1, "", "", ("result-1", "result-2"), ("object-f",), "result-3", ("temp-3",), ("result-3",), cores=2),
    j.TaskSubmittedRecord(15.0, 4, "never", "merge", 1, "lib", "f", ("result-3",), result="result-4"),
    j.TaskDispatchedRecord(10.1, 1, 1),
    j.TaskReturnedRecord(11.0, 1, 1, "the worker was lost"),
    j.TaskDispatchedRecord(11.0, 1, 1, 2),
    j.TaskDispatchedRecord(11.0, 2, 1),
    j.TaskDoneRecord(13.0, 1, 1, 1.5, 1_000_000, 2),
    j.TaskDoneRecord(13.0, 2, 1, 2.0, 2_000_000),
    j.TaskDispatchedRecord(15.1, 3, 2, cores=2),
    j.TaskDoneRecord(19.0, 3, 2, 3.5, 300, outputs={"temp-3": 400}),
    j.WorkerDisconnectedRecord(20.0, 2, "it left"),
)  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """Write records as a journal."""

    def write(*records):
        path = tmp_path / j.FILE
        path.write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in (HEADER, *records)))
        return path

    return write


@pytest.fixture
def written(write):
    return write(*WORKERS, *RUN)


def test_tasks_keep_duration_and_size(written):
    """Tasks are as long and as large as they were."""
    jobs = {job.key: job for job in load_recording(written).workload.jobs}
    assert list(jobs) == ["result-1", "result-2", "result-3"]
    first, both = jobs["result-1"], jobs["result-3"]
    assert (first.seconds, first.size, first.library, first.category) == (1.5, 1_000_000, "lib", "map")
    assert first.inputs == ("buffer-a", "url-b")
    assert (both.seconds, both.size, both.library, both.cores, both.wanted) == (3.5, 700, "", 2.0, True)
    assert both.inputs == ("result-1", "result-2", "object-f")
    assert [job.submitted_s for job in jobs.values()] == [0.0, 0.0, 5.0]


def test_files_are_where_they_were(written):
    files = load_recording(written).workload.files
    assert (files["buffer-a"].size, files["buffer-a"].at) == (5000, "manager")
    assert (files["url-b"].size, files["url-b"].at) == (7_000_000, "storage")


def test_workers_keep_size_and_lifetime(written):
    """Workers are as large and there as long as they were."""
    recording = load_recording(written)
    assert recording.cluster == Cluster(2, 4, 8000, 9000)
    assert recording.failures.worker_lifetimes == ((0.0, math.inf), (2.0, 10.0))
    assert (recording.makespan_s, recording.left_out) == (9.0, 1)


def test_a_run_is_simulated_as_it_was(written):
    recording = load_recording(written)
    report = simulate(recording.workload, recording.cluster, failures=recording.failures, validate=True)
    assert (report.outcome, report.tasks, report.workers) == ("success", 3, 2)
    assert 5.0 + 3.5 < report.makespan_s < 9.0


def test_workers_are_lost_when_they_were(write):
    long = (
        j.TaskSubmittedRecord(0.0, 1, "long", result="result-1"),
        j.TaskDispatchedRecord(0.0, 1, 1),
        j.TaskReturnedRecord(5.0, 1, 1, "the worker was lost"),
        j.WorkerDisconnectedRecord(5.0, 1, "it broke"),
        j.TaskDispatchedRecord(12.0, 1, 2, 2),
        j.TaskDoneRecord(22.0, 1, 2, 10.0, 10, 2),
    )
    recording = load_recording(write(*WORKERS, *long))
    report = simulate(recording.workload, recording.cluster, failures=recording.failures, validate=True)
    assert (report.workers_lost, report.reexecuted) == (1, 1)
    assert recording.makespan_s == 22.0
    assert report.makespan_s == pytest.approx(22.0, abs=0.5)


def test_output_of_unknown_maker_is_file(write):
    """What was made by nobody who is known is a file."""
    found = (
        j.FilesFoundRecord(1.0, 1, ("result-9",), (123_000,)),
        j.TaskSubmittedRecord(2.0, 9, "before", result="result-9", deferred=True),
        j.TaskSubmittedRecord(2.0, 1, "reader", inputs=("result-9",), result="result-1"),
        j.TaskDispatchedRecord(2.0, 1, 1),
        j.TaskDoneRecord(3.0, 1, 1, 1.0),
    )
    workload = load_recording(write(WORKERS[0], *found)).workload
    assert [job.key for job in workload.jobs] == ["result-1"]
    assert workload.files["result-9"].size == 123_000


@pytest.mark.parametrize(
    ("records", "what"), [((), "no worker was connected"), (WORKERS, "no task was done")]
)
def test_empty_run_is_refused(write, records, what):
    """A run in which nothing was done is refused."""
    with pytest.raises(WorkloadError, match=what):
        load_recording(write(*records))


def simulated(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_command_compares_and_varies_run(written):
    """The command compares with the run and asks what if."""
    said = simulated("--journal", written)
    assert said.exit_code == 0, said.output
    assert "The run itself took 9.000 s; tasks that it did not do: 1." in said.output
    as_it_was = json.loads(simulated("--journal", written.parent, "--json", "-").output)
    assert (as_it_was["recorded_s"], as_it_was["left_out"], as_it_was["workers"]) == (9.0, 1, 2)
    larger = json.loads(simulated("--journal", written, "--workers", 7, "--cores", 3, "--json", "-").output)
    assert (larger["workers"], larger["cores"]) == (7, 21)


def test_the_command_refuses_what_is_no_journal(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text("{}\n")
    said = simulated("--journal", path)
    assert (said.exit_code, "is not a journal" in said.output) == (2, True)
    assert "there is no journal in it" in simulated("--journal", tmp_path).output


@pytest.mark.parametrize("mode", ["function-calls", "tasks"])
def test_a_real_run_is_simulated(local_cluster, mode):
    m = local_cluster.start_manager(DaskVine, run_info_path=local_cluster.path("info"))
    local_cluster.start_workers(m, 2)
    graph = {f"a{n}": (bytes, 100_000 + n) for n in range(20)}
    graph["all"] = (sample_tasks.add, (len, [f"a{n}" for n in range(20)]), 1)
    assert m.get(graph, "all", task_mode=mode, progress_disable=True) == 21
    path = m.journal
    m.close()
    recording = load_recording(path)
    assert len(recording.workload.jobs) == 21
    assert sum(job.size > 100_000 for job in recording.workload.jobs) == 20
    assert recording.makespan_s > 0
    report = simulate(recording.workload, recording.cluster, failures=recording.failures, validate=True)
    assert (report.outcome, report.tasks, report.reexecuted) == ("success", 21, 0)
