"""The worker's state machine: events in, instructions out, no process, socket or file."""

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


def test_object_is_fetched_and_announced(worker):
    """An object is fetched and announced when it is here."""
    fetch = m.Fetch("a", 10, "host:1", False)
    assert worker.feed(fetch) == [i.StartFetch(fetch)]
    assert worker.feed(e.ObjectArrived("a", 10, True)) == [i.SendMessage(m.Cached("a", 10))]


def test_present_archive_is_unpacked_at_once(worker):
    """An archive that is here is unpacked at once."""
    unpack = m.Unpack("folder", "archive")
    worker.feed(*put("archive"))
    assert worker.feed(unpack) == [i.StartUnpack(unpack)]


def test_arriving_archive_is_unpacked(worker):
    """An archive that is on its way is unpacked when it arrives."""
    first, second = m.Unpack("one", "archive"), m.Unpack("two", "archive")
    assert worker.feed(first, second) == []
    worker.feed(e.ObjectArrived("archive", 5, True))
    assert worker.told(i.StartUnpack) == [i.StartUnpack(first), i.StartUnpack(second)]


def test_present_object_is_uploaded(worker):
    """An object is brought to the manager if it is here."""
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


def test_unverified_file_is_announced_not_used(worker):
    """A file is announced before it is compared and nothing uses it before that."""
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
    assert {x.fork_server for x in worker.told(i.StartForkServer)} == {"python:", "python:a", "other"}
    assert [x.run.task for x in worker.told(i.StartProcess)] == [3]
    assert worker.sent() == [(1, 1)]
    assert worker.state.objects["a"] == LARGE


def test_corrupt_unverified_file_is_awaited_again(worker):
    """A file that turns out to be altered was never here and is waited for."""
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


def test_unverified_file_is_uploaded_for_verification(worker):
    """A file that is not compared yet is brought to the manager who compares."""
    arrive(worker)
    assert worker.feed(m.Upload("a", "d1")) == [i.StartUpload("a", "d1")]


def test_unverified_file_is_not_fetched_again(worker):
    """A file that is not compared yet is not fetched again."""
    arrive(worker)
    fetch = m.Fetch("a", LARGE, "host:2", False, digest="d1")
    assert worker.feed(fetch) == [i.SendMessage(m.Cached("a", LARGE, "d1", verified=False))]


@pytest.mark.parametrize("forget", [m.RemoveObjects, m.PurgeObjects])
def test_forgotten_file_ignores_its_verification(worker, forget):
    """What was forgotten while it was compared is gone and its comparison counts for no other."""
    first = arrive(worker)
    worker.feed(m.RetainObjects(["a"], True, ["d1"]), forget(["a"]))
    assert worker.told(i.Delete) == [i.Delete(["a"])]
    second = arrive(worker)
    assert second == first
    assert worker.feed(e.ObjectVerified(first)) == []
    assert worker.feed(e.ObjectVerified(first, altered())) == []
    assert "a" not in worker.state.objects
    assert worker.feed(e.ObjectVerified(second)) == [i.SendMessage(m.Verified("a"))]


def test_file_made_during_verification_is_usable(worker):
    """What is made here while another copy is compared can be used at once."""
    worker.library()
    worker.feed(call(1), command(2, "r1"))
    arrival = arrive(worker, "r1")
    worker.reply(1, 1, size=LARGE)
    assert [x.run.task for x in worker.told(i.StartProcess)] == [2]
    assert worker.feed(e.ObjectVerified(arrival, altered("r1"))) == []
    assert "r1" in worker.state.objects


def test_found_file_replaces_arriving_one(worker):
    """What was found meanwhile stays and what came is not waited for."""
    worker.feed(
        m.Fetch("a", LARGE, "host:1", False, digest="d1"), e.PersistentObjectsFound(["a"], [LARGE], ["d2"])
    )
    arrival = arrive(worker)
    assert worker.out == [i.SendMessage(m.Cached("a", LARGE, "d2"))]
    assert worker.feed(e.ObjectVerified(arrival, altered())) == []
    assert worker.state.objects == {"a": LARGE}


