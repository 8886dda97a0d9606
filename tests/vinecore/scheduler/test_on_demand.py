"""Tasks that are entered as done, and woken only when somebody needs what they make and nobody has that."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, Vine, call, endings, outcomes, single
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import file_lifetime
from vinecore.scheduler import instructions as i
from vinecore.scheduler.diagnostics import STALL_REPORT_DELAY_S
from vinecore.scheduler.on_demand import INVENTORY_TIMEOUT_S, WORKER_GATHER_S


@pytest.fixture
def vine():
    vine = Vine()
    vine.library()
    return vine


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


def finish(vine, size=LARGE):
    """Let everything run to its end; give the names of what was made."""
    made = []
    while running := vine.where():  # some have been sent ahead: in the order of the graph
        number = min(running)
        made.append(vine.task(number).spec.result)
        vine.done(number, size=size)
    for file in [f for f in vine.tables.files.values() if f.uploading is not None]:
        vine.feed(stored(file.name, size))
    return made


def stored(name, size):
    return e.ObjectStored(name, size)


def close(vine, run):
    return vine.feed(e.GraphClosed(run))


def test_what_is_asked_for_wakes_all_that_it_needs(vine):
    vine.join()
    vine.compute(*line(1, "a", "b", "c"))
    assert finish(vine) == ["a", "b", "c"]
    assert endings(vine) == {1: "success"}
    assert (vine.run().done, vine.run().deferred, vine.run().recomputed) == (3, 0, 0)


def test_nothing_runs_that_nobody_needs(vine):
    vine.join()
    vine.compute(*line(1, "a", "b"), numbered("unasked", 9))
    assert finish(vine) == ["a", "b"]
    assert vine.run().deferred == 1


def test_a_later_run_finds_what_an_earlier_one_has_left(vine):
    worker = vine.join()
    vine.compute(*line(1, "a", "b", "c"))
    finish(vine)
    close(vine, 1)
    vine.compute(*line(11, "a", "b", "other"), run=2)
    assert finish(vine) == ["other"]
    assert endings(vine)[2] == "success"
    assert (vine.run(2).deferred, vine.run(2).done) == (2, 3)
    assert vine.holders("b") == {worker}


def test_a_target_that_is_there_is_only_brought(vine):
    vine.join()
    vine.compute(*line(1, "a", "b"))
    finish(vine)
    close(vine, 1)
    vine.compute(*line(11, "a", "b"), run=2)
    assert vine.sent(m.Upload) == [(1, m.Upload("b"))]
    assert finish(vine) == []
    assert endings(vine)[2] == "success"
    assert vine.run(2).deferred == 2


def test_a_target_that_is_lost_while_it_is_brought_is_made_again(vine):
    first = vine.join()
    vine.compute(*line(1, "a", "b"))
    finish(vine)
    close(vine, 1)
    vine.compute(*line(11, "a", "b"), run=2)
    vine.lose(first)
    vine.join()
    assert finish(vine) == ["a", "b"]
    assert endings(vine)[2] == "success"


def test_what_was_reused_and_is_lost_is_made_through_all_its_generations(vine):
    first = vine.join()
    vine.compute(*line(1, "a", "b", "c"))
    finish(vine)
    close(vine, 1)
    vine.compute(*line(11, "a", "b", "d"), run=2)
    vine.lose(first)
    vine.join()
    assert finish(vine) == ["a", "b", "d"]
    assert vine.run(2).recomputed == 0


def test_spare_files_that_are_lost_are_forgotten(vine):
    worker = vine.join()
    vine.compute(*line(1, "a", "b"))
    finish(vine)
    close(vine, 1)
    assert {file.name for file in vine.tables.evictable} == {"a", "b"}
    vine.lose(worker)
    assert not vine.tables.evictable
    assert not {"a", "b"} & set(vine.tables.files)


def test_the_manager_does_not_keep_what_a_closed_run_has_brought(vine):
    vine.join()
    vine.compute(*line(1, "a"))
    finish(vine)
    assert i.DropObject("a") in close(vine, 1)
    assert vine.file("a").producer is None


def test_spare_files_are_bounded_and_the_oldest_go_first(vine, monkeypatch):
    monkeypatch.setattr(file_lifetime, "MAX_EVICTABLE_FILES", 2)
    vine.join()
    vine.compute(*line(1, "a", "b", "c"))
    finish(vine)
    close(vine, 1)
    assert {file.name for file in vine.tables.evictable} == {"b", "c"}
    assert (1, "a") in vine.unlinked()


def test_the_result_of_an_ordinary_vertex_is_not_kept(vine):
    vine.join()
    vine.compute(*line(1, "a"), call(5, "a", wanted_at_manager=("r5",), reader_count=0))
    finish(vine)
    close(vine, 1)
    assert "r5" not in vine.tables.files


def test_a_graph_waits_until_a_worker_has_said_what_it_has(vine):
    worker = vine.join(features=[m.PERSISTENT_CACHE_FEATURE])
    vine.compute(*line(1, "a", "b"))
    assert not vine.where()
    vine.say(worker, m.PersistentObjects(["b"], [LARGE], [""]), m.InventoryComplete())
    assert vine.sent(m.Upload) == [(worker, m.Upload("b"))]
    assert finish(vine) == []
    assert vine.run().deferred == 2


def test_a_graph_waits_for_the_first_worker_and_says_so(vine):
    vine.compute(*line(1, "a"))
    vine.tick()
    vine.tick(STALL_REPORT_DELAY_S)
    assert vine.mind.stalled_reason == "no worker is connected"
    vine.join()
    assert vine.where()


def test_a_graph_waits_for_the_workers_that_will_be_there_but_not_for_long(vine):
    vine.feed(e.SettingChanged("expected-workers", 2))
    vine.join()
    vine.compute(*line(1, "a"))
    assert not vine.where()
    vine.tick(WORKER_GATHER_S)
    assert vine.where()


def test_a_graph_does_not_wait_for_ever_for_a_worker_that_looks_through_much(vine):
    vine.join(features=[m.PERSISTENT_CACHE_FEATURE])
    vine.compute(*line(1, "a"))
    vine.tick(1.0)
    assert not vine.where()
    vine.tick(INVENTORY_TIMEOUT_S)
    assert vine.where()


def test_a_graph_that_is_closed_before_it_is_asked_for_leaves_nothing(vine):
    vine.compute(*line(1, "a"))
    close(vine, 1)
    vine.join()
    assert not vine.where()
    assert "a" not in vine.tables.files


def test_a_single_task_that_sleeps_is_woken_by_its_first_reader(vine):
    vine.join(cores=2)
    vine.submit(single(1, on_demand=True))
    assert not vine.where()
    vine.submit(single(2, "r1"))
    assert set(vine.where()) == {1}
    vine.done(1, size=LARGE)
    vine.done(2)
    assert outcomes(vine) == {2: "success"}


def test_a_sleeper_that_fails_fails_who_needed_it(vine):
    vine.join(cores=2)
    vine.submit(single(1, on_demand=True))
    vine.submit(single(2, "r1"))
    vine.failed(1, "exception", b"why")
    assert outcomes(vine) == {2: "input missing"}


def test_a_file_that_is_declared_twice_is_made_by_the_first_of_the_two_sleepers(vine):
    vine.join(cores=4)
    vine.submit(single(1, on_demand=True, result="made"))
    vine.submit(single(2, "made"))
    vine.submit(single(3, on_demand=True, result="made"))
    vine.submit(single(4, "made"))
    assert set(vine.where()) == {1}
    vine.failed(1, "exception", b"why")
    vine.submit(single(5, on_demand=True, result="made"))  # now there is nobody else
    vine.submit(single(6, "made"))
    assert set(vine.where()) == {5}


def test_calls_wait_for_what_their_library_needs_and_a_task_makes(vine):
    vine.declare("made")
    vine.submit(single(1, on_demand=True, result="made"))
    vine.library("needs", files=("made",))
    worker = vine.join()  # the library would take all of it
    vine.submit(call(2, library="needs"), call(3, library="needs"))
    assert vine.where() == {1: worker}
    vine.done(1, size=LARGE)
    assert 2 in vine.where()


def test_who_reads_what_a_sleeper_has_not_made_is_told_its_last_words(vine):
    vine.join()
    vine.submit(single(1, on_demand=True, outputs=("made",)))
    vine.submit(single(2, "made"))
    vine.done(1, exit_code=3, output="no luck\n")
    (ended,) = [told for told in vine.log if isinstance(told, i.TaskFinished)]
    assert ended.info["reason"] == "t1 has ended without making made: exit code 3, no luck"
