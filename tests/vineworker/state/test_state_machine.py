"""The worker's mind: events in, instructions out, no process, socket or file."""

from __future__ import annotations

import pytest
from vineworker.slot_protocol import MAX_IN_FLIGHT, Reply
from vineworker.state import events as e
from vineworker.state import instructions as i
from vineworker.state import state_machine as w
from vineworker.state.libraries import MAX_IDLE_EXITS
from vineworker.state.objects import MAX_OBJECTS_PER_MESSAGE

from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m

LARGE = INLINE_LIMIT + 1


class Worker:
    """A worker's state machine, and what it asked for in answer to the last events."""

    def __init__(self):
        self.state = w.WorkerStateMachine()
        self.out = []

    def feed(self, *events):
        self.out = self.state.handle(events)
        return self.out

    def library(self, name="lib", slots=1, **more):
        """A library that is up."""
        self.feed(m.PutObject("setup", b"s"), m.Library(name, "setup", "", slots, "direct", more))
        return self.feed(e.ForkServerReady(name, 0.1, {"numpy": "2"}))

    def told(self, kind):
        return [x for x in self.out if isinstance(x, kind)]

    def said(self, kind):
        return [x.message for x in self.told(i.SendMessage) if isinstance(x.message, kind)]

    def sent(self):
        """Slot and task of the calls that were given to slots."""
        return [(x.slot, x.run.task) for x in self.told(i.SendCall)]

    def reply(self, slot, *tasks, size=1, wall_s=0.01, kind="done"):
        payload = b"x" * size if size <= INLINE_LIMIT else b""
        return self.feed(e.CallsReturned(slot, [Reply(t, kind, size, wall_s, {}, payload) for t in tasks]))

    def die(self, slot, running=-1):
        return self.feed(e.SlotExited(slot, running, {"reason": "signal 9"}))


@pytest.fixture
def worker():
    return Worker()


def call(task, *inputs, shared=(), keep=False, library="lib", **options):
    return m.RunTask(task, library, "f", list(shared), list(inputs), f"r{task}", keep, options, b"args")


def command(task, *mounts, **options):
    if mounts:
        options["mounts"] = [[name, name, False] for name in mounts]
    return m.RunTask(task, "", "", [], [], "", False, {"command": "true", **options}, b"")


def put(*names):
    return [m.PutObject(name, b"x") for name in names]


# ---- objects


def test_a_small_object_is_kept(worker):
    assert worker.feed(m.PutObject("a", b"abc")) == [i.StoreBytes("a", b"abc")]
    assert worker.state.objects == {"a": 3}


def test_an_object_is_fetched_and_announced_when_it_is_here(worker):
    fetch = m.Fetch("a", 10, "host:1", False)
    assert worker.feed(fetch) == [i.StartFetch(fetch)]
    assert worker.feed(e.ObjectArrived("a", 10, True)) == [i.SendMessage(m.Cached("a", 10))]


def test_an_archive_that_is_here_is_unpacked_at_once(worker):
    unpack = m.Unpack("folder", "archive")
    worker.feed(*put("archive"))
    assert worker.feed(unpack) == [i.StartUnpack(unpack)]


def test_an_archive_that_is_on_its_way_is_unpacked_when_it_arrives(worker):
    first, second = m.Unpack("one", "archive"), m.Unpack("two", "archive")
    assert worker.feed(first, second) == []
    worker.feed(e.ObjectArrived("archive", 5, True))
    assert worker.told(i.StartUnpack) == [i.StartUnpack(first), i.StartUnpack(second)]


def test_an_object_is_brought_to_the_manager_if_it_is_here(worker):
    worker.feed(*put("a"))
    assert worker.feed(m.Upload("a")) == [i.StartUpload("a")]
    (failed,) = worker.feed(m.Upload("b"))
    assert failed == i.SendMessage(m.UploadFailed("b", "this worker does not have it"))


# ---- what is here and not compared yet


def arrive(worker, name="a", size=LARGE):
    """All of a file is here; gives the arrival."""
    arrival = e.ObjectArrived(name, size, True, "d1", compared=False)
    worker.feed(arrival)
    return arrival


def altered(name="a"):
    return m.FetchFailed(name, "host:1", "it was altered", permanent=False, corrupt=True, was_cached=True)


def test_a_file_is_announced_before_it_is_compared_and_nothing_uses_it_before_that(worker):
    worker.library()
    other = m.Library("other", "a", "", 1, "direct", {})
    unpack = m.Unpack("folder", "a")
    environment = call(5, library="", environment="a")
    early = [call(1, "a"), call(2, shared=["a"]), command(3, "a"), call(4, "a", library="")]
    worker.feed(*early, unpack, m.Fetch("a", LARGE, "host:1", False, digest="d1"))
    arrival = arrive(worker)
    assert worker.out == [i.SendMessage(m.Cached("a", LARGE, "d1", verified=False))]
    assert worker.feed(call(6, "a"), m.Unpack("late", "a"), other, environment) == []
    assert worker.feed(m.RetainObjects(["a"], True, ["d1"])) == []
    worker.feed(e.ObjectVerified(arrival))
    assert worker.said(m.Verified) == [m.Verified("a")]
    assert worker.told(i.PersistObject) == [i.PersistObject("a", True, "d1")]
    assert [x.unpack.name for x in worker.told(i.StartUnpack)] == ["folder", "late"]
    assert {x.host for x in worker.told(i.StartForkServer)} == {"python:", "python:a", "other"}
    assert [x.run.task for x in worker.told(i.StartProcess)] == [3]
    assert worker.sent() == [(1, 1)]
    assert worker.state.objects["a"] == LARGE