def test_output_of_cancelled_call_keeps_arrival(worker):
    """What a cancelled call has made does not take away what came."""
    worker.library()
    worker.feed(call(1), m.Cancel([1]))
    arrival = arrive(worker, "r1")
    worker.reply(1, 1, size=LARGE)
    assert not worker.told(i.Delete)
    worker.feed(e.ObjectVerified(arrival))
    assert "r1" in worker.state.objects


def test_output_of_cancelled_command_keeps_arrival(worker):
    """What a cancelled command has made does not take away what came."""
    worker.feed(command(1), m.Cancel([1]))
    arrival = arrive(worker, "out")
    failed = m.TaskFailed(1, "cancelled", {}, b"")
    worker.feed(e.ProcessTaskFinished(1, failed, {"out": LARGE, "log": 1}))
    assert worker.out == [i.Delete(["log"])]
    worker.feed(e.ObjectVerified(arrival))
    assert "out" in worker.state.objects


def test_forgotten_objects_are_deleted_if_present(worker):
    """Forgotten objects are deleted and those that were never here are not."""
    worker.feed(*put("a", "b"))
    assert worker.feed(m.RemoveObjects(["a", "nothing"])) == [i.Delete(["a"])]
    assert worker.state.objects == {"b": 1}


def test_forgetting_drops_shared_objects_from_slots(worker):
    """Forgetting drops shared objects from the slots that have them."""
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


def test_library_starts_with_all_its_files(worker):
    """A library starts when all it needs is here."""
    library = m.Library("lib", "setup", "env", 2, "fork", {"mounts": [["data", "d.txt", False]]})
    assert worker.feed(library) == []
    assert worker.feed(m.PutObject("setup", b"s")) == [i.StoreBytes("setup", b"s")]
    worker.feed(e.ObjectArrived("env", 1, True))
    assert not worker.told(i.StartForkServer)
    worker.feed(e.ObjectArrived("data", 1, True))
    assert worker.told(i.StartForkServer) == [i.StartForkServer("lib", library, "env")]


def test_ready_library_reports_and_forks_slots(worker):
    """A library that is up says so and forks its slots."""
    worker.library(slots=3)
    assert worker.out[0] == i.SendMessage(m.LibraryReady("lib", 0.1, {"numpy": "2"}))
    assert [(x.fork_server, x.run) for x in worker.told(i.StartSlot)] == [("lib", None)] * 3


def test_library_grows_to_requested_slots(worker):
    """A library grows to the slots it is told."""
    worker.library(slots=1)
    worker.feed(m.Library("lib", "setup", "", 3, "direct", {}))
    assert len(worker.told(i.StartSlot)) == 2
    assert not worker.told(i.StartForkServer)


def test_calls_wait_for_library_start(worker):
    """Calls wait for their library to come up."""
    worker.feed(m.PutObject("setup", b"s"), m.Library("lib", "setup", "", 1, "direct", {}), call(1))
    assert not worker.told(i.SendCall)
    worker.feed(e.ForkServerReady("lib", 0.1, {}))
    assert [task for _, task in worker.sent()] == [1]


def test_call_without_library_is_returned(worker):
    """A call for a library that is not here is given back at once."""
    worker.feed(call(1, "something that never comes"))
    (failed,) = worker.said(m.TaskFailed)
    assert (failed.task, failed.kind) == (1, "library")
    assert worker.state.is_idle


def test_removed_library_ends_slots_and_calls(worker):
    """A removed library takes its slots and calls with it."""
    worker.library(slots=2)
    worker.feed(call(1), call(2), call(3), call(4, "never"))
    worker.feed(m.RemoveLibrary("lib"))
    assert len(worker.told(i.KillSlot)) == 2
    assert worker.told(i.StopForkServer) == [i.StopForkServer("lib")]
    assert worker.state.is_idle
    assert not worker.state.slots
    assert not worker.state.calls.waiting
    assert worker.die(1, 1) == [], "nobody is blamed for what was stopped"
    assert worker.feed(m.RemoveLibrary("lib")) == []


