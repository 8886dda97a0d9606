"""Results that stay in the memory of the slot that made them: which, for how long, and what the manager is told meanwhile."""

from __future__ import annotations

import random

import pytest
from vineworker.slot_protocol import Reply
from vineworker.state import events as e
from vineworker.state import instructions as i
from vineworker.state import state_machine as w
from vineworker.state.memory_results import MAX_GROUP_S, MAX_READERS_S

from vinecore.protocol import INLINE_LIMIT, MB
from vinecore.protocol import messages as m

LARGE = INLINE_LIMIT + 1
QUICK_S = MAX_READERS_S / 10


class Worker:
    """A worker's state machine with a library that is up, and its instructions for the last events."""

    def __init__(self, slots=1, mode="direct"):
        self.state = w.WorkerStateMachine()
        self.log = []
        self.feed(
            m.PutObject("setup", b"s"),
            m.Library("lib", "setup", "", slots, mode, {"memory": 1000 * slots}),
            e.ForkServerReady("lib", 0.1, {}),
        )
        self.slots = [x.slot for x in self.out if type(x) is i.StartSlot]
        self.learn("quick", QUICK_S)

    def learn(self, function, wall_s):
        """Have calls of a function take so long."""
        self.feed(call(1000, function=function))
        self.end(1000, wall_s=wall_s)
        self.feed(m.RemoveObjects(["r1000"]))

    def feed(self, *events):
        self.out = self.state.handle(events)
        self.log += self.out
        return self.out

    def told(self, kind):
        return [x for x in self.out if type(x) is kind]

    def said(self):
        """The tasks that the manager has been told of, and how they have ended."""
        return [
            (type(x.message).__name__, x.message.task)
            for x in self.told(i.SendMessage)
            if type(x.message) in (m.TaskDone, m.TaskFailed)
        ]

    def sent(self):
        """Task, and which inputs its slot is said to hold, of the calls that were given to slots."""
        return [(x.run.task, [name for name, _task in x.held_inputs]) for x in self.told(i.SendCall)]

    def slot_of(self, task):
        return self.state.tasks[task].slot.id

    def end(self, task, kind="done", size=1, wall_s=QUICK_S, **info):
        """A call ends where it runs."""
        payload = b"x" * size if size <= INLINE_LIMIT else b""
        return self.feed(
            e.CallsReturned(self.slot_of(task), [Reply(task, kind, size, wall_s, info, payload)])
        )

    def hold(self, task):
        """A call ends, and its slot holds what it has made."""
        return self.end(task, size=LARGE, held=True)

    def wrote(self, slot, *tasks):
        return self.feed(
            e.CallsReturned(slot, [Reply(task, "wrote", LARGE, 0.0, {"digest": "d"}, b"") for task in tasks])
        )


def call(task, *inputs, readers=0, function="quick"):
    options = {"readers": readers} if readers else {}
    return m.RunTask(task, "lib", function, [], list(inputs), f"r{task}", False, options, b"args")


@pytest.fixture
def worker():
    return Worker()


