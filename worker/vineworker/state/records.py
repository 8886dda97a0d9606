"""The records that the parts of the state machine share."""

from __future__ import annotations

from collections import deque

from vinecore.protocol import messages
from vineworker.slot_protocol import MAX_IN_FLIGHT, Reply

SHORT_CALL_S = 0.001
"""Calls up to this long are sent to a slot ahead of need."""
MAX_IN_FLIGHT_S = 0.002
"""So many of them are in flight to a slot as take this long together."""
SANDBOX_OPTIONS = frozenset({"mounts", "outputs"})
"""Options of calls that run in a sandbox."""
ALONE_OPTIONS = SANDBOX_OPTIONS | {"time_max", "time_left"}
"""Options of calls that are never in flight with others."""
MAX_DURATIONS = 10_000
EWMA_WEIGHT = 0.2


class AssignedTask:
    """A task this worker has been given.

    Attributes
    ----------
    missing
        How many of the objects that it reads are not here.
    slot
        The slot that it has been sent to.
    """

    __slots__ = ("missing", "run", "slot")

    def __init__(self, run: messages.RunTask) -> None:
        self.run, self.missing = run, 0
        self.slot: SlotState | None = None


class SlotState:
    """A process forked for calls of a library, or for one Python task.

    Attributes
    ----------
    in_flight
        Calls written to its socket and not answered yet, in that order.
    all_short
        Whether all calls in flight are expected to be over soon.
    killed
        Whether this worker has killed it, so that the call that it ran is not to blame.
    kill_report
        What the manager is told of the call for which it was killed.
    shared_objects
        The shared objects that it has been given.
    memory_group
        Calls that belong together because of results that it holds in memory.
    """

    __slots__ = (
        "all_short",
        "fork_server",
        "id",
        "in_flight",
        "kill_report",
        "killed",
        "memory_group",
        "shared_objects",
    )

    def __init__(self, number: int, fork_server: ForkServerState) -> None:
        self.id, self.fork_server = number, fork_server
        self.in_flight: deque[AssignedTask] = deque()
        self.all_short = True
        self.killed = False
        self.kill_report: messages.TaskDone | messages.TaskFailed | None = None
        self.shared_objects: set[str] = set()
        self.memory_group: MemoryGroup | None = None


class ForkServerState:
    """A process that forks slots: for a library, or for Python tasks in one environment.

    Attributes
    ----------
    missing
        Objects without which it cannot start.
    mean_duration_s
        Function -> expected duration of its calls: that of the longer ones of late.
    idle_exits
        How many slots have exited one after another without a call.
    """

    __slots__ = (
        "environment",
        "idle_exits",
        "library",
        "mean_duration_s",
        "missing",
        "name",
        "queue",
        "ready",
        "slots",
    )

    def __init__(self, name: str, library: messages.Library | None, environment: str) -> None:
        self.name, self.library, self.environment = name, library, environment
        self.missing: set[str] = set()
        self.ready = False
        self.queue: deque[AssignedTask] = deque()
        self.slots: dict[int, SlotState] = {}
        self.mean_duration_s: dict[str, float] = {}
        self.idle_exits = 0

    def max_in_flight(self, function: str) -> int:
        """Return how many calls may be in flight to a slot that gets a call of this function."""
        wall = self.mean_duration_s.get(function, SHORT_CALL_S)
        if wall >= SHORT_CALL_S:
            return 1
        return MAX_IN_FLIGHT if wall * MAX_IN_FLIGHT <= MAX_IN_FLIGHT_S else int(MAX_IN_FLIGHT_S / wall)

    def max_in_flight_with(self, run: messages.RunTask) -> int:
        """Return how many calls may be in flight to a slot with this one as the last.

        A call with a time limit is alone: no other is to be killed with it. One with a sandbox is
        sent when that is made.
        """
        alone = run.options and not ALONE_OPTIONS.isdisjoint(run.options)
        return 1 if alone else self.max_in_flight(run.function)

    def record_duration(self, function: str, wall: float) -> None:
        """Learn from the duration of a call."""
        expected = self.mean_duration_s.get(function, 0.0)
        if len(self.mean_duration_s) > MAX_DURATIONS:
            self.mean_duration_s.clear()
        self.mean_duration_s[function] = max(wall, expected + EWMA_WEIGHT * (wall - expected))


class CompletedCall:
    """A call of a memory group that has ended.

    Attributes
    ----------
    held, writing : bool
        Whether only its slot has the result, and whether that is being written.
    remaining_readers : int
        How many calls will still read the result, if it is held.
    """

    __slots__ = ("held", "remaining_readers", "reply", "task", "writing")

    def __init__(self, task: AssignedTask, reply: Reply, *, held: bool) -> None:
        self.task, self.reply, self.held = task, reply, held
        self.remaining_readers = int(task.run.options.get("readers", 0))
        self.writing = False


class MemoryGroup:
    """Calls that run in one slot because it holds what they read.

    Attributes
    ----------
    unreported
        The calls that have ended, in that order; the manager has not been told.
    wall_s
        The duration of these together.
    results
        The results of these by name.
    ready
        Tasks that have all they read because of these results.
    """

    def __init__(self) -> None:
        self.unreported: list[CompletedCall] = []
        self.wall_s = 0.0
        self.results: dict[str, CompletedCall] = {}
        self.ready: deque[AssignedTask] = deque()


def required_objects(run: messages.RunTask) -> list[str]:
    """Return the names of all objects a task reads."""
    names = [*run.shared, *run.inputs]
    if run.options:
        names += [mount[0] for mount in run.options.get("mounts", ())]
        if run.options.get("environment"):
            names.append(run.options["environment"])
    return names
