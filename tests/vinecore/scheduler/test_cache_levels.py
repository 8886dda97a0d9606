"""How long workers keep files, and what they still have from before."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, SchedulerHarness, call, graph_outcomes, single, task_outcomes
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import file_lifetime
from vinecore.scheduler import instructions as i
from vinecore.scheduler.specs import FOREVER, TASK, WORKER, WORKFLOW


@pytest.fixture
def harness():
    return SchedulerHarness()


def brought(harness, name="data", size=LARGE, **spec):
    """A file that is declared, and on a worker because a task there needs it; gives the worker."""
    harness.declare_file(name, size=size, at_manager=True, **spec)
    worker = harness.connect_worker()
    harness.submit_tasks(single(1, name))
    if size == LARGE:
        harness.report_cached(worker, name)
    return worker


# ---- task


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_task_file_is_unlinked_when_its_task_is_over(harness, size):
    worker = brought(harness, size=size, level=TASK)
    assert harness.complete_task(1)
    assert (worker, "data") in harness.removed_objects()
    assert harness.replica_holders("data") == set()
    assert harness.file("data").at_manager


def test_a_task_file_stays_while_another_task_needs_it(harness):
    worker = brought(harness, level=TASK)
    harness.submit_tasks(single(2, "data"))
    harness.complete_task(1)
    assert harness.replica_holders("data") == {worker}
    harness.complete_task(2)
    assert harness.replica_holders("data") == set()


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_task_file_goes_however_its_task_ends(harness, end):
    worker = brought(harness, level=TASK)
    if end == "failed":
        harness.fail_task(1, "exception")
    else:
        harness.send_events(e.TasksCancelled([1]))
    assert (worker, "data") in harness.removed_objects()


def test_a_task_file_is_brought_again_for_the_next_task(harness):
    worker = brought(harness, level=TASK)
    harness.complete_task(1)
    harness.submit_tasks(single(2, "data"))
    assert harness.requested_fetches() == [(worker, "data", "manager")]


def test_an_output_of_level_task_stays_until_it_is_at_the_manager(harness):
    worker = harness.connect_worker()
    harness.declare_file("out", level=TASK)
    harness.submit_tasks(single(1, result="", outputs=("out",), wanted_at_manager=("out",)))
    harness.complete_task(1, outputs={"out": LARGE})
    assert harness.replica_holders("out") == {worker}
    harness.send_events(e.ObjectStored("out", LARGE))
    assert harness.removed_objects() == {(worker, "out")}
    assert task_outcomes(harness) == {1: "success"}


def test_what_a_library_needs_stays_while_it_is_installed(harness):
    harness.declare_file("data", size=10, at_manager=True, level=TASK)
    harness.install_library(files=("data",))
    worker = harness.connect_worker()
    harness.submit_tasks(call(1, "data"))
    harness.complete_task(1)
    assert harness.replica_holders("data") == {worker}


def test_the_environment_of_tasks_stays_for_the_warm_python_in_it(harness):
    harness.declare_file("env", size=LARGE, at_manager=True, directory=True, level=TASK)
    worker = harness.connect_worker()
    harness.submit_tasks(single(1, environment="env"))
    harness.report_cached(worker, "env")
    harness.complete_task(1)
    assert harness.replica_holders("env") == {worker}


# ---- workflow


def test_nothing_is_said_of_files_that_go_with_the_manager(harness):
    worker = brought(harness, level=WORKFLOW)
    harness.complete_task(1)
    assert harness.retained_objects(harness.log) == set()
    harness.send_events(e.FilesReleased(["data"], prune=False))
    assert harness.removed_objects() == {(worker, "data")}


# ---- longer


@pytest.mark.parametrize(("level", "forever"), [(WORKER, False), (FOREVER, True)])
@pytest.mark.parametrize("size", [10, LARGE])
def test_a_worker_is_told_once_what_to_keep_when_it_has_it(harness, level, forever, size):
    worker = brought(harness, size=size, level=level)
    assert harness.retained_objects(harness.log) == {(worker, "data", forever)}
    harness.complete_task(1)
    harness.submit_tasks(single(2, "data"))
    harness.complete_task(2)
    assert len(harness.messages_sent(m.RetainObjects, harness.log)) == 1


def test_a_result_may_be_kept_too(harness):
    worker = harness.connect_worker()
    harness.install_library()
    harness.submit_tasks(call(1, level=FOREVER, options={}))
    harness.complete_task(1)
    assert harness.retained_objects() == {(worker, "r1", True)}


def test_holders_are_told_when_a_file_is_declared_for_longer(harness):
    worker = brought(harness)
    harness.declare_file("data", size=LARGE, at_manager=True, level=WORKER)
    assert harness.retained_objects() == {(worker, "data", False)}
    harness.declare_file("data", size=LARGE, at_manager=True, level=FOREVER)
    assert harness.retained_objects() == {(worker, "data", True)}
    harness.declare_file("data", size=LARGE, at_manager=True, level=TASK)
    assert harness.file("data").level == FOREVER


def test_what_is_undeclared_stays_where_it_is_kept_and_is_known_when_it_is_declared_again(harness):
    worker = brought(harness, level=FOREVER)
    harness.complete_task(1)
    harness.send_events(e.FilesReleased(["data"], prune=False))
    assert harness.removed_objects() == set()
    assert harness.instructions_of(i.DropObject) == [i.DropObject("data")]
    harness.declare_file("data", size=LARGE, at_manager=True, level=FOREVER)
    assert harness.replica_holders("data") == {worker}
    harness.submit_tasks(single(2, "data"))
    assert harness.dispatched_tasks() == [2]
    assert harness.requested_fetches(harness.log) == [(worker, "data", "manager")]


def test_what_is_pruned_is_removed_whatever_its_level(harness):
    worker = brought(harness, level=FOREVER)
    harness.complete_task(1)
    harness.send_events(e.FilesReleased(["data"], prune=True))
    assert harness.messages_sent(m.PurgeObjects) == [(worker, m.PurgeObjects(["data"]))]
    assert harness.replica_holders("data") == set()


def test_what_was_undeclared_can_be_pruned(harness):
    worker = brought(harness, level=FOREVER)
    harness.complete_task(1)
    harness.send_events(e.FilesReleased(["data"], prune=False))
    harness.send_events(e.FilesReleased(["data"], prune=True))
    assert harness.messages_sent(m.PurgeObjects) == [(worker, m.PurgeObjects(["data"]))]
    assert "data" not in harness.tables.files


def test_a_kept_copy_that_a_worker_has_lost_is_removed_and_brought_again(harness):
    worker = brought(harness, level=FOREVER)
    harness.worker_sends(worker, m.ObjectsLost(["data"]))
    assert harness.messages_sent(m.PurgeObjects) == [(worker, m.PurgeObjects(["data"]))]
    assert harness.requested_fetches() == [(worker, "data", "manager")]


def test_what_is_kept_and_forgotten_in_one_breath_is_forgotten(harness):
    harness.declare_file("data", size=10, at_manager=True, level=FOREVER)
    worker = harness.connect_worker()
    harness.send_events(
        e.TasksSubmitted([single(1, "data")]),
        e.TasksCancelled([1]),
        e.FilesReleased(["data"], prune=True),
    )
    assert harness.messages_sent(m.RetainObjects) == []
    assert harness.replica_holders("data") == set()
    assert worker


# ---- what workers have from before


def test_what_a_worker_has_from_before_is_not_brought_again(harness):
    harness.declare_file("data", size=LARGE, at_manager=True)
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.PersistentObjects(["data"], [LARGE], ["1234"]))
    assert harness.replica_holders("data") == {worker}
    harness.submit_tasks(single(1, "data"))
    assert harness.dispatched_tasks() == [1]
    assert harness.requested_fetches(harness.log) == []


def test_what_nobody_has_declared_may_be_declared_later(harness):
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.PersistentObjects(["data", "tree"], [LARGE, -1], ["", ""]))
    assert harness.removed_objects(harness.log) == set()
    harness.declare_file("data", size=LARGE, at_manager=True)
    assert harness.replica_holders("data") == {worker}
    assert harness.file("tree").directory
    harness.send_events(e.FilesReleased(["data"], prune=False))
    assert harness.removed_objects() == {(worker, "data")}  # of this copy; what is kept stays


def test_what_nobody_has_declared_goes_with_its_worker(harness):
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.PersistentObjects(["data"], [LARGE], ["1234"]))
    harness.disconnect_worker(worker)
    assert harness.tables.files == {}
    assert harness.tables.evictable == {}


def test_what_nobody_has_declared_is_bounded_and_never_unlinked(harness, monkeypatch):
    monkeypatch.setattr(file_lifetime, "MAX_EVICTABLE_FILES", 10)
    worker = harness.connect_worker()
    names = [f"file-{n}" for n in range(25)]
    harness.worker_sends(worker, m.PersistentObjects(names, [LARGE] * 25, [""] * 25))
    assert list(harness.tables.files) == names[-10:]
    assert harness.removed_objects(harness.log) == set()
    assert len(harness.worker(worker).files) == 10


def test_a_task_that_waits_for_what_a_worker_has_from_before_runs(harness):
    harness.declare_file("temp")
    harness.install_library()
    harness.connect_worker()
    harness.open_graph()
    harness.submit_tasks(
        call(1, run=1, reader_count=1, level=FOREVER), call(2, "r1", run=1, wanted_at_manager=("r2",))
    )
    other = harness.connect_worker()
    assert harness.state_of(2) in ("waiting", "assigned")
    harness.worker_sends(other, m.PersistentObjects(["r1"], [LARGE], [""]))
    assert harness.file("r1").available
    assert harness.task(2).missing_inputs == 0
    harness.complete_task(2, payload=b"x")
    harness.complete_task(1, LARGE)
    harness.send_events(e.GraphSubmitted(1))
    assert graph_outcomes(harness) == {1: "success"}


def test_something_else_under_a_declared_name_is_not_believed(harness):
    harness.declare_file("data", size=LARGE, at_manager=True)
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.PersistentObjects(["data"], [LARGE + 1], [""]))
    assert harness.replica_holders("data") == set()
    assert harness.messages_sent(m.PurgeObjects) == [(worker, m.PurgeObjects(["data"]))]


def test_news_that_cross_a_fetch_change_nothing(harness):
    harness.declare_file("data", size=LARGE, at_manager=True)
    worker = harness.connect_worker()
    harness.submit_tasks(single(1, "data"))
    harness.worker_sends(worker, m.PersistentObjects(["data"], [LARGE], ["1234"]))
    assert harness.replica_holders("data") == set()
    harness.report_cached(worker, "data")
    assert harness.replica_holders("data") == {worker}


def test_a_found_file_serves_those_who_wait_for_a_source(harness):
    harness.open_graph()
    harness.install_library()
    first = harness.connect_worker(port=0)
    harness.submit_tasks(call(1, run=1, reader_count=1, level=FOREVER))
    harness.complete_task(1, LARGE)
    second = harness.connect_worker()
    harness.worker_sends(second, m.PersistentObjects(["r1"], [LARGE], [""]))
    assert harness.replica_holders("r1") == {first, second}
