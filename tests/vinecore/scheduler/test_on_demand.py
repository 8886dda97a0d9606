"""Tasks that are entered as done, and woken only when somebody needs what they make and nobody has that."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, SchedulerHarness, call, graph_outcomes, single, task_outcomes
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import file_lifetime
from vinecore.scheduler import instructions as i
from vinecore.scheduler.diagnostics import STALL_REPORT_DELAY_S
from vinecore.scheduler.on_demand import INVENTORY_TIMEOUT_S, WORKER_GATHER_S


@pytest.fixture
def harness():
    harness = SchedulerHarness()
    harness.install_library()
    return harness


def numbered(name_of, number, *inputs, **spec):
    return call(number, *inputs, result=name_of, on_demand=True, content_addressed=True, **spec)


def line(first, *names, **last):
    """A chain of vertices that make these files, numbered from ``first`` on."""
    specs = [
        numbered(name, first + n, *names[max(n - 1, 0) : n], **(last if name == names[-1] else {}))
        for n, name in enumerate(names)
    ]
    return [
        spec._replace(wanted_at_manager=(names[-1],)) if spec.result == names[-1] else spec for spec in specs
    ]


def finish(harness, size=LARGE):
    """Let everything run to its end; give the names of what was made."""
    made = []
    while running := harness.assignments():  # some have been sent ahead: in the order of the graph
        number = min(running)
        made.append(harness.task(number).spec.result)
        harness.complete_task(number, size=size)
    for file in [f for f in harness.state.files.values() if f.uploading is not None]:
        harness.send_events(stored(file.name, size))
    return made


def stored(name, size):
    return e.ObjectStored(name, size)


def close(harness, run):
    return harness.send_events(e.GraphClosed(run))


def test_target_activates_all_it_needs(harness):
    """What is asked for wakes all that it needs."""
    harness.connect_worker()
    harness.compute_graph(*line(1, "a", "b", "c"))
    assert finish(harness) == ["a", "b", "c"]
    assert graph_outcomes(harness) == {1: "success"}
    assert (harness.graph().done, harness.graph().deferred, harness.graph().recomputed) == (3, 0, 0)


def test_nothing_runs_that_nobody_needs(harness):
    harness.connect_worker()
    harness.compute_graph(*line(1, "a", "b"), numbered("unasked", 9))
    assert finish(harness) == ["a", "b"]
    assert harness.graph().deferred == 1


def test_later_graph_finds_earlier_results(harness):
    """A later run finds what an earlier one has left."""
    worker = harness.connect_worker()
    harness.compute_graph(*line(1, "a", "b", "c"))
    finish(harness)
    close(harness, 1)
    harness.compute_graph(*line(11, "a", "b", "other"), number=2)
    assert finish(harness) == ["other"]
    assert graph_outcomes(harness)[2] == "success"
    assert (harness.graph(2).deferred, harness.graph(2).done) == (2, 3)
    assert harness.replica_holders("b") == {worker}


def test_present_target_is_only_uploaded(harness):
    """A target that is there is only brought."""
    harness.connect_worker()
    harness.compute_graph(*line(1, "a", "b"))
    finish(harness)
    close(harness, 1)
    harness.compute_graph(*line(11, "a", "b"), number=2)
    assert harness.messages_sent(m.Upload) == [(1, m.Upload("b"))]
    assert finish(harness) == []
    assert graph_outcomes(harness)[2] == "success"
    assert harness.graph(2).deferred == 2


def test_target_lost_in_upload_is_remade(harness):
    """A target that is lost while it is brought is made again."""
    first = harness.connect_worker()
    harness.compute_graph(*line(1, "a", "b"))
    finish(harness)
    close(harness, 1)
    harness.compute_graph(*line(11, "a", "b"), number=2)
    harness.disconnect_worker(first)
    harness.connect_worker()
    assert finish(harness) == ["a", "b"]
    assert graph_outcomes(harness)[2] == "success"


def test_lost_reused_result_is_remade_recursively(harness):
    """What was reused and is lost is made through all its generations."""
    first = harness.connect_worker()
    harness.compute_graph(*line(1, "a", "b", "c"))
    finish(harness)
    close(harness, 1)
    harness.compute_graph(*line(11, "a", "b", "d"), number=2)
    harness.disconnect_worker(first)
    harness.connect_worker()
    assert finish(harness) == ["a", "b", "d"]
    assert harness.graph(2).recomputed == 0


def test_spare_files_that_are_lost_are_forgotten(harness):
    worker = harness.connect_worker()
    harness.compute_graph(*line(1, "a", "b"))
    finish(harness)
    close(harness, 1)
    assert {file.name for file in harness.state.evictable} == {"a", "b"}
    harness.disconnect_worker(worker)
    assert not harness.state.evictable
    assert not {"a", "b"} & set(harness.state.files)


def test_manager_drops_results_of_closed_graph(harness):
    """The manager does not keep what a closed run has brought."""
    harness.connect_worker()
    harness.compute_graph(*line(1, "a"))
    finish(harness)
    assert i.DropObject("a") in close(harness, 1)
    assert harness.file("a").producer is None


def test_evictable_files_are_bounded_oldest_first(harness, monkeypatch):
    """Spare files are bounded and the oldest go first."""
    monkeypatch.setattr(file_lifetime, "MAX_EVICTABLE_FILES", 2)
    harness.connect_worker()
    harness.compute_graph(*line(1, "a", "b", "c"))
    finish(harness)
    close(harness, 1)
    assert {file.name for file in harness.state.evictable} == {"b", "c"}
    assert (1, "a") in harness.removed_objects()


def test_result_of_ordinary_vertex_is_dropped(harness):
    """The result of an ordinary vertex is not kept."""
    harness.connect_worker()
    harness.compute_graph(*line(1, "a"), call(5, "a", wanted_at_manager=("r5",), reader_count=0))
    finish(harness)
    close(harness, 1)
    assert "r5" not in harness.state.files


def test_graph_waits_for_inventory(harness):
    """A graph waits until a worker has said what it has."""
    worker = harness.connect_worker(features=[m.PERSISTENT_CACHE_FEATURE])
    harness.compute_graph(*line(1, "a", "b"))
    assert not harness.assignments()
    harness.worker_sends(worker, m.PersistentObjects(["b"], [LARGE], [""]), m.InventoryComplete())
    assert harness.messages_sent(m.Upload) == [(worker, m.Upload("b"))]
    assert finish(harness) == []
    assert harness.graph().deferred == 2


def test_graph_waits_for_first_worker(harness):
    """A graph waits for the first worker and says so."""
    harness.compute_graph(*line(1, "a"))
    harness.advance_time()
    harness.advance_time(STALL_REPORT_DELAY_S)
    assert harness.scheduler.stalled_reason == "no worker is connected"
    harness.connect_worker()
    assert harness.assignments()


def test_graph_waits_briefly_for_expected_workers(harness):
    """A graph waits for the workers that will be there but not for long."""
    harness.send_events(e.SettingChanged("expected-workers", 2))
    harness.connect_worker()
    harness.compute_graph(*line(1, "a"))
    assert not harness.assignments()
    harness.advance_time(WORKER_GATHER_S)
    assert harness.assignments()


def test_inventory_wait_has_timeout(harness):
    """A graph does not wait for ever for a worker that looks through much."""
    harness.connect_worker(features=[m.PERSISTENT_CACHE_FEATURE])
    harness.compute_graph(*line(1, "a"))
    harness.advance_time(1.0)
    assert not harness.assignments()
    harness.advance_time(INVENTORY_TIMEOUT_S)
    assert harness.assignments()


def test_graph_closed_before_activation_leaves_nothing(harness):
    """A graph that is closed before it is asked for leaves nothing."""
    harness.compute_graph(*line(1, "a"))
    close(harness, 1)
    harness.connect_worker()
    assert not harness.assignments()
    assert "a" not in harness.state.files


def test_deferred_single_task_wakes_for_reader(harness):
    """A single task that sleeps is woken by its first reader."""
    harness.connect_worker(cores=2)
    harness.submit_tasks(single(1, on_demand=True))
    assert not harness.assignments()
    harness.submit_tasks(single(2, "r1"))
    assert set(harness.assignments()) == {1}
    harness.complete_task(1, size=LARGE)
    harness.complete_task(2)
    assert task_outcomes(harness) == {2: "success"}


def test_failed_deferred_task_fails_reader(harness):
    """A sleeper that fails fails who needed it."""
    harness.connect_worker(cores=2)
    harness.submit_tasks(single(1, on_demand=True))
    harness.submit_tasks(single(2, "r1"))
    harness.fail_task(1, "exception", b"why")
    assert task_outcomes(harness) == {2: "input missing"}


def test_file_declared_twice_uses_first_maker(harness):
    """A file that is declared twice is made by the first of the two sleepers."""
    harness.connect_worker(cores=4)
    harness.submit_tasks(single(1, on_demand=True, result="made"))
    harness.submit_tasks(single(2, "made"))
    harness.submit_tasks(single(3, on_demand=True, result="made"))
    harness.submit_tasks(single(4, "made"))
    assert set(harness.assignments()) == {1}
    harness.fail_task(1, "exception", b"why")
    harness.submit_tasks(single(5, on_demand=True, result="made"))  # now there is nobody else
    harness.submit_tasks(single(6, "made"))
    assert set(harness.assignments()) == {5}


def test_calls_wait_for_made_library_files(harness):
    """Calls wait for what their library needs and a task makes."""
    harness.declare_file("made")
    harness.submit_tasks(single(1, on_demand=True, result="made"))
    harness.install_library("needs", files=("made",))
    worker = harness.connect_worker()  # the library would take all of it
    harness.submit_tasks(call(2, library="needs"), call(3, library="needs"))
    assert harness.assignments() == {1: worker}
    harness.complete_task(1, size=LARGE)
    assert 2 in harness.assignments()


def test_reader_gets_failure_of_deferred_task(harness):
    """Who reads what a sleeper has not made is told its last words."""
    harness.connect_worker()
    harness.submit_tasks(single(1, on_demand=True, outputs=("made",)))
    harness.submit_tasks(single(2, "made"))
    harness.complete_task(1, exit_code=3, output="no luck\n")
    (ended,) = [told for told in harness.log if isinstance(told, i.TaskFinished)]
    assert ended.info["reason"] == "t1 has ended without making made: exit code 3, no luck"
