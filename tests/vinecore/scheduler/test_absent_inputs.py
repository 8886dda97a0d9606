"""What was not there when it was declared is waited for until the user waits; nobody waits for itself."""

from __future__ import annotations

import pytest

from tests.harness.scheduler import ONE_CORE, Vine, call, end_without_output, endings, maker, outcomes, single
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i

TEXT = (
    "did not exist when it was declared, and no submitted task makes it: check the path, or submit the task"
)


@pytest.fixture
def vine():
    vine = Vine()
    vine.join(cores=4)
    vine.declare("place", awaited=True, absent=True)
    return vine


def reasons(vine):
    return {told.task: told.info.get("reason", "") for told in vine.told(i.TaskFinished, vine.log)}


def reader(vine, how):
    """Submit a task, 1, that needs the place in some way."""
    if how == "library":
        vine.library("lib", files=("place",), request=ONE_CORE)
        return vine.submit(call(1))
    if how == "environment of a library":
        vine.declare("unpacked", archive="place", directory=True)
        vine.library("lib", environment="unpacked", request=ONE_CORE)
        return vine.submit(call(1))
    if how == "environment":
        return vine.submit(single(1, environment="place"))
    if how == "archive":
        vine.declare("unpacked", archive="place", directory=True)
        return vine.submit(single(1, "unpacked"))
    if how == "mini task":
        vine.declare("made")
        vine.submit(single(9, "place", result="", outputs=("made",), on_demand=True))
        return vine.submit(single(1, "made"))
    if how == "mount":
        return vine.submit(single(1, mounts=("place",)))
    return vine.submit(single(1, "place"))


WAYS = ["input", "mount", "environment", "archive", "mini task", "library", "environment of a library"]


@pytest.mark.parametrize("how", WAYS)
def test_its_maker_may_be_submitted_later(vine, how):
    reader(vine, how)
    assert not outcomes(vine)
    vine.submit(maker(2, "place"))
    vine.feed(e.Waited())
    assert list(vine.where()) == [2]
    assert not outcomes(vine)
    vine.failed(2, "exception")
    assert outcomes(vine) == {1: "input missing", 2: "exception"}


@pytest.mark.parametrize("how", WAYS)
def test_who_reads_it_fails_when_the_user_waits(vine, how):
    assert len(vine.told(i.InputsAbsent, reader(vine, how))) == 1
    vine.feed(e.Waited())
    assert outcomes(vine) == {1: "input missing"}
    assert "place: " in reasons(vine)[1]
    assert TEXT in reasons(vine)[1]
    assert not vine.tables.tasks


def test_it_needs_no_worker_to_fail():
    vine = Vine()
    vine.declare("place", awaited=True, absent=True)
    vine.submit(single(1, "place"))
    vine.feed(e.Waited())
    assert outcomes(vine) == {1: "input missing"}


def test_it_is_asked_once_whether_the_user_waits_and_again_after_that(vine):
    assert len(vine.told(i.InputsAbsent, vine.submit(single(1, "place"), single(2, "place")))) == 1
    assert not vine.told(i.InputsAbsent, vine.submit(single(3, "place")))
    vine.feed(e.Waited())
    assert set(outcomes(vine)) == {1, 2, 3}
    assert vine.told(i.InputsAbsent, vine.submit(single(4, "place")))
    vine.feed(e.Waited())
    assert outcomes(vine)[4] == "input missing"


def test_outputs_and_what_is_there_ask_for_nothing(vine):
    vine.declare("data", at_manager=True, size=10)
    assert not vine.told(
        i.InputsAbsent, vine.submit(maker(1, "place"), single(2, "data"), single(3, "place"))
    )