def test_a_file_that_turns_out_to_be_altered_was_never_here_and_is_waited_for(worker):
    worker.feed(command(1, "a"))
    arrival = arrive(worker)
    worker.feed(m.RetainObjects(["a"], True, ["d1"]))
    assert worker.feed(e.ObjectVerified(arrival, altered())) == [i.SendMessage(altered())]
    assert "a" not in worker.state.objects
    fetch = m.Fetch("a", LARGE, "host:2", False, digest="d1")
    assert worker.feed(fetch) == [i.StartFetch(fetch)]
    again = arrive(worker)
    worker.feed(e.ObjectVerified(again))
    assert [x.run.task for x in worker.told(i.StartProcess)] == [1]
    assert not worker.told(i.PersistObject), "what is to be kept of the new one will be said"


def test_a_file_that_is_not_compared_yet_is_brought_to_the_manager_who_compares(worker):
    arrive(worker)
    assert worker.feed(m.Upload("a", "d1")) == [i.StartUpload("a", "d1")]


def test_a_file_that_is_not_compared_yet_is_not_fetched_again(worker):
    arrive(worker)
    fetch = m.Fetch("a", LARGE, "host:2", False, digest="d1")
    assert worker.feed(fetch) == [i.SendMessage(m.Cached("a", LARGE, "d1", verified=False))]


@pytest.mark.parametrize("forget", [m.RemoveObjects, m.PurgeObjects])
def test_what_was_forgotten_while_it_was_compared_is_gone_and_its_comparison_counts_for_no_other(
    worker, forget
):
    first = arrive(worker)
    worker.feed(m.RetainObjects(["a"], True, ["d1"]), forget(["a"]))
    assert worker.told(i.Delete) == [i.Delete(["a"])]
    second = arrive(worker)
    assert second == first
    assert worker.feed(e.ObjectVerified(first)) == []
    assert worker.feed(e.ObjectVerified(first, altered())) == []
    assert "a" not in worker.state.objects
    assert worker.feed(e.ObjectVerified(second)) == [i.SendMessage(m.Verified("a"))]


def test_what_is_made_here_while_another_copy_is_compared_can_be_used_at_once(worker):
    worker.library()
    worker.feed(call(1), command(2, "r1"))
    arrival = arrive(worker, "r1")
    worker.reply(1, 1, size=LARGE)
    assert [x.run.task for x in worker.told(i.StartProcess)] == [2]
    assert worker.feed(e.ObjectVerified(arrival, altered("r1"))) == []
    assert "r1" in worker.state.objects


def test_what_was_found_meanwhile_stays_and_what_came_is_not_waited_for(worker):
    worker.feed(
        m.Fetch("a", LARGE, "host:1", False, digest="d1"), e.PersistentObjectsFound(["a"], [LARGE], ["d2"])
    )
    arrival = arrive(worker)
    assert worker.out == [i.SendMessage(m.Cached("a", LARGE, "d2"))]
    assert worker.feed(e.ObjectVerified(arrival, altered())) == []
    assert worker.state.objects == {"a": LARGE}


def test_what_a_cancelled_call_has_made_does_not_take_away_what_came(worker):
    worker.library()
    worker.feed(call(1), m.Cancel([1]))
    arrival = arrive(worker, "r1")
    worker.reply(1, 1, size=LARGE)
    assert not worker.told(i.Delete)
    worker.feed(e.ObjectVerified(arrival))
    assert "r1" in worker.state.objects


def test_what_a_cancelled_command_has_made_does_not_take_away_what_came(worker):
    worker.feed(command(1), m.Cancel([1]))
    arrival = arrive(worker, "out")
    failed = m.TaskFailed(1, "cancelled", {}, b"")
    worker.feed(e.ProcessTaskFinished(1, failed, {"out": LARGE, "log": 1}))
    assert worker.out == [i.Delete(["log"])]
    worker.feed(e.ObjectVerified(arrival))
    assert "out" in worker.state.objects


def test_forgotten_objects_are_deleted_and_those_that_were_never_here_are_not(worker):
    worker.feed(*put("a", "b"))
    assert worker.feed(m.RemoveObjects(["a", "nothing"])) == [i.Delete(["a"])]
    assert worker.state.objects == {"b": 1}


def test_forgetting_drops_shared_objects_from_the_slots_that_have_them(worker):
    worker.library(slots=2)
    worker.feed(*put("f", "g"), call(1, shared=["f", "g"]), call(2, shared=["g"]))
    one, two = (slot for slot, _ in worker.sent())
    worker.feed(m.RemoveObjects(["f"]))
    assert worker.told(i.DropSharedInSlot) == [i.DropSharedInSlot(one, ["f"])]
    worker.feed(m.RemoveObjects(["g"]))
    assert worker.told(i.DropSharedInSlot) == [i.DropSharedInSlot(one, ["g"]), i.DropSharedInSlot(two, ["g"])]
    worker.reply(one, 1)
    worker.feed(*put("f"), call(3, shared=["f"]))
    (sent,) = worker.told(i.SendCall)
    assert sent.new_shared == ["f"], "it has to be sent again"


# ---- libraries


def test_a_library_starts_when_all_it_needs_is_here(worker):
    library = m.Library("lib", "setup", "env", 2, "fork", {"mounts": [["data", "d.txt", False]]})
    assert worker.feed(library) == []
    assert worker.feed(m.PutObject("setup", b"s")) == [i.StoreBytes("setup", b"s")]
    worker.feed(e.ObjectArrived("env", 1, True))
    assert not worker.told(i.StartForkServer)
    worker.feed(e.ObjectArrived("data", 1, True))
    assert worker.told(i.StartForkServer) == [i.StartForkServer("lib", library, "env")]


