"""What a manager writes down of its run, and what is read from that."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from daskvine import DaskVine
from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, scheduler_state, wait_until, worker_summaries
from vinecore import FunctionCall, PythonTask, Task, journal
from vinecore.journal import records
from vinecore.journal.recorder import JournalRecorder
from vinecore.protocol import messages
from vinecore.report.cli import main
from vinecore.report.run import ReportedRun
from vinecore.report.text import format_run
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i

PAGE = Path(__file__).parents[3] / "docs" / "journal-format.md"
OVER = (journal.TaskDoneRecord, journal.TaskFailedRecord, journal.TaskReturnedRecord)


def finish(m):
    """Wait for all tasks; give them by number."""
    ended = {}
    while not m.empty():
        task = m.wait(PATIENCE_S)
        assert task is not None
        ended[task.id] = task
    return ended


def of(path, *kinds):
    return [record for record in journal.read(path) if type(record) in kinds]


@pytest.fixture(scope="module")
def story(shared_cluster):
    """The journal of a run with all kinds of tasks on two workers, one of which is killed; and what its manager knew."""
    m = shared_cluster.start_manager(DaskVine, run_info_path=shared_cluster.path("info"))
    first, _second = shared_cluster.start_workers(m, 2)
    m.install_library(m.create_library_from_functions("lib", sample_tasks.add, exec_mode="direct"))
    large = m.declare_buffer(b"x" * 300_000)
    ends = {}

    def submit(task, end):
        ends[m.submit(task)] = end
        return task

    for number in range(10):
        submit(FunctionCall("lib", "add", number, 1), "success")
    reader = Task("wc -c < in > out")
    reader.add_input(large, "in")
    reader.add_output(m.declare_temp(), "out")
    submit(reader, "success")
    submit(Task("exit 3"), "success")
    submit(PythonTask(sample_tasks.add, 1, "x"), "exception")
    bytes_task = submit(PythonTask(bytes, 200_000), "success")
    crashing = PythonTask(sample_tasks.leaves, str(shared_cluster.folder), "leaves")
    crashing.set_retries(1)
    submit(crashing, "crash")
    finish(m)
    assert len(bytes_task.output) == 200_000

    graph = {f"a{n}": (bytes, 100_000 + n) for n in range(8)}
    graph["all"] = (len, [*graph])
    assert m.get(graph, "all", task_mode="function-calls", progress_disable=True) == 8

    name = str(shared_cluster.folder)
    victims = [PythonTask(sample_tasks.held, name, f"held{n}", "gate") for n in range(2)]
    for task in victims:
        task.set_cores(2)  # so each worker has one
        submit(task, "success")
    wait_until(lambda: all(shared_cluster.count_lines(f"held{n}") for n in range(2)), "both to run")
    first.kill()
    wait_until(lambda: m.workers_connected == 1, "the manager to notice")
    shared_cluster.path("gate").touch()
    finish(m)
    doomed = PythonTask(sample_tasks.add, 1, 1)
    doomed.set_cores(1000)
    submit(doomed, "cancelled")
    m.cancel_all()
    finish(m)
    moved = scheduler_state(m, lambda scheduler: scheduler.state.moved_bytes)
    path = m.journal
    m.close()
    return path, ends, moved


# ---- what is written


def test_journal_is_off_by_default(local_cluster, monkeypatch):
    """Without being asked for there is no journal."""
    monkeypatch.chdir(local_cluster.folder)
    assert local_cluster.start_manager().journal is None
    assert not local_cluster.path("vine-run-info").exists()


@pytest.mark.parametrize("how", ["true", "variable"])
def test_journal_is_requested_by_option_or_variable(local_cluster, monkeypatch, how):
    """A journal is asked for by an option or a variable."""
    monkeypatch.chdir(local_cluster.folder)
    if how == "variable":
        monkeypatch.setenv("VINE_RUN_INFO_PATH", "vine-run-info")
        assert local_cluster.start_manager(run_info_path=False).journal is None
    m = local_cluster.start_manager(run_info_path=True if how == "true" else None)
    assert m.journal.parent.parent == local_cluster.path("vine-run-info")
    assert journal.find("vine-run-info").samefile(m.journal)


def test_the_first_record_says_who_wrote_it(story):
    path, *_ = story
    first, *_, last = journal.read(path)
    assert isinstance(first, journal.Header)
    assert (first.version, first.pid) == (journal.VERSION, os.getpid())
    assert "cloudpickle" in first.packages
    assert isinstance(last, journal.ManagerClosedRecord)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_every_submitted_task_has_an_end(story):
    """Every task that was submitted comes to its end."""
    path, ends, _moved = story
    history = journal.load(path)
    alone = {number: task for number, task in history.tasks.items() if not task.submitted.graph}
    assert {number: task.outcome for number, task in alone.items()} == ends
    vertices = [task for task in history.tasks.values() if task.submitted.graph]
    assert [task.outcome for task in vertices] == ["success"] * 9
    assert history.graphs[1].ended.outcome == "success"
    assert history.graphs[1].closed is not None


def test_every_stay_on_a_worker_ends_once(story):
    path, *_ = story
    stays = Counter((r.task, r.attempt, r.worker) for r in of(path, journal.TaskDispatchedRecord))
    ends = Counter((r.task, r.attempt, r.worker) for r in of(path, *OVER))
    assert stays == ends
    assert set(stays.values()) == {1}


def test_times_never_run_backwards(story):
    path, *_ = story
    times = [record.t for record in journal.read(path)]
    assert times == sorted(times)


def test_transfer_bytes_match_managers_count(story):
    """The bytes of the transfers are those that the manager counts."""
    path, _ends, moved = story
    transfers = journal.load(path).transfers
    assert sum(t.bytes for t in transfers if t.to != records.MANAGER) == moved >= 300_000
    assert [t.bytes for t in transfers if t.source == records.MANAGER] == [300_000]
    begun = Counter((r.file, r.destination) for r in of(path, journal.TransferStartedRecord))
    over = Counter(
        (r.file, r.to) for r in of(path, journal.TransferEndedRecord, journal.TransferFailedRecord)
    )
    assert begun == over
    [brought] = [t for t in transfers if t.to == records.MANAGER and t.bytes > 200_000]
    assert brought.source in (1, 2)


def test_sizes_of_inputs_and_outputs_are_recorded(story):
    """Sizes of what tasks read and make are known."""
    path, *_ = story
    history = journal.load(path)
    for task in history.tasks.values():
        if task.outcome == "success":
            for name in (*task.submitted.inputs, *task.submitted.shared, *task.outputs):
                assert history.files[name].size >= 0, name
            assert task.done.wall_s >= 0
            assert task.done.worker in history.workers
    [last] = [task for task in history.tasks.values() if task.submitted.label == "all"]
    assert min(history.files[name].size for name in last.submitted.inputs) >= 100_000
    assert {history.tasks[history.files[name].task].submitted.graph for name in last.submitted.inputs} == {1}


def test_killed_worker_shows_its_running_tasks(story):
    """A worker that was killed shows with what it was running."""
    path, *_ = story
    history = journal.load(path)
    [lost] = of(path, journal.WorkerDisconnectedRecord)[:1]
    assert lost.worker == 1
    assert history.workers[1].lost == lost
    assert history.workers[1].joined.cores == 2
    back = [r for r in of(path, journal.TaskReturnedRecord) if r.worker == 1]
    assert [r.reason for r in back] == ["the worker was lost"]
    task = history.tasks[back[0].task]
    assert [attempt.outcome for attempt in task.attempts] == ["back", "done"]
    assert task.attempts[1].worker == 2


def test_failures_say_what_they_were(story):
    path, *_ = story
    failures = {r.failure: r for r in of(path, journal.TaskFailedRecord)}
    assert set(failures) == {"exception", "crash"}
    assert "unsupported operand" in failures["exception"].reason
    crashed = journal.load(path).tasks[failures["crash"].task]
    assert [attempt.outcome for attempt in crashed.attempts] == ["crash", "crash"]


def test_tasks_record_resources_and_calls_functions(story):
    """Single tasks say what they used and function calls what they were."""
    path, *_ = story
    history = journal.load(path)
    single = next(
        task
        for task in history.tasks.values()
        if task.done and task.submitted.shared and not task.submitted.library
    )
    assert single.done.memory_mb > 0
    assert single.done.cpu_s > 0
    call = history.tasks[1]
    assert call.submitted.function == "add"
    assert call.submitted.library.startswith("lib-")


def test_recomputed_result_is_recorded(local_cluster):
    """A result that is lost and made again shows."""
    m = local_cluster.start_manager(DaskVine, run_info_path=local_cluster.path("info"))
    workers = local_cluster.start_workers(m, 2)
    made = PythonTask(bytes, 100_000)
    made.enable_temp_output()
    m.submit(made)
    finish(m)
    name = made.output_file.cache_name
    [holder] = scheduler_state(
        m, lambda scheduler: [worker.id for worker in scheduler.state.files[name].replicas]
    )
    workers[holder - 1].kill()
    wait_until(lambda: m.workers_connected == 1, "the manager to notice")
    m.submit(PythonTask(len, made.output_file))
    assert next(iter(finish(m).values())).output == 100_000
    m.close()
    task = journal.load(m.journal).tasks[made.id]
    assert task.reruns == 1
    assert [attempt.outcome for attempt in task.attempts] == ["done", "done"]


def test_non_text_names_are_escaped(local_cluster):
    """Names that are no text are written as well as they can be."""
    m = local_cluster.start_manager(DaskVine, run_info_path=local_cluster.path("info"))
    local_cluster.start_worker(m)
    assert m.get({"x\udc80": (sample_tasks.square, 3)}, "x\udc80", progress_disable=True) == 9
    m.close()
    [task] = of(m.journal, journal.TaskSubmittedRecord)
    assert task.label == "x?"


def test_defect_ends_journal_not_run(local_cluster, caplog, monkeypatch):
    """A defect ends the journal and not the run."""
    m = local_cluster.start_manager(run_info_path=local_cluster.path("info"))
    monkeypatch.setattr(m._journal_writer._recorder, "records_for", None)
    local_cluster.start_worker(m)
    m.submit(Task("echo fine"))
    assert m.wait(PATIENCE_S).output == "fine\n"
    m.close()
    assert "please report it" in caplog.text


# ---- when it cannot be written


def test_impossible_folder_warns_and_run_continues(local_cluster, caplog):
    """A folder that cannot be made gives a warning and the run goes on."""
    local_cluster.path("file").touch()
    m = local_cluster.start_manager(run_info_path=local_cluster.path("file") / "info")
    assert m.journal is None
    local_cluster.start_worker(m)
    m.submit(Task("echo fine"))
    assert m.wait(PATIENCE_S).output == "fine\n"
    warnings = [r.getMessage() for r in caplog.records if "journal" in r.getMessage()]
    assert len(warnings) == 1
    assert "continuing without a journal" in warnings[0]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full disk to write to")
def test_full_disk_warns_and_run_continues(local_cluster, caplog):
    """A disk that gets full gives a warning and the run goes on."""
    m = local_cluster.start_manager(run_info_path=local_cluster.path("info"))
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, m._journal_writer._file)
    os.close(full)
    local_cluster.start_worker(m)
    wait_until(lambda: m._journal_writer._file < 0, "the writer to notice")
    m.submit(Task("echo fine"))
    assert m.wait(PATIENCE_S).output == "fine\n"
    m.close()
    warnings = [r.getMessage() for r in caplog.records if "journal" in r.getMessage()]
    assert len(warnings) == 1
    assert "No space left on device" in warnings[0]


def test_slow_disk_ends_journal_with_notice(local_cluster, caplog, monkeypatch):
    """A disk that is too slow ends the journal and it says so."""
    monkeypatch.setattr("vinecore.journal.writer.MAX_QUEUED_ITEMS", 20)
    monkeypatch.setattr("vinecore.journal.writer.POLL_INTERVAL_S", 60.0)
    m = local_cluster.start_manager(run_info_path=local_cluster.path("info"))
    for number in range(30):
        m.declare_buffer(b"%d" % number)
    wait_until(lambda: m._journal_writer._overflow, "the bound to be reached")
    m.close()
    *_, last = journal.read(m.journal)
    assert isinstance(last, journal.JournalStoppedRecord)
    assert sum("journal ends" in r.getMessage() for r in caplog.records) == 1


def test_hanging_disk_delays_nothing(local_cluster, caplog, monkeypatch):
    """A disk that hangs holds up neither the run nor the end."""
    monkeypatch.setattr("vinecore.journal.writer.SHUTDOWN_TIMEOUT_S", 0.1)
    m = local_cluster.start_manager(run_info_path=local_cluster.path("info"))
    hangs, full = os.pipe()
    os.set_blocking(full, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(full, bytes(1 << 16))
    os.set_blocking(full, True)
    os.dup2(full, m._journal_writer._file)
    os.close(full)
    local_cluster.start_worker(m)
    m.submit(Task("echo fine"))
    assert m.wait(PATIENCE_S).output == "fine\n"
    m.close()
    assert "it is not complete" in caplog.text
    os.close(hangs)
    m._journal_writer._thread.join(PATIENCE_S)
    assert not m._journal_writer._thread.is_alive()


# ---- reading


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def test_record_kinds_can_be_selected(story):
    """Some kinds of records can be asked for."""
    path, _ends, _moved = story
    kinds = (journal.TaskDoneRecord, journal.WorkerDisconnectedRecord)
    assert list(journal.read(path, *kinds)) == of(path, journal.Header, *kinds)


def test_truncated_last_line_is_skipped(story, tmp_path):
    """Half a line at the end is left out."""
    path, *_ = story
    copy = tmp_path / journal.FILE
    lines = lines_of(path)
    copy.write_bytes(b"".join(lines)[:-5])
    assert list(journal.read(copy)) == list(journal.read(path))[:-1]
    assert not journal.load(tmp_path).closed


def test_growing_journal_can_be_read(local_cluster):
    """A journal that is still being written can be read."""
    m = local_cluster.start_manager(run_info_path=local_cluster.path("info"))
    local_cluster.start_worker(m)
    joined = wait_until(lambda: of(m.journal, journal.WorkerConnectedRecord), "the worker in the journal")
    assert joined[0].worker == worker_summaries(m)[0]["id"]


def test_another_version_is_refused(tmp_path):
    path = tmp_path / journal.FILE
    path.write_text(json.dumps({"kind": "journal", "t": 0, "version": 99, "daskvine": "7.0"}) + "\n")
    with pytest.raises(journal.InvalidJournalError, match=r"version 99.*reads version 3.*7\.0"):
        list(journal.read(path))


@pytest.mark.parametrize("text", ["hello\n", "[1]\n", '{"kind": "note", "t": 1}\n'])
def test_what_is_no_journal_is_refused(tmp_path, text):
    path = tmp_path / "thing"
    path.write_text(text)
    with pytest.raises(journal.InvalidJournalError, match="is not a journal"):
        list(journal.read(path))


def test_a_damaged_line_is_named(story, tmp_path):
    path, *_ = story
    lines = lines_of(path)
    lines[4] = b"{}\n"
    copy = tmp_path / "copy"
    copy.write_bytes(b"".join(lines))
    with pytest.raises(journal.InvalidJournalError, match="line 5"):
        list(journal.read(copy))


def test_missing_journal_is_reported(tmp_path):
    """Where there is no journal it says so."""
    with pytest.raises(FileNotFoundError, match="no journal in it"):
        list(journal.read(tmp_path))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list(journal.read(tmp_path / "nowhere"))


# ---- the report


def report(*arguments):
    ended = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return ended


def test_report_summarizes_run_and_failures(story):
    """The report says what was run and what went wrong."""
    path, *_ = story
    text = " ".join(report(path.parents[1]).output.split())
    assert "tasks 27: 24 done, 2 failed, 1 cancelled" in text
    assert "workers 2, at most 2 with 4 cores at a time; 1 lost" in text
    assert "bytes 8 8 " in text  # a category, of which 8 were submitted and 8 ran
    assert "from the manager 1 300 kB" in text
    assert "to the manager 1 200 kB" in text
    assert "tasks that ended with an exit code: 1 3" in text
    assert "workers that were lost: 1 worker 1, after" in text
    assert "unsupported operand" in text
    assert "2 times: task 16: its process exited with code 3" in text


def test_report_lists_several_graphs():
    """The report lists graphs if there are several."""
    records = [
        journal.Header(0.0, journal.VERSION, 0.0, "node", 1, "m", 1, "0", "3.11", {}),
        journal.GraphOpenedRecord(1.0, 1, "[green]tasks"),
        journal.TaskSubmittedRecord(1.0, 1, "x", graph=1),
        journal.GraphEndedRecord(3.0, 1, "success"),
        journal.GraphOpenedRecord(4.0, 2, "fit"),
        journal.GraphClosedRecord(4.5, 2),
        journal.GraphOpenedRecord(5.0, 3, "plot"),
    ]
    lines = [
        " ".join(line.split()) for line in format_run(ReportedRun(journal.History(records))).splitlines()
    ]
    assert "1 tasks 1 0 ms 2.0 s success" in lines
    assert "2 fit 0 3.0 s 500 ms cancelled" in lines
    assert "3 plot 0 4.0 s - unfinished" in lines


def test_the_command_is_there_for_the_shell(story):
    path, *_ = story
    command = [sys.executable, "-m", "vinecore.report", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert ended.stdout == report(path).output
    assert "makespan" in ended.stdout


def test_report_marks_running_run(story, tmp_path):
    """The report of a run that goes on says so."""
    path, *_ = story
    copy = tmp_path / journal.FILE
    copy.write_bytes(b"".join(lines_of(path)[:30]))
    text = report(tmp_path).output
    assert "it still runs, or was killed" in text
    assert "unfinished" in text


def test_report_of_empty_run_is_short(local_cluster):
    """The report of a run without tasks is short."""
    m = local_cluster.start_manager(run_info_path=local_cluster.path("info"))
    m.close()
    ended = report(m.journal)
    assert ended.exit_code == 0
    assert "none" in ended.output
    if find_spec("matplotlib"):
        drawn = report(m.journal, "--plot", local_cluster.path("run.png"))
        assert drawn.exit_code == 1
        assert "nothing to draw" in drawn.output


@pytest.mark.parametrize("most_bars", [5000, 3])
def test_a_run_is_drawn(story, tmp_path, monkeypatch, most_bars):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    monkeypatch.setattr("vinecore.report.plot.MAX_BARS", most_bars)
    path, *_ = story
    ended = report(path, "--plot", tmp_path / "run.png")
    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_plot_without_matplotlib_names_package(story, tmp_path, monkeypatch):
    """Without matplotlib a plot says what to install."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path, *_ = story
    ended = report(path, "--plot", tmp_path / "run.png")
    assert ended.exit_code == 1
    assert "pip install matplotlib" in ended.output