def test_dead_library_is_reported_with_calls(worker):
    """A library that dies is reported and its calls are the managers again."""
    worker.library(slots=2)
    worker.feed(call(1), call(2), call(3), call(4, "never"))
    worker.feed(e.ForkServerExited("lib", "it was killed", False, b"e"))
    assert worker.said(m.LibraryFailed) == [m.LibraryFailed("lib", "it was killed", False, b"e")]
    assert not worker.said(m.TaskFailed)
    assert worker.state.is_idle
    assert not worker.state.slots
    assert worker.feed(e.ForkServerExited("lib", "again", False, b"")) == []


def test_dead_library_can_be_restarted(worker):
    """A library can be started again after it died."""
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


def test_repeated_input_is_awaited_once(worker):
    """The same input twice is waited for once."""
    worker.library()
    worker.feed(call(1, "a", "a", shared=["a"]))
    worker.feed(*put("a"))
    assert [task for _, task in worker.sent()] == [1]


def test_slot_gets_shared_object_once(worker):
    """A slot is given a shared object once."""
    worker.library()
    worker.feed(*put("f"), call(1, shared=["f"]))
    assert worker.told(i.SendCall)[0].new_shared == ["f"]
    worker.reply(1, 1)
    worker.feed(call(2, shared=["f"]))
    assert worker.told(i.SendCall)[0].new_shared == []


def test_calls_spread_over_slots_and_wait(worker):
    """Calls are spread over the slots and the others wait."""
    worker.library(slots=2)
    worker.feed(call(1), call(2), call(3))
    assert worker.sent() == [(1, 1), (2, 2)]
    worker.reply(2, 2)
    assert worker.sent() == [(2, 3)]


def test_long_calls_are_sent_one_by_one(worker):
    """Long calls are written to a slot one at a time."""
    worker.library()
    worker.feed(*(call(n) for n in range(1, 5)))
    worker.reply(1, 1, wall_s=1.0)
    assert worker.sent() == [(1, 2)]


def test_short_calls_are_prefetched_bounded(worker):
    """Short calls are written to a slot ahead of need but not without bound."""
    worker.library()
    worker.feed(*(call(n) for n in range(1, 100)))
    worker.reply(1, 1, wall_s=0.00001)
    assert len(worker.sent()) == MAX_IN_FLIGHT


def test_possibly_long_call_is_not_queued_behind(worker):
    """A call that may be long is put behind nothing."""
    worker.library(slots=1)
    worker.feed(call(1), call(2), call(3)._replace(function="unknown"))
    worker.reply(1, 1, wall_s=0.00001)
    assert worker.sent() == [(1, 2)]


def test_nothing_queues_behind_possibly_long_call(worker):
    """Nothing is put behind a call that may be long."""
    worker.library(slots=2)
    worker.feed(call(1))
    worker.reply(1, 1, wall_s=0.00001)
    worker.feed(call(2)._replace(function="unknown"), *(call(n) for n in range(3, 100)))
    long, short = worker.sent()[0][0], {slot for slot, _ in worker.sent()[1:]}
    assert short == {3 - long}
    worker.reply(long, 2, wall_s=0.00001)
    assert {slot for slot, _ in worker.sent()} == {long}, "it was short: this slot gets more at once"


def test_long_call_is_remembered_for_while(worker):
    """One long call is remembered for a while."""
    worker.library(slots=1)
    worker.feed(*(call(n) for n in range(1, 13)))
    worker.reply(1, 1, wall_s=0.00001)
    waiting = [task for _slot, task in worker.sent()]
    worker.reply(1, waiting[0], wall_s=0.05)
    worker.reply(1, *waiting[1:], wall_s=0.00001)
    worker.feed(call(13), call(14))
    assert worker.sent() == [(1, 13)]


def test_small_result_is_sent_on_request(worker):
    """A small result is kept and sent only if the manager wants it."""
    worker.library()
    worker.feed(call(1))
    worker.reply(1, 1, size=3)
    assert worker.told(i.StoreBytes) == [i.StoreBytes("r1", b"xxx")]
    assert worker.said(m.TaskDone) == [m.TaskDone(1, 3, 0.01, {}, b"")]
    worker.feed(call(2, keep=True))
    worker.reply(1, 2, size=3)
    assert worker.said(m.TaskDone)[0].payload == b"xxx"
    assert worker.told(i.StoreBytes) == [i.StoreBytes("r2", b"xxx")]