def test_a_library_that_is_up_says_so_and_forks_its_slots(worker):
    worker.library(slots=3)
    assert worker.out[0] == i.SendMessage(m.LibraryReady("lib", 0.1, {"numpy": "2"}))
    assert [(x.host, x.run) for x in worker.told(i.StartSlot)] == [("lib", None)] * 3


def test_a_library_grows_to_the_slots_it_is_told(worker):
    worker.library(slots=1)
    worker.feed(m.Library("lib", "setup", "", 3, "direct", {}))
    assert len(worker.told(i.StartSlot)) == 2
    assert not worker.told(i.StartForkServer)


def test_calls_wait_for_their_library_to_come_up(worker):
    worker.feed(m.PutObject("setup", b"s"), m.Library("lib", "setup", "", 1, "direct", {}), call(1))
    assert not worker.told(i.SendCall)
    worker.feed(e.ForkServerReady("lib", 0.1, {}))
    assert [task for _, task in worker.sent()] == [1]


def test_a_call_for_a_library_that_is_not_here_is_given_back_at_once(worker):
    worker.feed(call(1, "something that never comes"))
    (failed,) = worker.said(m.TaskFailed)
    assert (failed.task, failed.kind) == (1, "library")
    assert worker.state.idle


def test_a_removed_library_takes_its_slots_and_calls_with_it(worker):
    worker.library(slots=2)
    worker.feed(call(1), call(2), call(3), call(4, "never"))
    worker.feed(m.RemoveLibrary("lib"))
    assert len(worker.told(i.KillSlot)) == 2
    assert worker.told(i.StopForkServer) == [i.StopForkServer("lib")]
    assert worker.state.idle
    assert not worker.state.slots
    assert not worker.state.calls.waiting
    assert worker.die(1, 1) == [], "nobody is blamed for what was stopped"
    assert worker.feed(m.RemoveLibrary("lib")) == []


def test_a_library_that_dies_is_reported_and_its_calls_are_the_managers_again(worker):
    worker.library(slots=2)
    worker.feed(call(1), call(2), call(3), call(4, "never"))
    worker.feed(e.ForkServerExited("lib", "it was killed", False, b"e"))
    assert worker.said(m.LibraryFailed) == [m.LibraryFailed("lib", "it was killed", False, b"e")]
    assert not worker.said(m.TaskFailed)
    assert worker.state.idle
    assert not worker.state.slots
    assert worker.feed(e.ForkServerExited("lib", "again", False, b"")) == []


def test_a_library_can_be_started_again_after_it_died(worker):
    worker.library()
    worker.feed(e.ForkServerExited("lib", "it was killed", False, b""))
    worker.feed(m.Library("lib", "setup", "", 1, "direct", {}))
    assert len(worker.told(i.StartForkServer)) == 1
    worker.feed(e.ForkServerReady("lib", 0.1, {}), call(1))
    assert len(worker.sent()) == 1


# ---- calls


def test_a_call_waits_for_everything_it_reads(worker):
    worker.library()
    worker.feed(call(1, "a", "b", shared=["f"]))
    for name in ("a", "f"):
        worker.feed(*put(name))
        assert not worker.sent()
    worker.feed(e.ObjectArrived("b", 5, True))
    assert [task for _, task in worker.sent()] == [1]


def test_the_same_input_twice_is_waited_for_once(worker):
    worker.library()
    worker.feed(call(1, "a", "a", shared=["a"]))
    worker.feed(*put("a"))
    assert [task for _, task in worker.sent()] == [1]


def test_a_slot_is_given_a_shared_object_once(worker):
    worker.library()
    worker.feed(*put("f"), call(1, shared=["f"]))
    assert worker.told(i.SendCall)[0].new_shared == ["f"]
    worker.reply(1, 1)
    worker.feed(call(2, shared=["f"]))
    assert worker.told(i.SendCall)[0].new_shared == []


def test_calls_are_spread_over_the_slots_and_the_others_wait(worker):
    worker.library(slots=2)
    worker.feed(call(1), call(2), call(3))
    assert worker.sent() == [(1, 1), (2, 2)]
    worker.reply(2, 2)
    assert worker.sent() == [(2, 3)]


def test_long_calls_are_written_to_a_slot_one_at_a_time(worker):
    worker.library()
    worker.feed(*(call(n) for n in range(1, 5)))
    worker.reply(1, 1, wall_s=1.0)
    assert worker.sent() == [(1, 2)]


def test_short_calls_are_written_to_a_slot_ahead_of_need_but_not_without_bound(worker):
    worker.library()
    worker.feed(*(call(n) for n in range(1, 100)))
    worker.reply(1, 1, wall_s=0.00001)
    assert len(worker.sent()) == MAX_IN_FLIGHT


def test_a_call_that_may_be_long_is_put_behind_nothing(worker):
    worker.library(slots=1)
    worker.feed(call(1), call(2), call(3)._replace(function="unknown"))
    worker.reply(1, 1, wall_s=0.00001)
    assert worker.sent() == [(1, 2)]


def test_nothing_is_put_behind_a_call_that_may_be_long(worker):
    worker.library(slots=2)
    worker.feed(call(1))
    worker.reply(1, 1, wall_s=0.00001)
    worker.feed(call(2)._replace(function="unknown"), *(call(n) for n in range(3, 100)))
    long, short = worker.sent()[0][0], {slot for slot, _ in worker.sent()[1:]}
    assert short == {3 - long}
    worker.reply(long, 2, wall_s=0.00001)
    assert {slot for slot, _ in worker.sent()} == {long}, "it was short: this slot gets more at once"