def test_report_of_missing_journal_says_so(tmp_path):
    """Where there is no journal the report says so."""
    ended = report(tmp_path)
    assert ended.exit_code == 1
    assert "no journal in it" in ended.output


# ---- the page


def described():
    """The fields of each kind with their defaults, as the page has them."""
    found = {}
    for section in re.split(r"^### ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|", section, flags=re.MULTILINE)
        found[section.split()[0]] = {name: default.strip().strip("`") for name, default in rows}
    return found


def default_of(field):
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if value is msgspec.NODEFAULT:
        return ""
    return "none" if value is None else msgspec.json.encode(value).decode().replace("0.0", "0")


def test_the_page_describes_every_kind_and_field():
    code = {
        record.__struct_config__.tag: {
            field.name: default_of(field) for field in msgspec.structs.fields(record) if field.name != "t"
        }
        for record in journal.RECORDS
    }
    assert described() == code


def test_corrupt_arrival_is_lost_and_refetched():
    """A file that came and was altered is lost and the next transfer of it goes on."""
    teller = JournalRecorder(0.0)
    hello = messages.Hello(1, "node", 1, "3.11", 1, 1000, 1000, 0, 7, [], {})
    fetch = messages.Fetch("data", 1 << 30, "manager", False, digest="d1")
    cached = messages.Cached("data", 1 << 30, "d1", verified=False)
    altered = messages.FetchFailed(
        "data", "manager", "altered", permanent=False, corrupt=True, was_cached=True
    )
    teller.records_for(0.0, [e.WorkerConnected(1, "node", hello)], [i.Send(1, fetch)])
    records = teller.records_for(1.0, [e.MessageReceived(1, cached)], [i.Send(1, fetch)])
    records += teller.records_for(2.0, [e.MessageReceived(1, altered)], [])
    records += teller.records_for(
        3.0, [e.MessageReceived(1, cached), e.MessageReceived(1, messages.Verified("data"))], []
    )
    kinds = [
        journal.TransferEndedRecord,
        journal.TransferStartedRecord,
        journal.FilesLostRecord,
        journal.TransferEndedRecord,
    ]
    assert [type(record) for record in records] == kinds