def test_result_for_single_reader_is_not_kept(worker):
    """A result for one reader only is not kept."""
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


def test_large_result_is_taken_from_file(worker):
    """A large result is taken from its file."""
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
    assert worker.state.is_idle


def test_successor_starts_when_input_is_made(worker):
    """A successor starts without the manager the moment its input is made."""
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


def test_short_call_follows_maker_of_input(quick):
    """A short call is written behind the one that makes its last input."""
    quick.feed(call(1), call(2, "r1"), call(3, "r2"))
    slot = quick.sent()[0][0]
    assert fed(quick) == [(slot, 2, 1), (slot, 3, 2)]
    quick.reply(slot, 1, 2, wall_s=0.00001)
    assert not quick.sent(), "they are on their way already"
    assert [done.task for done in quick.said(m.TaskDone)] == [1, 2]
    quick.feed(call(4, "r3"))
    assert fed(quick) == [(slot, 4, 3)]


def test_chained_input_works_in_any_order(quick):
    """What feeds a call is in flight whichever came first."""
    quick.feed(call(2, "r1"))
    assert not quick.sent()
    quick.feed(call(1))
    assert [task for _, task in quick.sent()] == [1, 2]


def test_only_first_reader_is_chained(quick):
    """Only the first reader is fed because others may run beside it."""
    quick.feed(call(1), call(2, "r1"), call(3, "r1"))
    slot = quick.sent()[0][0]
    assert fed(quick) == [(slot, 2, 1)]
    quick.reply(slot, 1, wall_s=0.00001)
    assert quick.sent() == [(3 - slot, 3)]


def test_call_missing_two_inputs_is_unchained(quick):
    """A call that lacks more than one input is not fed."""
    quick.feed(call(1), call(2), call(3, "r1", "r2"))
    assert not fed(quick)


@pytest.mark.parametrize("which", ["maker", "reader"])
def test_possibly_long_calls_are_not_chained(quick, which):
    """No call that may be long is fed or feeds."""
    maker, reader = call(1), call(2, "r1")
    maker = maker._replace(function="unknown") if which == "maker" else maker
    reader = reader._replace(function="unknown") if which == "reader" else reader
    quick.feed(maker, reader)
    assert [task for _, task in quick.sent()] == [1]


def test_chained_calls_respect_slot_bound(quick):
    """A slot is fed no more than calls may be in flight."""
    most = MAX_IN_FLIGHT
    quick.feed(*(call(n, f"r{n - 1}") if n > 1 else call(n) for n in range(1, 100)))
    slot = quick.sent()[0][0]
    assert len(quick.sent()) == most
    quick.reply(slot, 1, 2, 3, wall_s=0.00001)
    assert fed(quick) == [(slot, most + n, most + n - 1) for n in (1, 2, 3)]


def test_unchained_call_waits_for_input(quick):
    """A call that could not be fed waits for its input."""
    quick.feed(call(1), call(2, "r1"))
    slot = quick.sent()[0][0]
    quick.reply(slot, 1, kind="exception")
    quick.reply(slot, 2, kind="unfed", size=0)
    assert not quick.out, "nobody is told: it has not begun"
    quick.feed(m.PutObject("r1", b"made elsewhere"))
    ((_slot, task),) = quick.sent()
    assert task == 2
    assert not fed(quick)


def test_slot_death_does_not_blame_chained(quick):
    """When a slot dies what it was to feed waits and is not blamed."""
    quick.feed(call(1), call(2, "r1"), call(3, "r2"))
    slot = quick.sent()[0][0]
    quick.die(slot, running=1)
    (failed,) = quick.said(m.TaskFailed)
    assert (failed.task, failed.kind) == (1, "crash")
    assert not quick.sent()
    quick.feed(call(1)._replace(task=4))
    assert [task for _, task in quick.sent()] == [4, 2, 3]