def test_one_long_call_is_remembered_for_a_while(worker):
    worker.library(slots=1)
    worker.feed(*(call(n) for n in range(1, 13)))
    worker.reply(1, 1, wall_s=0.00001)
    waiting = [task for _slot, task in worker.sent()]
    worker.reply(1, waiting[0], wall_s=0.05)
    worker.reply(1, *waiting[1:], wall_s=0.00001)
    worker.feed(call(13), call(14))
    assert worker.sent() == [(1, 13)]


def test_a_small_result_is_kept_and_sent_only_if_the_manager_wants_it(worker):
    worker.library()
    worker.feed(call(1))
    worker.reply(1, 1, size=3)
    assert worker.told(i.StoreBytes) == [i.StoreBytes("r1", b"xxx")]
    assert worker.said(m.TaskDone) == [m.TaskDone(1, 3, 0.01, {}, b"")]
    worker.feed(call(2, keep=True))
    worker.reply(1, 2, size=3)
    assert worker.said(m.TaskDone)[0].payload == b"xxx"
    assert worker.told(i.StoreBytes) == [i.StoreBytes("r2", b"xxx")]


def test_a_result_for_one_reader_only_is_not_kept(worker):
    worker.library()
    worker.feed(call(1, keep=True, once=True))
    worker.reply(1, 1, size=3)
    assert worker.said(m.TaskDone)[0].payload == b"xxx"
    assert not worker.told(i.StoreBytes)
    assert "r1" not in worker.state.objects


def test_an_empty_result_is_a_result(worker):
    worker.library()
    worker.feed(call(1, keep=True, once=True))
    worker.reply(1, 1, size=0)
    assert worker.told(i.StoreBytes) == [i.StoreBytes("r1", b"")], (
        "there is no file to take, and it does not ride with the message"
    )
    assert not worker.told(i.StoreResultFile)
    assert worker.state.objects["r1"] == 0


def test_a_large_result_is_taken_from_its_file(worker):
    worker.library()
    worker.feed(call(1, keep=True))
    worker.reply(1, 1, size=LARGE)
    assert worker.told(i.StoreResultFile) == [i.StoreResultFile("r1", 1)]
    assert worker.said(m.TaskDone) == [m.TaskDone(1, LARGE, 0.01, {}, b"")]
    assert worker.out.index(i.StoreResultFile("r1", 1)) < worker.out.index(
        i.SendMessage(worker.said(m.TaskDone)[0])
    )


def test_an_exception_is_passed_on(worker):
    worker.library()
    worker.feed(call(1))
    worker.feed(e.CallsReturned(1, [Reply(1, "exception", 0, 0.1, {"text": "no"}, b"pickled")]))
    assert worker.said(m.TaskFailed) == [m.TaskFailed(1, "exception", {"text": "no"}, b"pickled")]
    assert worker.state.idle


def test_a_successor_starts_without_the_manager_the_moment_its_input_is_made(worker):
    worker.library()
    worker.feed(call(1), call(2, "r1"), call(3, "r2"))
    assert worker.sent() == [(1, 1)]
    worker.reply(1, 1)
    assert worker.sent() == [(1, 2)]
    worker.reply(1, 2, size=LARGE)
    assert worker.sent() == [(1, 3)]
    names = [type(x).__name__ for x in worker.out]
    assert names.index("StoreResultFile") < names.index("SendCall")


@pytest.fixture
def quick(worker):
    """A worker with a library of two slots, whose calls are known to be short."""
    worker.library(slots=2)
    worker.feed(call(0))
    worker.reply(1, 0, wall_s=0.00001)
    return worker


def fed(worker):
    """The calls that were written behind what feeds them: slot, task, and the task that makes its input."""
    return [(x.slot, x.run.task, x.chained_input[1]) for x in worker.told(i.SendCall) if x.chained_input]


def test_a_short_call_is_written_behind_the_one_that_makes_its_last_input(quick):
    quick.feed(call(1), call(2, "r1"), call(3, "r2"))
    slot = quick.sent()[0][0]
    assert fed(quick) == [(slot, 2, 1), (slot, 3, 2)]
    quick.reply(slot, 1, 2, wall_s=0.00001)
    assert not quick.sent(), "they are on their way already"
    assert [done.task for done in quick.said(m.TaskDone)] == [1, 2]
    quick.feed(call(4, "r3"))
    assert fed(quick) == [(slot, 4, 3)]


def test_what_feeds_a_call_is_in_flight_whichever_came_first(quick):
    quick.feed(call(2, "r1"))
    assert not quick.sent()
    quick.feed(call(1))
    assert [task for _, task in quick.sent()] == [1, 2]


def test_only_the_first_reader_is_fed_because_others_may_run_beside_it(quick):
    quick.feed(call(1), call(2, "r1"), call(3, "r1"))
    slot = quick.sent()[0][0]
    assert fed(quick) == [(slot, 2, 1)]
    quick.reply(slot, 1, wall_s=0.00001)
    assert quick.sent() == [(3 - slot, 3)]


def test_a_call_that_lacks_more_than_one_input_is_not_fed(quick):
    quick.feed(call(1), call(2), call(3, "r1", "r2"))
    assert not fed(quick)


@pytest.mark.parametrize("which", ["maker", "reader"])
def test_no_call_that_may_be_long_is_fed_or_feeds(quick, which):
    maker, reader = call(1), call(2, "r1")
    maker = maker._replace(function="unknown") if which == "maker" else maker
    reader = reader._replace(function="unknown") if which == "reader" else reader
    quick.feed(maker, reader)
    assert [task for _, task in quick.sent()] == [1]


def test_a_slot_is_fed_no_more_than_calls_may_be_in_flight(quick):
    most = MAX_IN_FLIGHT
    quick.feed(*(call(n, f"r{n - 1}") if n > 1 else call(n) for n in range(1, 100)))
    slot = quick.sent()[0][0]
    assert len(quick.sent()) == most
    quick.reply(slot, 1, 2, 3, wall_s=0.00001)
    assert fed(quick) == [(slot, most + n, most + n - 1) for n in (1, 2, 3)]


