"""A task may be submitted before the one that makes what it reads."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import LARGE, ONE_CORE, Vine, call, end_without_output, maker, outcomes, single
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.diagnostics import STALL_REPORT_DELAY_S


@pytest.fixture
def vine():
    vine = Vine()
    vine.join(cores=2)
    return vine


def missing(vine):
    texts = [told.text for told in vine.told(i.Stalled, vine.log)]
    return texts[-1] if texts else ""


@pytest.mark.parametrize("how", ["inputs", "mounts"])
def test_a_task_waits_for_who_makes_its_input(vine, how):
    vine.declare("temp", awaited=True)
    vine.submit(single(1, mounts=("temp",)) if how == "mounts" else single(1, "temp"))
    assert not vine.where()
    vine.submit(maker(2, "temp"))
    assert list(vine.where()) == [2]
    vine.done(2, outputs={"temp": LARGE})
    assert list(vine.where()) == [1]
    vine.done(1)
    assert outcomes(vine) == {1: "success", 2: "success"}
    assert not vine.mind.missing_files.stalled_reason()


def test_it_is_said_what_a_task_waits_for_and_no_longer_when_that_is_submitted(vine):
    vine.declare("temp", awaited=True)
    vine.submit(single(1, "temp"))
    vine.tick()
    vine.tick(STALL_REPORT_DELAY_S + 1)
    assert "t1 waits for a file that no task makes yet (temp): submit the task" in missing(vine)
    vine.submit(maker(2, "temp"))
    vine.tick()
    assert missing(vine) == ""


def test_nothing_is_said_as_long_as_something_runs(vine):
    vine.declare("temp", awaited=True)
    vine.submit(single(5), single(1, "temp"))
    vine.tick()
    vine.tick(STALL_REPORT_DELAY_S + 1)
    assert missing(vine) == ""


@pytest.mark.parametrize("end", ["failure", "cancel", "without it"])
def test_a_maker_that_fails_fails_who_waited_for_it(vine, end):
    vine.declare("temp", awaited=True)
    vine.submit(single(1, "temp"))
    vine.submit(maker(2, "temp"))
    end_without_output(vine, 2, end)
    assert outcomes(vine)[1] == "input missing"


def test_what_is_undeclared_is_not_waited_for_any_more(vine):
    vine.declare("temp", awaited=True)
    vine.submit(single(1, "temp"))
    vine.feed(e.FilesReleased(["temp"], prune=False))
    assert outcomes(vine) == {1: "input missing"}
    assert not vine.tables.tasks
    assert "temp" not in vine.tables.files
    vine.tick(10)
    assert missing(vine) == ""


def test_who_waits_can_be_cancelled(vine):
    vine.declare("temp", awaited=True)
    vine.submit(single(1, "temp"))
    vine.feed(e.TasksCancelled([1]))
    vine.tick(10)
    vine.tick(10)
    assert outcomes(vine) == {1: "cancelled"}
    assert missing(vine) == ""


def test_what_was_never_declared_or_is_not_there_is_an_error_at_once(vine):
    vine.declare("place")
    vine.submit(single(1, "never"), single(2, "place", "never"))
    assert outcomes(vine) == {1: "input missing", 2: "input missing"}
    reasons = {told.task: told.info["reason"] for told in vine.told(i.TaskFinished)}
    assert reasons[1] == "never: pruned or never declared, and no task makes it"
    assert "place: not there when it was declared" in reasons[2]


def test_what_was_pruned_is_made_again_and_what_nobody_can_make_again_is_an_error(vine):
    vine.declare("temp", awaited=True)
    vine.submit(maker(2, "temp"))
    vine.done(2, outputs={"temp": LARGE})
    vine.feed(e.FilesReleased(["temp"], prune=True))
    vine.submit(single(1, "temp"))
    assert list(vine.where()) == [2]
    vine.feed(e.FilesReleased(["temp"], prune=False))
    vine.feed(e.TasksCancelled([1, 2]))
    vine.submit(single(3, "temp"))
    assert outcomes(vine)[3] == "input missing"


def test_calls_and_on_demand_makers_and_archives_wait_as_well(vine):
    for name in ("temp", "packed", "seed"):
        vine.declare(name, awaited=True)
    vine.declare("unpacked", archive="packed", directory=True)
    vine.library()
    vine.submit(single(8, "seed", result="", outputs=("made",), on_demand=True))
    vine.submit(call(1, "temp"), single(3, "made"), single(4, "unpacked"))
    assert not vine.where()
    vine.submit(maker(5, "temp", "seed"), maker(6, "packed"))
    done = []
    while vine.where():
        number = min(vine.where())
        done.append(number)
        made = {5: ["temp", "seed"], 6: ["packed"], 8: ["made"]}.get(number, ())
        vine.done(number, outputs=dict.fromkeys(made, 10))
        for worker, unpack in vine.sent(m.Unpack):
            vine.cached(worker, unpack.name)
    assert set(done) == {1, 3, 4, 5, 6, 8}


def test_a_library_waits_for_the_maker_of_its_input(vine):
    vine.declare("temp", awaited=True)
    vine.library("lib", files=("temp",), request=ONE_CORE)
    vine.submit(call(1))
    assert not vine.where()
    vine.submit(maker(2, "temp"))
    vine.done(2, outputs={"temp": 10})
    assert list(vine.where()) == [1]