def test_slot_death_keeps_earlier_results(quick):
    """When a slot dies in a fed call what came before is there."""
    quick.feed(call(1), call(2, "r1"), call(3, "r2"))
    slot = quick.sent()[0][0]
    quick.reply(slot, 1, wall_s=0.00001)
    quick.die(slot, running=2)
    assert [failed.task for failed in quick.said(m.TaskFailed)] == [2]
    quick.feed(call(2, "r1")._replace(task=5))
    assert [task for _, task in quick.sent()] == [5, 3]


def test_cancelled_chained_call_spares_its_maker(quick):
    """A fed call that is cancelled does not hurt what feeds it."""
    quick.feed(call(1), call(2, "r1"))
    slot = quick.sent()[0][0]
    quick.feed(m.Cancel([2]))
    assert not quick.out
    quick.reply(slot, 1, wall_s=0.00001)
    assert quick.told(i.KillSlot) == [i.KillSlot(slot)]
    assert [done.task for done in quick.said(m.TaskDone)] == [1]


def test_locally_ready_calls_go_first(worker):
    """What became ready by work done here goes before what waits already."""
    worker.library()
    worker.feed(call(1), call(5), call(6), call(2, "r1"))
    worker.reply(1, 1)
    assert worker.sent() == [(1, 2)]


# ---- giving back


def test_unstarted_calls_return_last_first(worker):
    """What has not started is given back last come first."""
    worker.library()
    worker.feed(*(call(n) for n in range(1, 6)))
    worker.feed(m.StealRequest("lib", 2))
    assert worker.said(m.StealResponse) == [m.StealResponse("lib", [5, 4])]
    worker.reply(1, 1)
    worker.reply(1, 2)
    worker.reply(1, 3)
    assert worker.state.is_idle


def test_running_and_waiting_calls_stay(worker):
    """What runs or waits for an input is not given back."""
    worker.library()
    worker.feed(call(1), call(2, "r1"))
    worker.feed(m.StealRequest("lib", 5))
    assert worker.said(m.StealResponse) == [m.StealResponse("lib", [])]


def test_what_was_cancelled_is_not_given_back(worker):
    worker.library()
    worker.feed(call(1), call(2), call(3), m.Cancel([3]))
    worker.feed(m.StealRequest("lib", 1))
    assert worker.said(m.StealResponse) == [m.StealResponse("lib", [2])]


def test_missing_library_returns_no_calls(worker):
    """A library that is not here has nothing to give back."""
    worker.feed(m.StealRequest("lib", 5))
    assert worker.said(m.StealResponse) == [m.StealResponse("lib", [])]


# ---- slots that die


def test_only_running_call_is_blamed(worker):
    """Only the running call is blamed and the others run in another slot."""
    worker.library()
    worker.feed(*(call(n) for n in range(1, 6)))
    worker.reply(1, 1, wall_s=0.0001)
    assert [task for _, task in worker.sent()] == [2, 3, 4, 5]
    worker.die(1, running=2)
    assert worker.said(m.TaskFailed) == [m.TaskFailed(2, "crash", {"reason": "signal 9"}, b"")]
    assert [x.fork_server for x in worker.told(i.StartSlot)] == ["lib"]
    assert worker.sent() == [(2, 3), (2, 4), (2, 5)], "in the order in which they were"


def test_a_new_slot_has_no_shared_objects(worker):
    worker.library()
    worker.feed(*put("f"), call(1, shared=["f"]), call(2, shared=["f"]))
    worker.die(1, running=1)
    assert worker.told(i.SendCall)[0].new_shared == ["f"]


def test_slot_dying_between_calls_blames_none(worker):
    """A slot that dies between calls blames nobody."""
    worker.library()
    worker.feed(call(1))
    worker.die(1, running=-1)
    assert not worker.said(m.TaskFailed)
    assert worker.sent() == [(2, 1)]


@pytest.mark.parametrize("busy", [False, True])
def test_slots_dying_early_end_library(worker, busy):
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
    assert worker.state.is_idle
    assert not worker.state.slots


def test_answering_slot_proves_health(worker):
    """A slot that answers shows that slots live."""
    worker.library()
    slot = 1
    for number in range(1, 30):
        worker.feed(call(number))
        worker.reply(slot, number)
        worker.die(slot)
        slot += 1
        assert not worker.told(i.StopForkServer)