def test_a_call_that_could_not_be_fed_waits_for_its_input(quick):
    quick.feed(call(1), call(2, "r1"))
    slot = quick.sent()[0][0]
    quick.reply(slot, 1, kind="exception")
    quick.reply(slot, 2, kind="unfed", size=0)
    assert not quick.out, "nobody is told: it has not begun"
    quick.feed(m.PutObject("r1", b"made elsewhere"))
    ((_slot, task),) = quick.sent()
    assert task == 2
    assert not fed(quick)


def test_when_a_slot_dies_what_it_was_to_feed_waits_and_is_not_blamed(quick):
    quick.feed(call(1), call(2, "r1"), call(3, "r2"))
    slot = quick.sent()[0][0]
    quick.die(slot, running=1)
    (failed,) = quick.said(m.TaskFailed)
    assert (failed.task, failed.kind) == (1, "crash")
    assert not quick.sent()
    quick.feed(call(1)._replace(task=4))
    assert [task for _, task in quick.sent()] == [4, 2, 3]


def test_when_a_slot_dies_in_a_fed_call_what_came_before_is_there(quick):
    quick.feed(call(1), call(2, "r1"), call(3, "r2"))
    slot = quick.sent()[0][0]
    quick.reply(slot, 1, wall_s=0.00001)
    quick.die(slot, running=2)
    assert [failed.task for failed in quick.said(m.TaskFailed)] == [2]
    quick.feed(call(2, "r1")._replace(task=5))
    assert [task for _, task in quick.sent()] == [5, 3]


def test_a_fed_call_that_is_cancelled_does_not_hurt_what_feeds_it(quick):
    quick.feed(call(1), call(2, "r1"))
    slot = quick.sent()[0][0]
    quick.feed(m.Cancel([2]))
    assert not quick.out
    quick.reply(slot, 1, wall_s=0.00001)
    assert quick.told(i.KillSlot) == [i.KillSlot(slot)]
    assert [done.task for done in quick.said(m.TaskDone)] == [1]


def test_what_became_ready_by_work_done_here_goes_before_what_waits_already(worker):
    worker.library()
    worker.feed(call(1), call(5), call(6), call(2, "r1"))
    worker.reply(1, 1)
    assert worker.sent() == [(1, 2)]


# ---- giving back


def test_what_has_not_started_is_given_back_last_come_first(worker):
    worker.library()
    worker.feed(*(call(n) for n in range(1, 6)))
    worker.feed(m.StealRequest("lib", 2))
    assert worker.said(m.StealResponse) == [m.StealResponse("lib", [5, 4])]
    worker.reply(1, 1)
    worker.reply(1, 2)
    worker.reply(1, 3)
    assert worker.state.idle


def test_what_runs_or_waits_for_an_input_is_not_given_back(worker):
    worker.library()
    worker.feed(call(1), call(2, "r1"))
    worker.feed(m.StealRequest("lib", 5))
    assert worker.said(m.StealResponse) == [m.StealResponse("lib", [])]


def test_what_was_cancelled_is_not_given_back(worker):
    worker.library()
    worker.feed(call(1), call(2), call(3), m.Cancel([3]))
    worker.feed(m.StealRequest("lib", 1))
    assert worker.said(m.StealResponse) == [m.StealResponse("lib", [2])]


def test_a_library_that_is_not_here_has_nothing_to_give_back(worker):
    worker.feed(m.StealRequest("lib", 5))
    assert worker.said(m.StealResponse) == [m.StealResponse("lib", [])]


# ---- slots that die


def test_only_the_running_call_is_blamed_and_the_others_run_in_another_slot(worker):
    worker.library()
    worker.feed(*(call(n) for n in range(1, 6)))
    worker.reply(1, 1, wall_s=0.0001)
    assert [task for _, task in worker.sent()] == [2, 3, 4, 5]
    worker.die(1, running=2)
    assert worker.said(m.TaskFailed) == [m.TaskFailed(2, "crash", {"reason": "signal 9"}, b"")]
    assert [x.host for x in worker.told(i.StartSlot)] == ["lib"]
    assert worker.sent() == [(2, 3), (2, 4), (2, 5)], "in the order in which they were"


def test_a_new_slot_has_no_shared_objects(worker):
    worker.library()
    worker.feed(*put("f"), call(1, shared=["f"]), call(2, shared=["f"]))
    worker.die(1, running=1)
    assert worker.told(i.SendCall)[0].new_shared == ["f"]


def test_a_slot_that_dies_between_calls_blames_nobody(worker):
    worker.library()
    worker.feed(call(1))
    worker.die(1, running=-1)
    assert not worker.said(m.TaskFailed)
    assert worker.sent() == [(2, 1)]


@pytest.mark.parametrize("busy", [False, True])
def test_slots_that_die_before_they_do_anything_take_the_library_down(worker, busy):
    """With calls written to them or without: they may die before they have read anything."""
    worker.library()
    if busy:
        worker.feed(call(1))
    slot, died = 1, 0
    while not worker.told(i.StopForkServer):
        died += 1
        assert died < 50
        worker.die(slot)
        slot += 1
    assert died == MAX_IDLE_EXITS + 1
    (failed,) = worker.said(m.LibraryFailed)
    assert (failed.name, failed.final) == ("lib", False)
    assert "signal 9" in failed.reason
    assert worker.state.idle
    assert not worker.state.slots


def test_a_slot_that_answers_shows_that_slots_live(worker):
    worker.library()
    slot = 1
    for number in range(1, 30):
        worker.feed(call(number))
        worker.reply(slot, number)
        worker.die(slot)
        slot += 1
        assert not worker.told(i.StopForkServer)