@pytest.mark.parametrize("end", ["failure", "cancel", "without it", "refused"])
def test_a_maker_that_does_not_make_it_after_the_wait_fails_who_waited(vine, end):
    vine.submit(single(1, "place"))
    if end == "refused":
        vine.submit(call(2, library="nowhere", outputs=("place",)))
        assert outcomes(vine) == {1: "input missing", 2: "library"}
        assert "t2 was to make it, but library nowhere is not installed" in reasons(vine)[1]
        vine.submit(single(3, "place"))
        assert outcomes(vine)[3] == "input missing"
        return
    vine.submit(maker(2, "place"))
    vine.feed(e.Waited())
    end_without_output(vine, 2, end)
    assert outcomes(vine)[1] == "input missing"


def test_what_the_user_waits_for_by_another_name_goes_on_waiting(vine):
    vine.declare("temp", awaited=True)
    vine.submit(single(1, "place"), single(2, "temp"))
    vine.feed(e.Waited())
    assert outcomes(vine) == {1: "input missing"}
    vine.submit(maker(3, "temp"))
    vine.done(3, outputs={"temp": 10})
    assert list(vine.where()) == [2]


def test_who_waits_can_be_cancelled_and_what_it_waited_for_undeclared(vine):
    vine.submit(single(1, "place"), single(2, "place"))
    vine.feed(e.TasksCancelled([1]))
    vine.feed(e.FilesReleased(["place"], prune=False))
    vine.feed(e.Waited())
    assert outcomes(vine) == {1: "cancelled", 2: "input missing"}
    assert "place" not in vine.tables.files
    assert not vine.mind.missing_files.awaited


@pytest.mark.parametrize("reuse", [False, True])
def test_a_graph_that_reads_it_fails_with_the_same_words(vine, reuse):
    vine.compute(single(1, "place", on_demand=reuse, content_addressed=reuse, wanted_at_manager=("r1",)))
    vine.tick(60)
    assert not endings(vine)
    vine.feed(e.Waited())
    [ended] = vine.told(i.GraphFinished)
    assert ended.outcome == "input missing"
    assert TEXT in ended.info["reason"]


def test_a_graph_laid_down_before_its_file_was_undeclared_says_the_same(vine):
    vine.open()
    vine.submit(single(1, "place", run=1, on_demand=True, content_addressed=True, wanted_at_manager=("r1",)))
    vine.feed(e.FilesReleased(["place"], prune=False))
    vine.feed(e.GraphSubmitted(1))
    vine.tick(60)
    [ended] = vine.told(i.GraphFinished, vine.log)
    assert TEXT in ended.info["reason"]


def test_a_task_that_reads_what_it_makes_fails(vine):
    vine.submit(maker(1, "place", mounts=("place",)))
    assert outcomes(vine) == {1: "input missing"}
    assert "is made by the same task that reads it" in reasons(vine)[1]


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("length", [2, 3, 50])
def test_tasks_that_wait_for_each_other_in_a_circle_fail(vine, absent, length):
    for number in range(length):
        vine.declare(f"f{number}", awaited=True, absent=absent)
    for number in range(length):
        vine.submit(maker(number + 1, f"f{number}", mounts=(f"f{(number + 1) % length}",)))
    assert outcomes(vine) == dict.fromkeys(range(1, length + 1), "input missing")
    assert "no task of such a circle can begin" in reasons(vine)[length]
    assert not vine.tables.tasks


def test_a_circle_over_a_mini_task_fails(vine):
    vine.submit(single(9, "place", result="", outputs=("made",), on_demand=True))
    vine.submit(maker(1, "place", mounts=("made",)))
    assert outcomes(vine) == {1: "input missing"}
    assert "no task of such a circle can begin" in reasons(vine)[1]


def test_tasks_that_are_submitted_last_first_are_no_circle(vine):
    for number in range(50):
        vine.declare(f"f{number}", awaited=True, absent=True)
    for number in reversed(range(1, 50)):
        vine.submit(maker(number, f"f{number}", mounts=(f"f{number - 1}",)))
    vine.submit(maker(50, "f0"))
    vine.feed(e.Waited())
    assert list(vine.where()) == [50]