def test_result_read_in_slot_is_never_written(worker):
    """What all readers of a result can read in its slot is never written."""
    worker.feed(call(1, readers=2), call(2, "r1"), call(3, "r1"))
    assert worker.told(i.SendCall)[0].hold_limits == (100 * MB, 100 * MB // 8), "a tenth of its memory"
    worker.hold(1)
    assert worker.sent() == [(2, ["r1"])]
    worker.end(2)
    assert worker.sent() == [(3, ["r1"])]
    assert not worker.said(), "the manager would believe that there is a file"
    worker.end(3)
    assert worker.told(i.DropHeldResultsInSlot) == [i.DropHeldResultsInSlot(worker.slots[0], [1])]
    assert worker.said() == [("TaskDone", 1), ("TaskDone", 2), ("TaskDone", 3)]
    assert not any(type(x) is i.SpillResultsInSlot for x in worker.log)
    assert set(worker.state.objects) == {"setup", "r2", "r3"}
    assert worker.state.is_idle


def test_late_reader_has_result_remade(worker):
    """A task that had read it, and whose own result was lost, runs again."""
    worker.feed(call(1, readers=1), call(2, "r1"))
    worker.hold(1)
    worker.end(2)
    assert worker.said() == [("TaskDone", 1), ("TaskDone", 2)]
    worker.feed(call(3, "r1"))
    assert worker.told(i.SendMessage) == [i.SendMessage(m.ObjectsLost(["r1"]))]
    worker.feed(call(4, "r1"))
    assert not worker.told(i.SendMessage), "once is enough"
    worker.feed(m.Cancel([3, 4]), m.PurgeObjects(["r1"]), call(5), call(6, "r5"))
    worker.end(5)
    assert worker.sent() == [(6, [])]


def test_reader_during_group_has_result_remade(worker):
    """Who comes while the others read it has it made again."""
    worker.feed(call(1, readers=1), call(2, "r1"))
    worker.hold(1)
    worker.feed(call(3, "r1"))
    worker.end(2)
    assert [type(x.message).__name__ for x in worker.told(i.SendMessage)] == [
        "TaskDone",
        "TaskDone",
        "ObjectsLost",
    ]
    assert worker.told(i.SendMessage)[-1].message.names == ["r1"]


def test_remade_result_is_available(worker):
    """What was read and then made again is here."""
    worker.feed(call(1, readers=1), call(2, "r1"))
    worker.hold(1)
    worker.end(2)
    worker.feed(call(1))
    worker.end(1)
    worker.feed(call(3, "r1"))
    assert worker.sent() == [(3, [])]
    assert not worker.told(i.SendMessage)


def test_diamond_runs_in_one_slot(worker):
    """A diamond runs in one slot beside other work."""
    worker = Worker(slots=2)
    worker.feed(
        call(1, readers=2),
        call(9, function="unknown"),
        call(2, "r1", readers=1),
        call(3, "r1", readers=1),
        call(4, "r2", "r3"),
    )
    slot = worker.slot_of(1)
    for task, held in ((1, ["r1"]), (2, ["r1"]), (3, ["r2", "r3"])):
        worker.hold(task)
        ((_next, inputs),) = worker.sent()
        assert inputs == held
    worker.end(4)
    assert worker.said() == [("TaskDone", n) for n in (1, 2, 3, 4)]
    assert {x.slot for x in worker.log if type(x) is i.SendCall and x.run.task < 9} == {slot}


def test_results_of_group_become_available_when_known():
    """What a slot made of a held result is for others when the manager knows it."""
    worker = Worker(slots=2)
    worker.feed(call(1, readers=2), call(2, "r1"), call(3, "r1"), call(4, "r2"))
    worker.hold(1)
    worker.end(2)
    assert worker.sent() == [(3, ["r1"])], "4 would be told of before 2, in another slot"
    worker.end(3)
    assert worker.sent() == [(4, [])]


@pytest.mark.parametrize(
    "others",
    [
        [],
        [call(2, "r1")],
        [call(2, "r1"), call(3, "r1", function="unknown")],
        [call(2, "r1"), call(3, "r1", function="slow")],
    ],
    ids=["nobody reads it here", "one reader is not here", "one may take long", "one takes long"],
)
def test_unprofitable_result_is_written_at_once(worker, others):
    """What is not worth to be held is written at once."""
    worker.learn("slow", 2 * MAX_READERS_S)
    worker.feed(call(1, readers=2), *others)
    worker.hold(1)
    assert worker.out == [i.SpillResultsInSlot(worker.slots[0], [1])]
    worker.wrote(worker.slots[0], 1)
    assert i.StoreResultFile("r1", 1, "d") in worker.out
    assert worker.told(i.SendMessage)[0].message.info == {"digest": "d"}
    assert worker.state.objects["r1"] == LARGE
    assert [task for task, _held in worker.sent()] == [run.task for run in others][:1]


def test_small_result_is_reported_at_once(worker):
    """A result that is small or that the slot has written is told at once."""
    worker.feed(call(1, readers=1), call(2, "r1"))
    worker.end(1, size=LARGE, digest="d")
    assert worker.said() == [("TaskDone", 1)]
    assert worker.sent() == [(2, [])]


def test_queued_calls_prevent_holding(worker):
    """Nothing is held behind another call or for who says nothing of readers."""
    worker.feed(call(1), call(2, readers=1))
    assert [x.hold_limits for x in worker.log if type(x) is i.SendCall][-1] is None


def test_forked_calls_prevent_holding():
    """Nothing is held where every call has a process of its own."""
    worker = Worker(mode="fork")
    worker.feed(call(1, readers=1), call(2, "r1"))
    assert worker.told(i.SendCall)[0].hold_limits is None


def test_group_waiting_for_other_input_ends(worker):
    """A family that waits for something from elsewhere ends."""
    worker.feed(call(1, readers=2), call(2, "r1"), call(3, "r1", "elsewhere"), call(5))
    worker.hold(1)
    worker.end(2)
    assert worker.out == [i.StoreBytes("r2", b"x"), i.SpillResultsInSlot(worker.slots[0], [1])]
    worker.wrote(worker.slots[0], 1)
    assert worker.said() == [("TaskDone", 1), ("TaskDone", 2)]
    assert worker.sent() == [(5, [])]
    worker.end(5)
    worker.feed(e.ObjectArrived("elsewhere", 1, False))
    assert worker.sent() == [(3, [])]


def test_endless_group_ends(worker):
    """A family that goes on and on ends."""
    worker.feed(*(call(n, *([f"r{n - 1}"] if n > 1 else []), readers=1) for n in range(1, 30)))
    task = 1
    while not worker.told(i.SpillResultsInSlot):
        worker.end(task, size=LARGE, held=True, wall_s=MAX_READERS_S / 2)
        task += 1
    assert task <= 2 + 2 * MAX_GROUP_S / MAX_READERS_S
    worker.wrote(worker.slots[0], task - 1)
    assert worker.said() == [("TaskDone", n) for n in range(1, task)]


def test_failing_reader_follows_written_input(worker):
    """A reader that fails is told after what it read was written."""
    worker.feed(call(1, readers=1), call(2, "r1"))
    worker.hold(1)
    worker.end(2, kind="exception")
    assert worker.out == [i.SpillResultsInSlot(worker.slots[0], [1])]
    worker.wrote(worker.slots[0], 1)
    assert worker.said() == [("TaskDone", 1), ("TaskFailed", 2)]
    assert "r1" in worker.state.objects


def test_what_cannot_be_written_has_failed(worker):
    worker.feed(call(1, readers=1))
    worker.hold(1)
    worker.feed(e.CallsReturned(worker.slots[0], [Reply(1, "disk", 0, 0.0, {"reason": "full"}, b"")]))
    assert worker.said() == [("TaskFailed", 1)]
    assert "r1" not in worker.state.objects
    assert worker.state.is_idle


def test_dying_slot_reruns_its_group(worker):
    """A slot that dies takes what it held and its family runs again."""
    worker.feed(call(1, readers=2), call(2, "r1"), call(3, "r1"))
    worker.hold(1)
    worker.end(2)
    worker.feed(e.SlotExited(worker.slots[0], 3, {"reason": "signal 9"}))
    assert worker.said() == [("TaskFailed", 3)], "nobody else is to blame"
    assert i.Delete(["r2"]) in worker.out
    assert worker.sent() == [(1, [])]
    worker.end(1, size=LARGE, digest="d")
    assert worker.sent() == [(2, [])]


def test_a_cancelled_family_leaves_nothing(worker):
    worker.feed(call(1, readers=2), call(2, "r1"), call(3, "r1"))
    worker.hold(1)
    worker.feed(m.Cancel([1, 2, 3]))
    assert worker.told(i.KillSlot), "2 was running"
    worker.feed(e.SlotExited(worker.slots[0], 2, {}))
    assert not any(
        type(x) is i.SendMessage and type(x.message) in (m.TaskDone, m.TaskFailed) and x.message.task < 9
        for x in worker.log
    )
    assert worker.state.is_idle
    assert set(worker.state.objects) == {"setup"}


def test_held_result_of_cancelled_call_is_dropped(worker):
    """A held result of a cancelled call is forgotten."""
    worker.feed(call(1, readers=1))
    slot = worker.slot_of(1)
    worker.feed(m.Cancel([1]))
    worker.feed(e.CallsReturned(slot, [Reply(1, "done", LARGE, QUICK_S, {"held": True}, b"")]))
    assert i.DropHeldResultsInSlot(slot, [1]) in worker.out
    assert worker.state.is_idle


# ---- random lives


class Hands:
    """Slots that do what they are told, and may die; and the place where results are."""

    def __init__(self, worker, seed):
        self.worker, self.random = worker, random.Random(seed)
        self.stored = set()
        self.waiting = {slot: [] for slot in worker.slots}  # what a slot has been told and not done
        self.held = {slot: set() for slot in worker.slots}
        self.done, self.failed, self.lost = [], [], []

    def obey(self, out):
        for x in out:
            if type(x) in (i.StoreBytes, i.StoreResultFile):
                self.stored.add(x.name)
            elif type(x) is i.Delete:
                self.stored -= set(x.names)
            elif type(x) is i.StartSlot:
                self.waiting[x.slot], self.held[x.slot] = [], set()
            elif type(x) in (i.SendCall, i.SpillResultsInSlot, i.DropHeldResultsInSlot):
                self.waiting[x.slot].append(x)
            elif type(x) is i.SendMessage and type(x.message) is m.TaskDone:
                self.done.append(x.message.task)
            elif type(x) is i.SendMessage and type(x.message) is m.TaskFailed:
                self.failed.append(x.message.task)
            elif type(x) is i.SendMessage and type(x.message) is m.ObjectsLost:
                self.lost += x.message.names

    def send_again(self, runs):
        """Have what has failed run once more, as the manager would."""
        failed, self.failed = self.failed, []
        self.obey(self.worker.feed(*(runs[task] for task in failed)))

    def step(self):
        """Let a slot do something; whether there was anything."""
        busy = [slot for slot, orders in self.waiting.items() if orders]
        if not busy:
            return False
        slot = self.random.choice(busy)
        order = self.waiting[slot].pop(0)
        if type(order) is i.DropHeldResultsInSlot:
            self.held[slot] -= set(order.tasks)
        elif type(order) is i.SpillResultsInSlot:
            assert self.held[slot] >= set(order.tasks), "it was asked to write what it does not hold"
            self.held[slot] -= set(order.tasks)
            self.obey(self.worker.wrote(slot, *order.tasks))
        elif self.random.random() < 0.03:
            del self.waiting[slot], self.held[slot]
            self.obey(self.worker.feed(e.SlotExited(slot, order.run.task, {})))
        else:
            self.run(slot, order)
        return True

    def run(self, slot, order):
        held = dict(order.held_inputs)
        for name in order.run.inputs:
            assert held[name] in self.held[slot] if name in held else name in self.stored, (
                f"{name} is not there"
            )
        size = self.random.choice([1, LARGE])
        holds = order.hold_limits and size == LARGE and self.random.random() < 0.9
        if holds:
            self.held[slot].add(order.run.task)
        payload = b"" if size == LARGE else b"x"
        reply = Reply(order.run.task, "done", size, QUICK_S, {"held": True} if holds else {}, payload)
        self.obey(self.worker.feed(e.CallsReturned(slot, [reply])))


def random_graph(rng, count):
    """Calls of which each reads a few that come before it, and how many read each."""
    reads = [sorted(rng.sample(range(n), min(n, rng.choice([0, 1, 1, 2, 3])))) for n in range(count)]
    readers = [sum(n in inputs for inputs in reads) for n in range(count)]
    return [call(n, *(f"r{i}" for i in reads[n]), readers=readers[n]) for n in range(count)]


def begin(seed):
    """A worker, its hands, and a random graph that has been handed over."""
    worker = Worker(slots=2)
    hands, rng = Hands(worker, seed), random.Random(seed)
    runs = {run.task: run for run in random_graph(rng, 25)}
    hands.obey(worker.feed(*runs.values()))
    return worker, hands, rng, runs


@pytest.mark.parametrize("seed", range(200))
def test_calls_are_reported_once_after_inputs(seed):
    """Whatever happens every call is told of once and after what it reads."""
    worker, hands, _rng, runs = begin(seed)
    for _turn in range(5000):
        hands.send_again(runs)
        if not hands.step():
            break
    order = hands.done
    assert not hands.failed
    assert sorted(order) == sorted(runs)
    for run in runs.values():
        assert all(order.index(int(name[1:])) < order.index(run.task) for name in run.inputs)
    assert worker.state.is_idle
    assert not any(hands.held.values())


@pytest.mark.parametrize("seed", range(100))
def test_whoever_comes_late_gets_what_he_reads(seed):
    worker, hands, rng, runs = begin(seed)
    late, turn = 100, 0
    while hands.step() and turn < 5000:
        turn += 1
        hands.send_again(runs)
        if hands.done and late < 120 and rng.random() < 0.3:
            runs[late] = call(late, f"r{rng.choice([task for task in hands.done if task < 100])}")
            hands.obey(worker.feed(runs[late]))
            late += 1
        for name in hands.lost:  # it is made again, from nothing, as far as this worker can tell
            runs[int(name[1:])] = call(int(name[1:]))
            hands.obey(worker.feed(m.PurgeObjects([name]), runs[int(name[1:])]))
        hands.lost = []
    assert set(hands.done) == runs.keys()
    assert worker.state.is_idle