def test_news_of_a_slot_that_is_gone_changes_nothing(worker):
    worker.library()
    worker.die(1)
    assert worker.reply(1, 7) == []
    assert worker.die(1) == []


# ---- cancelling


def test_a_call_that_waits_for_an_input_is_dropped_without_a_trace(worker):
    worker.library()
    worker.feed(call(1, "a", "b"), call(2, "a"))
    worker.feed(m.Cancel([1]))
    assert worker.out == []
    worker.feed(*put("a", "b"))
    assert [task for _, task in worker.sent()] == [2]
    assert not worker.state.calls.waiting


def test_a_queued_call_that_was_cancelled_is_never_sent(worker):
    worker.library()
    worker.feed(call(1), call(2), call(3), m.Cancel([2]))
    worker.reply(1, 1)
    assert worker.sent() == [(1, 3)]


def test_a_running_call_that_is_cancelled_costs_its_slot_and_blames_nobody(worker):
    worker.library()
    worker.feed(call(1), call(2))
    worker.feed(m.Cancel([1]))
    assert worker.out == [i.KillSlot(1)]
    worker.die(1, running=1)
    assert not worker.said(m.TaskFailed)
    assert worker.sent() == [(2, 2)]


def test_a_call_behind_another_one_is_cancelled_without_hurting_that(worker):
    worker.library()
    worker.feed(*(call(n) for n in range(1, 6)))
    worker.reply(1, 1, wall_s=0.0001)
    worker.feed(m.Cancel([3]))
    assert worker.out == [], "2 is running in this slot"
    worker.reply(1, 2, wall_s=0.0001)
    assert worker.said(m.TaskDone)[0].task == 2
    assert worker.told(i.KillSlot) == [i.KillSlot(1)], "now it would be its turn"
    worker.die(1, running=3)
    assert not worker.said(m.TaskFailed)
    assert [task for _, task in worker.sent()] == [4, 5]


def test_the_call_that_happens_to_run_when_a_slot_is_killed_for_another_runs_again(worker):
    worker.library()
    worker.feed(call(1), call(2))
    worker.reply(1, 1, wall_s=0.0001)
    worker.feed(call(3), m.Cancel([2]))
    assert worker.told(i.KillSlot)
    worker.die(1, running=3)
    assert not worker.said(m.TaskFailed), "2 was over before the signal came"
    assert worker.sent() == [(2, 3)]


def test_a_slot_that_will_be_killed_gets_nothing_more(worker):
    worker.library(slots=2)
    worker.feed(call(1), call(2), m.Cancel([1]))
    worker.feed(call(3))
    assert worker.sent() == []
    worker.reply(2, 2)
    assert worker.sent() == [(2, 3)]


def test_slots_that_were_killed_on_purpose_do_not_take_the_library_down(worker):
    worker.library()
    for number in range(1, 30):
        worker.feed(call(number))
        worker.feed(m.Cancel([number]))
        worker.die(number)
        assert not worker.told(i.StopForkServer)


def test_a_cancelled_call_that_was_faster_leaves_no_result(worker):
    worker.library()
    worker.feed(call(1), call(2))
    worker.feed(m.Cancel([1, 2]))
    worker.reply(1, 1)
    assert not worker.said(m.TaskDone)
    assert "r1" not in worker.state.objects
    worker.library("other")
    worker.feed(call(3, library="other"), m.Cancel([3]))
    worker.feed(e.CallsReturned(2, [Reply(3, "done", LARGE, 0.1, {}, b"")]))
    assert worker.out == [i.StoreResultFile("r3", 3), i.Delete(["r3"])], "the file that it has written"


def test_cancelling_what_is_not_here_does_nothing(worker):
    assert worker.feed(m.Cancel([1, 2, 3])) == []


# ---- single tasks


def test_a_command_gets_a_process_when_its_files_are_here(worker):
    run = command(1, "a")
    assert worker.feed(run) == []
    worker.feed(*put("a"))
    assert worker.told(i.StartProcess) == [i.StartProcess(run)]


def test_the_outputs_of_a_task_start_who_waits_for_them_here(worker):
    done = m.TaskDone(1, 0, 0.1, {"outputs": {"out": 5}}, b"")
    worker.feed(command(1), command(2, "out"))
    worker.feed(e.ProcessTaskFinished(1, done, {"out": 5}))
    assert worker.out[0] == i.SendMessage(done)
    assert [x.run.task for x in worker.told(i.StartProcess)] == [2]


def test_a_cancelled_command_is_killed_and_what_it_made_is_deleted(worker):
    worker.feed(command(1))
    assert worker.feed(m.Cancel([1])) == [i.KillProcess(1)]
    assert worker.feed(e.ProcessTaskFinished(1, m.TaskFailed(1, "cancelled", {}, b""), {"out": 5})) == [
        i.Delete(["out"])
    ]


def test_what_a_cancelled_command_made_late_does_not_take_away_what_its_successor_made(worker):
    worker.feed(command(1), m.Cancel([1]), command(2))
    worker.feed(e.ProcessTaskFinished(2, m.TaskDone(2, 0, 0.1, {"outputs": {"out": 5}}, b""), {"out": 5}))
    worker.feed(e.ProcessTaskFinished(1, m.TaskFailed(1, "cancelled", {}, b""), {"out": 5}))
    assert "out" not in [name for x in worker.told(i.Delete) for name in x.names]
    assert "out" in worker.state.objects


