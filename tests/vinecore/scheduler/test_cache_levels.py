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
def test_task_level_file_is_removed_after_task(harness, size):
    """A task file is unlinked when its task is over."""
    worker = brought(harness, size=size, level=TASK)
    assert harness.complete_task(1)
    assert (worker, "data") in harness.removed_objects()
    assert harness.replica_holders("data") == set()
    assert harness.file("data").at_manager


def test_task_level_file_stays_for_other_task(harness):
    """A task file stays while another task needs it."""
    worker = brought(harness, level=TASK)
    harness.submit_tasks(single(2, "data"))
    harness.complete_task(1)
    assert harness.replica_holders("data") == {worker}
    harness.complete_task(2)
    assert harness.replica_holders("data") == set()


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_task_level_file_goes_with_any_end(harness, end):
    """A task file goes however its task ends."""
    worker = brought(harness, level=TASK)
    if end == "failed":
        harness.fail_task(1, "exception")
    else:
        harness.send_events(e.TasksCancelled([1]))
    assert (worker, "data") in harness.removed_objects()


def test_task_level_file_is_fetched_again(harness):
    """A task file is brought again for the next task."""
    worker = brought(harness, level=TASK)
    harness.complete_task(1)
    harness.submit_tasks(single(2, "data"))
    assert harness.requested_fetches() == [(worker, "data", "manager")]


def test_task_level_output_stays_until_uploaded(harness):
    """An output of level task stays until it is at the manager."""
    worker = harness.connect_worker()
    harness.declare_file("out", level=TASK)
    harness.submit_tasks(single(1, result="", outputs=("out",), wanted_at_manager=("out",)))
    harness.complete_task(1, outputs={"out": LARGE})
    assert harness.replica_holders("out") == {worker}
    harness.send_events(e.ObjectStored("out", LARGE))
    assert harness.removed_objects() == {(worker, "out")}
    assert task_outcomes(harness) == {1: "success"}


def test_library_files_stay_while_installed(harness):
    """What a library needs stays while it is installed."""
    harness.declare_file("data", size=10, at_manager=True, level=TASK)
    harness.install_library(files=("data",))
    worker = harness.connect_worker()
    harness.submit_tasks(call(1, "data"))
    harness.complete_task(1)
    assert harness.replica_holders("data") == {worker}


def test_environment_stays_for_warm_python(harness):
    """The environment of tasks stays for the warm python in it."""
    harness.declare_file("env", size=LARGE, at_manager=True, directory=True, level=TASK)
    worker = harness.connect_worker()
    harness.submit_tasks(single(1, environment="env"))
    harness.report_cached(worker, "env")
    harness.complete_task(1)
    assert harness.replica_holders("env") == {worker}


# ---- workflow


def test_workflow_files_send_no_retain_message(harness):
    """Nothing is said of files that go with the manager."""
    worker = brought(harness, level=WORKFLOW)
    harness.complete_task(1)
    assert harness.retained_objects(harness.log) == set()
    harness.send_events(e.FilesReleased(["data"], prune=False))
    assert harness.removed_objects() == {(worker, "data")}


# ---- longer


@pytest.mark.parametrize(("level", "forever"), [(WORKER, False), (FOREVER, True)])
@pytest.mark.parametrize("size", [10, LARGE])
def test_retain_message_is_sent_once(harness, level, forever, size):
    """A worker is told once what to keep when it has it."""
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


def test_longer_level_is_told_to_holders(harness):
    """Holders are told when a file is declared for longer."""
    worker = brought(harness)
    harness.declare_file("data", size=LARGE, at_manager=True, level=WORKER)
    assert harness.retained_objects() == {(worker, "data", False)}
    harness.declare_file("data", size=LARGE, at_manager=True, level=FOREVER)
    assert harness.retained_objects() == {(worker, "data", True)}
    harness.declare_file("data", size=LARGE, at_manager=True, level=TASK)
    assert harness.file("data").level == FOREVER


def test_undeclared_persistent_file_stays_known(harness):
    """What is undeclared stays where it is kept and is known when it is declared again."""
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


def test_pruned_file_is_removed_at_any_level(harness):
    """What is pruned is removed whatever its level."""
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
    assert "data" not in harness.state.files


def test_lost_persistent_replica_is_fetched_again(harness):
    """A kept copy that a worker has lost is removed and brought again."""
    worker = brought(harness, level=FOREVER)
    harness.worker_sends(worker, m.ObjectsLost(["data"]))
    assert harness.messages_sent(m.PurgeObjects) == [(worker, m.PurgeObjects(["data"]))]
    assert harness.requested_fetches() == [(worker, "data", "manager")]


def test_retained_and_forgotten_file_is_forgotten(harness):
    """What is kept and forgotten in one breath is forgotten."""
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


def test_persistent_replica_is_not_fetched_again(harness):
    """What a worker has from before is not brought again."""
    harness.declare_file("data", size=LARGE, at_manager=True)
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.PersistentObjects(["data"], [LARGE], ["1234"]))
    assert harness.replica_holders("data") == {worker}
    harness.submit_tasks(single(1, "data"))
    assert harness.dispatched_tasks() == [1]
    assert harness.requested_fetches(harness.log) == []


def test_undeclared_replica_may_be_declared_later(harness):
    """What nobody has declared may be declared later."""
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.PersistentObjects(["data", "tree"], [LARGE, -1], ["", ""]))
    assert harness.removed_objects(harness.log) == set()
    harness.declare_file("data", size=LARGE, at_manager=True)
    assert harness.replica_holders("data") == {worker}
    assert harness.file("tree").directory
    harness.send_events(e.FilesReleased(["data"], prune=False))
    assert harness.removed_objects() == {(worker, "data")}  # of this copy; what is kept stays


def test_undeclared_replica_goes_with_worker(harness):
    """What nobody has declared goes with its worker."""
    worker = harness.connect_worker()
    harness.worker_sends(worker, m.PersistentObjects(["data"], [LARGE], ["1234"]))
    harness.disconnect_worker(worker)
    assert harness.state.files == {}
    assert harness.state.evictable == {}


def test_undeclared_replicas_are_bounded(harness, monkeypatch):
    """What nobody has declared is bounded and never unlinked."""
    monkeypatch.setattr(file_lifetime, "MAX_EVICTABLE_FILES", 10)
    worker = harness.connect_worker()
    names = [f"file-{n}" for n in range(25)]
    harness.worker_sends(worker, m.PersistentObjects(names, [LARGE] * 25, [""] * 25))
    assert list(harness.state.files) == names[-10:]
    assert harness.removed_objects(harness.log) == set()
    assert len(harness.worker(worker).files) == 10


def test_found_replica_starts_waiting_task(harness):
    """A task that waits for what a worker has from before runs."""
    harness.declare_file("temp")
    harness.install_library()
    harness.connect_worker()
    harness.open_graph()
    harness.submit_tasks(
        call(1, graph=1, reader_count=1, level=FOREVER), call(2, "r1", graph=1, wanted_at_manager=("r2",))
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


def test_different_object_under_name_is_rejected(harness):
    """Something else under a declared name is not believed."""
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


def test_found_replica_serves_stalled_readers(harness):
    """A found file serves those who wait for a source."""
    harness.open_graph()
    harness.install_library()
    first = harness.connect_worker(port=0)
    harness.submit_tasks(call(1, graph=1, reader_count=1, level=FOREVER))
    harness.complete_task(1, LARGE)
    second = harness.connect_worker()
    harness.worker_sends(second, m.PersistentObjects(["r1"], [LARGE], [""]))
    assert harness.replica_holders("r1") == {first, second}