def test_message_of_gone_slot_changes_nothing(worker):
    """News of a slot that is gone changes nothing."""
    worker.library()
    worker.die(1)
    assert worker.reply(1, 7) == []
    assert worker.die(1) == []


# ---- cancelling


def test_waiting_call_is_dropped_without_trace(worker):
    """A call that waits for an input is dropped without a trace."""
    worker.library()
    worker.feed(call(1, "a", "b"), call(2, "a"))
    worker.feed(m.Cancel([1]))
    assert worker.out == []
    worker.feed(*put("a", "b"))
    assert [task for _, task in worker.sent()] == [2]
    assert not worker.state.calls.waiting


def test_cancelled_queued_call_is_never_sent(worker):
    """A queued call that was cancelled is never sent."""
    worker.library()
    worker.feed(call(1), call(2), call(3), m.Cancel([2]))
    worker.reply(1, 1)
    assert worker.sent() == [(1, 3)]


def test_cancelled_running_call_costs_its_slot(worker):
    """A running call that is cancelled costs its slot and blames nobody."""
    worker.library()
    worker.feed(call(1), call(2))
    worker.feed(m.Cancel([1]))
    assert worker.out == [i.KillSlot(1)]
    worker.die(1, running=1)
    assert not worker.said(m.TaskFailed)
    assert worker.sent() == [(2, 2)]


def test_cancelled_second_call_spares_first(worker):
    """A call behind another one is cancelled without hurting that."""
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


def test_innocent_call_in_killed_slot_reruns(worker):
    """The call that happens to run when a slot is killed for another runs again."""
    worker.library()
    worker.feed(call(1), call(2))
    worker.reply(1, 1, wall_s=0.0001)
    worker.feed(call(3), m.Cancel([2]))
    assert worker.told(i.KillSlot)
    worker.die(1, running=3)
    assert not worker.said(m.TaskFailed), "2 was over before the signal came"
    assert worker.sent() == [(2, 3)]


def test_doomed_slot_gets_nothing_more(worker):
    """A slot that will be killed gets nothing more."""
    worker.library(slots=2)
    worker.feed(call(1), call(2), m.Cancel([1]))
    worker.feed(call(3))
    assert worker.sent() == []
    worker.reply(2, 2)
    assert worker.sent() == [(2, 3)]


def test_deliberate_kills_do_not_end_library(worker):
    """Slots that were killed on purpose do not take the library down."""
    worker.library()
    for number in range(1, 30):
        worker.feed(call(number))
        worker.feed(m.Cancel([number]))
        worker.die(number)
        assert not worker.told(i.StopForkServer)


def test_faster_cancelled_call_leaves_no_result(worker):
    """A cancelled call that was faster leaves no result."""
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


def test_command_starts_with_its_files(worker):
    """A command gets a process when its files are here."""
    run = command(1, "a")
    assert worker.feed(run) == []
    worker.feed(*put("a"))
    assert worker.told(i.StartProcess) == [i.StartProcess(run)]


def test_outputs_start_waiting_tasks(worker):
    """The outputs of a task start who waits for them here."""
    done = m.TaskDone(1, 0, 0.1, {"outputs": {"out": 5}}, b"")
    worker.feed(command(1), command(2, "out"))
    worker.feed(e.ProcessTaskFinished(1, done, {"out": 5}))
    assert worker.out[0] == i.SendMessage(done)
    assert [x.run.task for x in worker.told(i.StartProcess)] == [2]


def test_cancelled_command_is_killed_and_cleaned(worker):
    """A cancelled command is killed and what it made is deleted."""
    worker.feed(command(1))
    assert worker.feed(m.Cancel([1])) == [i.KillProcess(1)]
    assert worker.feed(e.ProcessTaskFinished(1, m.TaskFailed(1, "cancelled", {}, b""), {"out": 5})) == [
        i.Delete(["out"])
    ]


def test_late_output_of_cancelled_command_is_dropped(worker):
    """What a cancelled command made late does not take away what its successor made."""
    worker.feed(command(1), m.Cancel([1]), command(2))
    worker.feed(e.ProcessTaskFinished(2, m.TaskDone(2, 0, 0.1, {"outputs": {"out": 5}}, b""), {"out": 5}))
    worker.feed(e.ProcessTaskFinished(1, m.TaskFailed(1, "cancelled", {}, b""), {"out": 5}))
    assert "out" not in [name for x in worker.told(i.Delete) for name in x.names]
    assert "out" in worker.state.objects