def test_a_python_task_gets_a_fork_of_a_warm_python_of_its_environment(worker):
    own = call(1, library="")
    other = call(2, library="", environment="env")
    worker.feed(own, other)
    assert worker.told(i.StartForkServer) == [i.StartForkServer("python:", None, "")]
    worker.feed(e.ObjectArrived("env", 0, True))
    assert worker.told(i.StartForkServer) == [i.StartForkServer("python:env", None, "env")]
    worker.feed(e.ForkServerReady("python:", 0.1, {}))
    assert worker.told(i.StartSlot) == [i.StartSlot("python:", 1, own)]
    assert not worker.said(m.LibraryReady)
    worker.feed(call(3, library=""))
    assert not worker.told(i.StartForkServer), "it is warm"


def test_a_python_task_is_over_when_its_outputs_have_been_collected(worker):
    worker.feed(call(1, library=""), e.ForkServerReady("python:", 0.1, {}))
    worker.reply(1, 1)
    assert not worker.said(m.TaskDone)
    worker.die(1)
    assert not worker.said(m.TaskFailed)
    done = m.TaskDone(1, 1, 0.1, {}, b"")
    worker.feed(e.ProcessTaskFinished(1, done, {"r1": 1}))
    assert worker.said(m.TaskDone) == [done]
    assert worker.state.objects == {"r1": 1}


def test_a_python_task_whose_process_dies_has_crashed(worker):
    worker.feed(call(1, library=""), e.ForkServerReady("python:", 0.1, {}))
    worker.die(1, running=1)
    assert worker.said(m.TaskFailed) == [m.TaskFailed(1, "crash", {"reason": "signal 9"}, b"")]


def test_a_cancelled_python_task_is_killed_or_never_forked(worker):
    worker.feed(
        call(1, library=""), call(2, library=""), m.Cancel([2]), e.ForkServerReady("python:", 0.1, {})
    )
    assert [x.run.task for x in worker.told(i.StartSlot)] == [1]
    assert worker.feed(m.Cancel([1])) == [i.KillSlot(1)]
    assert worker.die(1, running=1) == []


def test_a_warm_python_that_does_not_start_gives_its_tasks_back(worker):
    worker.feed(call(1, library=""), call(2, library=""))
    worker.feed(e.ForkServerExited("python:", "no memory", False, b""))
    assert [(x.task, x.kind) for x in worker.said(m.TaskFailed)] == [(1, "library"), (2, "library")]
    worker.feed(call(3, library=""))
    assert len(worker.told(i.StartForkServer)) == 1, "with the next task it is tried again"


def test_a_warm_python_that_dies_takes_what_runs_with_it(worker):
    worker.feed(call(1, library=""), e.ForkServerReady("python:", 0.1, {}))
    worker.feed(e.ForkServerExited("python:", "it was killed", False, b""))
    assert [(x.task, x.kind) for x in worker.said(m.TaskFailed)] == [(1, "crash")]


def test_a_warm_python_that_can_never_start_is_the_inputs_fault(worker):
    worker.feed(call(1, library=""))
    worker.feed(e.ForkServerExited("python:", "it runs Python 3.9", True, b""))
    assert [(x.task, x.kind) for x in worker.said(m.TaskFailed)] == [(1, "input")]


# ---- the rest


def test_the_manager_is_answered_and_obeyed(worker):
    assert worker.feed(m.Ping(), m.Pong()) == [i.SendMessage(m.Pong())]
    assert worker.feed(m.Shutdown("the manager has ended", True)) == [
        i.LeaveManager("the manager has ended", True)
    ]


def test_a_worker_is_idle_when_it_has_no_task(worker):
    assert worker.state.idle
    worker.feed(command(1))
    assert not worker.state.idle
    worker.feed(e.ProcessTaskFinished(1, m.TaskDone(1, 0, 0.1, {}, b""), {}))
    assert worker.state.idle


# ---- what outlives the session


def test_what_was_kept_before_is_here_and_told_together(worker):
    worker.feed(m.PutObject("b", b"x"), call(1, "a", library=""))
    worker.feed(e.PersistentObjectsFound(["a", "b", "tree"], [10, 1, -1], ["1234", "5678", ""]))
    assert worker.said(m.PersistentObjects) == [m.PersistentObjects(["a", "tree"], [10, -1], ["1234", ""])]
    assert worker.told(i.StartForkServer)
    assert worker.state.objects == {"a": 10, "b": 1, "tree": -1}


def test_nothing_is_told_where_nothing_was_kept(worker):
    assert worker.feed(e.PersistentObjectsFound([], [], [])) == []


def test_what_is_to_outlive_the_session_is_kept_if_it_is_here(worker):
    worker.feed(*put("a"))
    worker.feed(m.RetainObjects(["a", "b"], True, ["1234", ""]))
    assert worker.out == [i.PersistObject("a", True, "1234")]


def test_what_is_kept_is_not_unlinked_but_purged(worker):
    worker.feed(*put("a", "b"), e.ObjectPersisted("a", "1234"))
    worker.feed(m.RemoveObjects(["a", "b"]))
    assert worker.out == [i.Delete(["b"])]
    worker.feed(m.PurgeObjects(["a"]))
    assert worker.out == [i.Delete(["a"]), i.ReleasePersisted(["a"])]
    assert worker.state.objects == {}
    worker.feed(*put("a"))
    worker.feed(m.RemoveObjects(["a"]))
    assert worker.out == [i.Delete(["a"])]


def test_what_went_before_it_was_kept_counts_as_gone(worker):
    worker.feed(*put("a"), m.RemoveObjects(["a"]), e.ObjectPersisted("a", ""))
    assert worker.state.persisted == {}


def test_what_is_here_is_not_fetched(worker):
    worker.feed(e.PersistentObjectsFound(["a"], [10], ["1234"]))
    worker.feed(m.Fetch("a", 10, "manager", False))
    assert worker.out == [i.SendMessage(m.Cached("a", 10, "1234"))]


