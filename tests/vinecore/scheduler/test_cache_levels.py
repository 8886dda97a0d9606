"""How long workers keep files, and what they still have from before."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, Vine, call, endings, outcomes, single
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import file_lifetime
from vinecore.scheduler import instructions as i
from vinecore.scheduler.specs import FOREVER, TASK, WORKER, WORKFLOW


@pytest.fixture
def vine():
    return Vine()


def brought(vine, name="data", size=LARGE, **spec):
    """A file that is declared, and on a worker because a task there needs it; gives the worker."""
    vine.declare(name, size=size, at_manager=True, **spec)
    worker = vine.join()
    vine.submit(single(1, name))
    if size == LARGE:
        vine.cached(worker, name)
    return worker


# ---- task


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_task_file_is_unlinked_when_its_task_is_over(vine, size):
    worker = brought(vine, size=size, level=TASK)
    assert vine.done(1)
    assert (worker, "data") in vine.unlinked()
    assert vine.holders("data") == set()
    assert vine.file("data").at_manager


def test_a_task_file_stays_while_another_task_needs_it(vine):
    worker = brought(vine, level=TASK)
    vine.submit(single(2, "data"))
    vine.done(1)
    assert vine.holders("data") == {worker}
    vine.done(2)
    assert vine.holders("data") == set()


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_task_file_goes_however_its_task_ends(vine, end):
    worker = brought(vine, level=TASK)
    if end == "failed":
        vine.failed(1, "exception")
    else:
        vine.feed(e.TasksCancelled([1]))
    assert (worker, "data") in vine.unlinked()


def test_a_task_file_is_brought_again_for_the_next_task(vine):
    worker = brought(vine, level=TASK)
    vine.done(1)
    vine.submit(single(2, "data"))
    assert vine.fetches() == [(worker, "data", "manager")]


def test_an_output_of_level_task_stays_until_it_is_at_the_manager(vine):
    worker = vine.join()
    vine.declare("out", level=TASK)
    vine.submit(single(1, result="", outputs=("out",), wanted_at_manager=("out",)))
    vine.done(1, outputs={"out": LARGE})
    assert vine.holders("out") == {worker}
    vine.feed(e.ObjectStored("out", LARGE))
    assert vine.unlinked() == {(worker, "out")}
    assert outcomes(vine) == {1: "success"}


def test_what_a_library_needs_stays_while_it_is_installed(vine):
    vine.declare("data", size=10, at_manager=True, level=TASK)
    vine.library(files=("data",))
    worker = vine.join()
    vine.submit(call(1, "data"))
    vine.done(1)
    assert vine.holders("data") == {worker}


def test_the_environment_of_tasks_stays_for_the_warm_python_in_it(vine):
    vine.declare("env", size=LARGE, at_manager=True, directory=True, level=TASK)
    worker = vine.join()
    vine.submit(single(1, environment="env"))
    vine.cached(worker, "env")
    vine.done(1)
    assert vine.holders("env") == {worker}


# ---- workflow


def test_nothing_is_said_of_files_that_go_with_the_manager(vine):
    worker = brought(vine, level=WORKFLOW)
    vine.done(1)
    assert vine.retained(vine.log) == set()
    vine.feed(e.FilesReleased(["data"], prune=False))
    assert vine.unlinked() == {(worker, "data")}


# ---- longer


@pytest.mark.parametrize(("level", "forever"), [(WORKER, False), (FOREVER, True)])
@pytest.mark.parametrize("size", [10, LARGE])
def test_a_worker_is_told_once_what_to_keep_when_it_has_it(vine, level, forever, size):
    worker = brought(vine, size=size, level=level)
    assert vine.retained(vine.log) == {(worker, "data", forever)}
    vine.done(1)
    vine.submit(single(2, "data"))
    vine.done(2)
    assert len(vine.sent(m.RetainObjects, vine.log)) == 1


def test_a_result_may_be_kept_too(vine):
    worker = vine.join()
    vine.library()
    vine.submit(call(1, level=FOREVER, options={}))
    vine.done(1)
    assert vine.retained() == {(worker, "r1", True)}


def test_holders_are_told_when_a_file_is_declared_for_longer(vine):
    worker = brought(vine)
    vine.declare("data", size=LARGE, at_manager=True, level=WORKER)
    assert vine.retained() == {(worker, "data", False)}
    vine.declare("data", size=LARGE, at_manager=True, level=FOREVER)
    assert vine.retained() == {(worker, "data", True)}
    vine.declare("data", size=LARGE, at_manager=True, level=TASK)
    assert vine.file("data").level == FOREVER


def test_what_is_undeclared_stays_where_it_is_kept_and_is_known_when_it_is_declared_again(vine):
    worker = brought(vine, level=FOREVER)
    vine.done(1)
    vine.feed(e.FilesReleased(["data"], prune=False))
    assert vine.unlinked() == set()
    assert vine.told(i.DropObject) == [i.DropObject("data")]
    vine.declare("data", size=LARGE, at_manager=True, level=FOREVER)
    assert vine.holders("data") == {worker}
    vine.submit(single(2, "data"))
    assert vine.started() == [2]
    assert vine.fetches(vine.log) == [(worker, "data", "manager")]


def test_what_is_pruned_is_removed_whatever_its_level(vine):
    worker = brought(vine, level=FOREVER)
    vine.done(1)
    vine.feed(e.FilesReleased(["data"], prune=True))
    assert vine.sent(m.PurgeObjects) == [(worker, m.PurgeObjects(["data"]))]
    assert vine.holders("data") == set()


def test_what_was_undeclared_can_be_pruned(vine):
    worker = brought(vine, level=FOREVER)
    vine.done(1)
    vine.feed(e.FilesReleased(["data"], prune=False))
    vine.feed(e.FilesReleased(["data"], prune=True))
    assert vine.sent(m.PurgeObjects) == [(worker, m.PurgeObjects(["data"]))]
    assert "data" not in vine.tables.files


def test_a_kept_copy_that_a_worker_has_lost_is_removed_and_brought_again(vine):
    worker = brought(vine, level=FOREVER)
    vine.say(worker, m.ObjectsLost(["data"]))
    assert vine.sent(m.PurgeObjects) == [(worker, m.PurgeObjects(["data"]))]
    assert vine.fetches() == [(worker, "data", "manager")]


def test_what_is_kept_and_forgotten_in_one_breath_is_forgotten(vine):
    vine.declare("data", size=10, at_manager=True, level=FOREVER)
    worker = vine.join()
    vine.feed(
        e.TasksSubmitted([single(1, "data")]),
        e.TasksCancelled([1]),
        e.FilesReleased(["data"], prune=True),
    )
    assert vine.sent(m.RetainObjects) == []
    assert vine.holders("data") == set()
    assert worker


# ---- what workers have from before


def test_what_a_worker_has_from_before_is_not_brought_again(vine):
    vine.declare("data", size=LARGE, at_manager=True)
    worker = vine.join()
    vine.say(worker, m.PersistentObjects(["data"], [LARGE], ["1234"]))
    assert vine.holders("data") == {worker}
    vine.submit(single(1, "data"))
    assert vine.started() == [1]
    assert vine.fetches(vine.log) == []


def test_what_nobody_has_declared_may_be_declared_later(vine):
    worker = vine.join()
    vine.say(worker, m.PersistentObjects(["data", "tree"], [LARGE, -1], ["", ""]))
    assert vine.unlinked(vine.log) == set()
    vine.declare("data", size=LARGE, at_manager=True)
    assert vine.holders("data") == {worker}
    assert vine.file("tree").directory
    vine.feed(e.FilesReleased(["data"], prune=False))
    assert vine.unlinked() == {(worker, "data")}  # of this copy; what is kept stays


def test_what_nobody_has_declared_goes_with_its_worker(vine):
    worker = vine.join()
    vine.say(worker, m.PersistentObjects(["data"], [LARGE], ["1234"]))
    vine.lose(worker)
    assert vine.tables.files == {}
    assert vine.tables.evictable == {}


def test_what_nobody_has_declared_is_bounded_and_never_unlinked(vine, monkeypatch):
    monkeypatch.setattr(file_lifetime, "MAX_EVICTABLE_FILES", 10)
    worker = vine.join()
    names = [f"file-{n}" for n in range(25)]
    vine.say(worker, m.PersistentObjects(names, [LARGE] * 25, [""] * 25))
    assert list(vine.tables.files) == names[-10:]
    assert vine.unlinked(vine.log) == set()
    assert len(vine.worker(worker).files) == 10


def test_a_task_that_waits_for_what_a_worker_has_from_before_runs(vine):
    vine.declare("temp")
    vine.library()
    vine.join()
    vine.open()
    vine.submit(
        call(1, run=1, reader_count=1, level=FOREVER), call(2, "r1", run=1, wanted_at_manager=("r2",))
    )
    other = vine.join()
    assert vine.state(2) in ("waiting", "assigned")
    vine.say(other, m.PersistentObjects(["r1"], [LARGE], [""]))
    assert vine.file("r1").available
    assert vine.task(2).missing_inputs == 0
    vine.done(2, payload=b"x")
    vine.done(1, LARGE)
    vine.feed(e.GraphSubmitted(1))
    assert endings(vine) == {1: "success"}


def test_something_else_under_a_declared_name_is_not_believed(vine):
    vine.declare("data", size=LARGE, at_manager=True)
    worker = vine.join()
    vine.say(worker, m.PersistentObjects(["data"], [LARGE + 1], [""]))
    assert vine.holders("data") == set()
    assert vine.sent(m.PurgeObjects) == [(worker, m.PurgeObjects(["data"]))]


def test_news_that_cross_a_fetch_change_nothing(vine):
    vine.declare("data", size=LARGE, at_manager=True)
    worker = vine.join()
    vine.submit(single(1, "data"))
    vine.say(worker, m.PersistentObjects(["data"], [LARGE], ["1234"]))
    assert vine.holders("data") == set()
    vine.cached(worker, "data")
    assert vine.holders("data") == {worker}


def test_a_found_file_serves_those_who_wait_for_a_source(vine):
    vine.open()
    vine.library()
    first = vine.join(port=0)
    vine.submit(call(1, run=1, reader_count=1, level=FOREVER))
    vine.done(1, LARGE)
    second = vine.join()
    vine.say(second, m.PersistentObjects(["r1"], [LARGE], [""]))
    assert vine.holders("r1") == {first, second}