def test_python_task_forks_from_environments_server(worker):
    """A python task gets a fork of a warm python of its environment."""
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


def test_python_task_ends_with_collected_outputs(worker):
    """A python task is over when its outputs have been collected."""
    worker.feed(call(1, library=""), e.ForkServerReady("python:", 0.1, {}))
    worker.reply(1, 1)
    assert not worker.said(m.TaskDone)
    worker.die(1)
    assert not worker.said(m.TaskFailed)
    done = m.TaskDone(1, 1, 0.1, {}, b"")
    worker.feed(e.ProcessTaskFinished(1, done, {"r1": 1}))
    assert worker.said(m.TaskDone) == [done]
    assert worker.state.objects == {"r1": 1}


def test_dead_python_task_has_crashed(worker):
    """A python task whose process dies has crashed."""
    worker.feed(call(1, library=""), e.ForkServerReady("python:", 0.1, {}))
    worker.die(1, running=1)
    assert worker.said(m.TaskFailed) == [m.TaskFailed(1, "crash", {"reason": "signal 9"}, b"")]


def test_cancelled_python_task_is_killed_or_skipped(worker):
    """A cancelled python task is killed or never forked."""
    worker.feed(
        call(1, library=""), call(2, library=""), m.Cancel([2]), e.ForkServerReady("python:", 0.1, {})
    )
    assert [x.run.task for x in worker.told(i.StartSlot)] == [1]
    assert worker.feed(m.Cancel([1])) == [i.KillSlot(1)]
    assert worker.die(1, running=1) == []


def test_failed_warm_python_returns_tasks(worker):
    """A warm python that does not start gives its tasks back."""
    worker.feed(call(1, library=""), call(2, library=""))
    worker.feed(e.ForkServerExited("python:", "no memory", False, b""))
    assert [(x.task, x.kind) for x in worker.said(m.TaskFailed)] == [(1, "library"), (2, "library")]
    worker.feed(call(3, library=""))
    assert len(worker.told(i.StartForkServer)) == 1, "with the next task it is tried again"


def test_dead_warm_python_ends_its_tasks(worker):
    """A warm python that dies takes what runs with it."""
    worker.feed(call(1, library=""), e.ForkServerReady("python:", 0.1, {}))
    worker.feed(e.ForkServerExited("python:", "it was killed", False, b""))
    assert [(x.task, x.kind) for x in worker.said(m.TaskFailed)] == [(1, "crash")]


def test_unstartable_warm_python_blames_input(worker):
    """A warm python that can never start is the inputs fault."""
    worker.feed(call(1, library=""))
    worker.feed(e.ForkServerExited("python:", "it runs Python 3.9", True, b""))
    assert [(x.task, x.kind) for x in worker.said(m.TaskFailed)] == [(1, "input")]


# ---- the rest


def test_the_manager_is_answered_and_obeyed(worker):
    assert worker.feed(m.Ping(), m.Pong()) == [i.SendMessage(m.Pong())]
    assert worker.feed(m.Shutdown("the manager has ended", True)) == [
        i.LeaveManager("the manager has ended", True)
    ]


def test_worker_without_tasks_is_idle(worker):
    """A worker is idle when it has no task."""
    assert worker.state.is_idle
    worker.feed(command(1))
    assert not worker.state.is_idle
    worker.feed(e.ProcessTaskFinished(1, m.TaskDone(1, 0, 0.1, {}, b""), {}))
    assert worker.state.is_idle


# ---- what outlives the session


def test_persistent_objects_are_reported_together(worker):
    """What was kept before is here and told together."""
    worker.feed(m.PutObject("b", b"x"), call(1, "a", library=""))
    worker.feed(e.PersistentObjectsFound(["a", "b", "tree"], [10, 1, -1], ["1234", "5678", ""]))
    assert worker.said(m.PersistentObjects) == [m.PersistentObjects(["a", "tree"], [10, -1], ["1234", ""])]
    assert worker.told(i.StartForkServer)
    assert worker.state.objects == {"a": 10, "b": 1, "tree": -1}