@pytest.mark.parametrize("library", ["", "lib"])
def test_a_task_that_has_not_begun_waits_for_an_input_that_was_purged(worker, library):
    worker.library()
    worker.feed(call(1, library="lib"))
    worker.feed(*put("a"), call(2, "a", library=library), call(3, "a", "b", library=library))
    worker.feed(m.PurgeObjects(["a"]))
    worker.feed(*put("b"))
    worker.feed(e.ForkServerReady("python:", 0.1, {}))
    worker.reply(1, 1)
    assert worker.sent() == []
    worker.feed(*put("a"))
    assert sorted(task for _slot, task in worker.sent())[:1] in ([2], [3])


# ---- what the next manager may want


def test_what_is_not_named_after_the_manager_is_left_to_the_next_one(worker):
    worker.library()
    worker.feed(
        call(1),
        call(2)._replace(result="result-5e55-2"),
        m.PutObject("a", b"x"),
        e.PersistentObjectsFound(["k"], [10], ["12"]),
    )
    worker.feed(e.CallsReturned(1, [Reply(1, "done", LARGE, 0.01, {"digest": "1234"}, b"")]))
    worker.reply(1, 2)
    worker.feed(
        e.ObjectArrived("b", LARGE, True, "5678"), e.ObjectArrived("c", LARGE, True, "9", compared=False)
    )
    names, sizes, digests = worker.state.orphaned_objects("5e55")
    found = {name: (size, digest) for name, size, digest in zip(names, sizes, digests, strict=True)}
    assert found == {"setup": (1, ""), "a": (1, ""), "r1": (LARGE, "1234"), "b": (LARGE, "5678")}


def test_outputs_of_a_command_are_left_with_their_digests(worker):
    worker.feed(call(1, library=""), command(2))
    worker.feed(e.ProcessTaskFinished(1, m.TaskDone(1, LARGE, 0.1, {"digest": "12"}, b""), {"r1": LARGE}))
    worker.feed(
        e.ProcessTaskFinished(2, m.TaskDone(2, 0, 0.1, {"digests": {"out": "34"}}, b""), {"out": LARGE})
    )
    assert worker.state.orphaned_objects("5e55") == (["r1", "out"], [LARGE, LARGE], ["12", "34"])


def test_what_was_forgotten_or_replaced_is_not_left(worker):
    worker.feed(e.ObjectArrived("a", LARGE, True, "12"), e.ObjectArrived("b", LARGE, True, "34"))
    worker.feed(m.RemoveObjects(["a"]), m.PutObject("b", b"x"))
    assert worker.state.orphaned_objects("5e55") == (["b"], [1], [""])


def test_what_was_left_is_here_and_told_in_parts(worker):
    names = [f"n{n}" for n in range(MAX_OBJECTS_PER_MESSAGE + 1)]
    worker.feed(e.OrphansAdopted(names, [LARGE] * len(names), ["12"] * len(names)))
    first, second = worker.said(m.OrphanedObjects)
    assert first.names + second.names == names
    assert len(second.digests) == 1
    assert worker.feed(m.Fetch("n0", LARGE, "manager", False)) == [i.SendMessage(m.Cached("n0", LARGE, "12"))]
    assert worker.state.orphaned_objects("5e55").names == names


def test_a_slot_that_ends_after_an_answer_is_replaced_and_nobody_is_to_blame(worker):
    worker.library()
    for task in range(1, 2 * MAX_IDLE_EXITS):
        worker.feed(call(task))
        worker.feed(call(1000 + task))
        slot = next(iter(worker.state.slots))
        worker.feed(
            e.CallsReturned(slot, [Reply(task, "done", 2, 0.1, {"ends": "closed descriptors"}, b"ok")])
        )
        assert [done.info for done in worker.said(m.TaskDone)] == [{}]
        assert [kill.slot for kill in worker.told(i.KillSlot)] == [slot]
        worker.die(slot)
        assert not worker.said(m.TaskFailed)
        (new,) = worker.state.slots
        assert worker.sent() == [(new, 1000 + task)]
        worker.feed(e.CallsReturned(new, [Reply(1000 + task, "done", 2, 0.1, {}, b"ok")]))


# ---- too much disk


def too_much(slot):
    return e.Exhausted(slot, {"resource": "disk", "limit": 10, "peak": 11})


def test_the_call_of_a_slot_that_has_written_too_much_fails_when_its_process_has_ended(worker):
    worker.library()
    worker.feed(*map(call, (1, 2)))
    [slot] = {slot for slot, _task in worker.sent()}
    worker.feed(too_much(slot))
    assert worker.out == [i.KillSlot(slot)]
    assert worker.feed(too_much(slot)) == []
    worker.die(slot, 1)
    assert worker.said(m.TaskFailed) == [m.TaskFailed(1, "exhausted", too_much(slot).info, b"")]
    [again] = [x.slot for x in worker.told(i.StartSlot)]
    assert worker.sent() == [(again, 2)]


def test_a_call_that_was_faster_is_done(worker):
    worker.library()
    worker.feed(call(1))
    [(slot, _task)] = worker.sent()
    worker.feed(too_much(slot))
    worker.reply(slot, 1)
    assert [x.task for x in worker.said(m.TaskDone)] == [1]
    worker.die(slot)
    assert worker.said(m.TaskFailed) == []


def test_a_slot_without_a_call_is_replaced(worker):
    [slot] = [x.slot for x in worker.library() if isinstance(x, i.StartSlot)]
    assert worker.feed(too_much(slot)) == [i.KillSlot(slot)]
    worker.die(slot)
    assert len(worker.told(i.StartSlot)) == 1
    assert worker.said(m.LibraryFailed) == []