def test_nothing_is_told_where_nothing_was_kept(worker):
    assert worker.feed(e.PersistentObjectsFound([], [], [])) == []


def test_outliving_object_is_persisted_if_present(worker):
    """What is to outlive the session is kept if it is here."""
    worker.feed(*put("a"))
    worker.feed(m.RetainObjects(["a", "b"], True, ["1234", ""]))
    assert worker.out == [i.PersistObject("a", True, "1234")]


def test_persisted_object_is_purged_only(worker):
    """What is kept is not unlinked but purged."""
    worker.feed(*put("a", "b"), e.ObjectPersisted("a", "1234"))
    worker.feed(m.RemoveObjects(["a", "b"]))
    assert worker.out == [i.Delete(["b"])]
    worker.feed(m.PurgeObjects(["a"]))
    assert worker.out == [i.Delete(["a"]), i.ReleasePersisted(["a"])]
    assert worker.state.objects == {}
    worker.feed(*put("a"))
    worker.feed(m.RemoveObjects(["a"]))
    assert worker.out == [i.Delete(["a"])]


def test_object_gone_before_persisting_is_lost(worker):
    """What went before it was kept counts as gone."""
    worker.feed(*put("a"), m.RemoveObjects(["a"]), e.ObjectPersisted("a", ""))
    assert worker.state.persisted == {}


def test_what_is_here_is_not_fetched(worker):
    worker.feed(e.PersistentObjectsFound(["a"], [10], ["1234"]))
    worker.feed(m.Fetch("a", 10, "manager", False))
    assert worker.out == [i.SendMessage(m.Cached("a", 10, "1234"))]


@pytest.mark.parametrize("library", ["", "lib"])
def test_unstarted_task_waits_for_purged_input(worker, library):
    """A task that has not begun waits for an input that was purged."""
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


def test_foreign_objects_are_left_for_next(worker):
    """What is not named after the manager is left to the next one."""
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


def test_command_outputs_are_orphaned_with_digests(worker):
    """Outputs of a command are left with their digests."""
    worker.feed(call(1, library=""), command(2))
    worker.feed(e.ProcessTaskFinished(1, m.TaskDone(1, LARGE, 0.1, {"digest": "12"}, b""), {"r1": LARGE}))
    worker.feed(
        e.ProcessTaskFinished(2, m.TaskDone(2, 0, 0.1, {"digests": {"out": "34"}}, b""), {"out": LARGE})
    )
    assert worker.state.orphaned_objects("5e55") == (["r1", "out"], [LARGE, LARGE], ["12", "34"])


def test_forgotten_or_replaced_objects_are_not_orphaned(worker):
    """What was forgotten or replaced is not left."""
    worker.feed(e.ObjectArrived("a", LARGE, True, "12"), e.ObjectArrived("b", LARGE, True, "34"))
    worker.feed(m.RemoveObjects(["a"]), m.PutObject("b", b"x"))
    assert worker.state.orphaned_objects("5e55") == (["b"], [1], [""])


def test_orphaned_objects_are_reported_in_parts(worker):
    """What was left is here and told in parts."""
    names = [f"n{n}" for n in range(MAX_OBJECTS_PER_MESSAGE + 1)]
    worker.feed(e.OrphansAdopted(names, [LARGE] * len(names), ["12"] * len(names)))
    first, second = worker.said(m.OrphanedObjects)
    assert first.names + second.names == names
    assert len(second.digests) == 1
    assert worker.feed(m.Fetch("n0", LARGE, "manager", False)) == [i.SendMessage(m.Cached("n0", LARGE, "12"))]
    assert worker.state.orphaned_objects("5e55").names == names


def test_slot_ending_after_answer_is_replaced(worker):
    """A slot that ends after an answer is replaced and nobody is to blame."""
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
    return e.DiskExhausted(slot, {"resource": "disk", "limit": 10, "peak": 11})


def test_overwriting_slots_call_fails_at_end(worker):
    """The call of a slot that has written too much fails when its process has ended."""
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
