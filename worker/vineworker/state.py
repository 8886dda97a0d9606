"""The worker's mind: messages and happenings in, instructions out. No I/O, no clock, no threads.

A task waits until all objects it reads are here, then queues for a slot of its library, or gets a process of its own. A task whose
inputs are made on this worker starts the moment they are, without asking the manager; and where calls are short, one that lacks nothing but
what another one makes is written behind that to the same slot, so that a chain runs there without a word. Vocabulary:

host
    a process that forks: one for each library, and one for each Python environment that single tasks run in
slot
    a process forked by a host: serves many calls of a library, or one single task
fed
    a call in flight behind the one that makes its last missing input, which the slot hands from one to the other
in flight
    calls written to a slot's socket and not answered yet; only the first of them can be running, and the others cannot be
    taken back: so nothing is put behind a call, or goes behind one, whose function is not known to be short
family
    calls that run one after another in the slot that holds what they read; see `vineworker.families`
unproven
    all of a file has arrived, and it is still being compared with what it should be: peers and the manager, who compare for themselves,
    may have it, and whatever needs it here waits as if it were on its way
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Callable

from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m
from vineworker import events as e
from vineworker import instructions as i
from vineworker.calls import MOST_IN_FLIGHT, Reply
from vineworker.families import Families, Family

SHORT_S = 0.001  # calls up to this long are written to a slot ahead of need
IN_FLIGHT_S = 0.002  # and as many as take so long together
MOST_EMPTY_DEATHS = 5  # slots of a library that die one after another without a call
MOST_WALLS = 10_000
MOST_TOLD = 1_000  # objects in one message
SMOOTHING = 0.2
ODD_ANSWER = "its process gave an answer that belongs to no call"


class Task:
    """A task this worker has been given."""

    __slots__ = ("missing", "run", "slot")

    def __init__(self, run: m.Run) -> None:
        self.run, self.missing = run, 0
        self.slot: Slot | None = None


class Slot:
    """A forked process."""

    __slots__ = ("family", "host", "id", "in_flight", "killed", "known", "short", "verdict")

    def __init__(self, number: int, host: Host) -> None:
        self.id, self.host = number, host
        self.in_flight: deque[Task] = deque()
        self.short = True  # all that is in flight is expected to be over soon
        self.killed = False  # by this worker: nobody is to blame
        self.verdict: m.Done | m.Failed | None = None  # on the call for which it was killed
        self.known: set[str] = set()
        self.family: Family | None = None


class Host:
    """A forking process: a library, or the warm Python of single tasks."""

    __slots__ = (
        "empty_deaths",
        "environment",
        "library",
        "missing",
        "name",
        "queue",
        "slots",
        "up",
        "walls",
    )

    def __init__(self, name: str, library: m.Library | None, environment: str) -> None:
        self.name, self.library, self.environment = name, library, environment
        self.missing: set[str] = set()
        self.up = False
        self.queue: deque[Task] = deque()
        self.slots: dict[int, Slot] = {}
        self.walls: dict[str, float] = {}  # function -> seconds of its calls, the longer ones of late
        self.empty_deaths = 0

    def depth(self, function: str) -> int:
        """How many calls may be in flight to a slot with one of this function as the last of them."""
        wall = self.walls.get(function, SHORT_S)
        if wall >= SHORT_S:
            return 1
        return MOST_IN_FLIGHT if wall * MOST_IN_FLIGHT <= IN_FLIGHT_S else int(IN_FLIGHT_S / wall)

    def depth_for(self, run: m.Run) -> int:
        """How many calls may be in flight to a slot with this one as the last of them: one that may be ended is alone, so that no other goes with it."""
        return 1 if "time_max" in run.options else self.depth(run.function)

    def learn(self, function: str, wall: float) -> None:
        """Take notice of how long a call took."""
        expected = self.walls.get(function, 0.0)
        if len(self.walls) > MOST_WALLS:
            self.walls.clear()
        self.walls[function] = max(wall, expected + SMOOTHING * (wall - expected))


def needs(run: m.Run) -> list[str]:
    """All objects a task reads."""
    names = [*run.shared, *run.inputs]
    if run.options:
        names += [mount[0] for mount in run.options.get("mounts", ())]
        if run.options.get("environment"):
            names.append(run.options["environment"])
    return names


class WorkerState:
    """What a worker knows and decides."""

    def __init__(self) -> None:
        self.objects: dict[str, int] = {}
        self.kept: dict[str, str] = {}  # of these, those that outlive the session, with their digests
        self._digests: dict[str, str] = {}  # of these, those that are known
        self._unproven: dict[str, e.Arrived] = {}  # none of `objects`
        self._retains: dict[str, i.Retain] = {}  # of these, those that are to outlive the session
        self.tasks: dict[int, Task] = {}
        self.hosts: dict[str, Host] = {}
        self.slots: dict[int, Slot] = {}
        self.processes: set[int] = set()
        self._waiting: dict[str, list[Task]] = {}  # object -> tasks that lack it
        self._making: dict[str, Task] = {}  # object -> the call in flight that makes it
        self._unpacks: dict[str, list[m.Unpack]] = {}  # archive -> what is to be made of it
        self._next_slot = 0
        self._restarts = 0
        self._families = Families(self)
        self._out: list[Any] = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            m.Run: self._run, m.Put: self._put, m.Fetch: self._fetch, m.Unpack: self._unpack, m.Upload: self._upload,
            m.Unlink: self._unlink, m.Purge: self._purge, m.Retain: self._retain, m.Library: self._library, m.RemoveLibrary: self._remove_library, m.Restart: self._restart, m.Cancel: self._cancel,
            m.Recall: self._recall, m.Release: lambda said: self._out.append(i.Exit(said.reason, said.final)),
            m.Ping: lambda _e: self._out.append(i.Say(m.Pong())), m.Pong: lambda _e: None, m.Welcome: lambda _e: None,
            e.Arrived: self._arrived, e.Compared: self._compared, e.Found: self._found,
            e.Inherited: self._inherited, e.Kept: self._is_kept, e.HostUp: self._host_up, e.HostSlow: self._host_slow,
            e.HostDown: self._host_down, e.Replied: self._replied, e.SlotDown: self._slot_down, e.TaskOver: self._task_over,
            e.Overrun: self._overrun, e.Exhausted: self._exhausted,
        }  # fmt: skip

    def handle(self, events: Iterable[Any]) -> list[Any]:
        """Take events in order; give instructions in order."""
        handlers = self._handlers
        for event in events:
            handlers[type(event)](event)
        out, self._out = self._out, []
        return out

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.tasks

    def estate(self, session: str) -> e.Inherited:
        """What the next manager may want if this one has vanished: what is neither named after it nor kept anyway."""
        own = f"-{session}-"
        names = [name for name in self.objects if own not in name and name not in self.kept]
        return e.Inherited(
            names, [self.objects[name] for name in names], [self._digests.get(name, "") for name in names]
        )

    # ---- objects

    def _put(self, event: m.Put) -> None:
        self._out.append(i.Keep(event.name, event.payload))
        self._here(event.name, len(event.payload))

    def _arrived(self, event: e.Arrived) -> None:
        name, size, asked, digest, compared = event
        if not compared and name in self.objects:  # there is one that need not be compared: that stays
            asked, size, digest, compared = (
                name in self.kept,
                self.objects[name],
                self.kept.get(name, ""),
                True,
            )
        if asked:
            self._out.append(i.Say(m.Cached(name, size, digest, compared)))
        if compared:
            self._here(name, size, digest)
        else:
            self._unproven[name] = event

    def _compared(self, event: e.Compared) -> None:
        arrival, failure = event
        name = arrival.name
        if self._unproven.get(name) is not arrival:  # it was forgotten, or one came that need not be compared
            return
        if failure is None:
            self._here(name, arrival.size, arrival.digest)
        else:
            del self._unproven[name]
            self._retains.pop(name, None)
            self._out.append(i.Say(failure))

    def _here(self, name: str, size: int, digest: str = "") -> None:
        self.objects[name] = size
        self._families.forget([name])
        if digest:
            self._digests[name] = digest
        elif self._digests:
            self._digests.pop(name, None)
        if name in self._unproven:
            del self._unproven[name]
            self._out.append(i.Say(m.Compared(name)))
            if name in self._retains:
                self._out.append(self._retains.pop(name))
        for unpack in self._unpacks.pop(name, ()):
            self._out.append(i.StartUnpack(unpack))
        for task in self._waiting.pop(name, ()):
            task.missing -= 1
            if not task.missing and task.slot is None and self.tasks.get(task.run.task) is task:
                self._ready(task, first=True)
        for host in [h for h in self.hosts.values() if name in h.missing]:
            host.missing.discard(name)
            self._start_if_complete(host)

    def _found(self, event: e.Found) -> None:
        new = [found for found in zip(*event) if found[0] not in self.objects]
        if new:
            self._out.append(i.Say(m.Have(*map(list, zip(*new)))))
        for found in new:
            self._here(*found)
        self.kept.update(zip(event.names, event.digests))

    def _inherited(self, event: e.Inherited) -> None:
        for place in range(0, len(event.names), MOST_TOLD):
            part = slice(place, place + MOST_TOLD)
            self._out.append(i.Say(m.Left(event.names[part], event.sizes[part], event.digests[part])))
        for found in zip(*event):
            self._here(*found)

    def _is_kept(self, event: e.Kept) -> None:
        if event.name in self.objects:
            self.kept[event.name] = event.digest

    def _retain(self, event: m.Retain) -> None:
        for name, digest in zip(event.names, event.digests):
            if name in self.objects:
                self._out.append(i.Retain(name, event.forever, digest))
            elif name in self._unproven:
                self._retains[name] = i.Retain(name, event.forever, digest)

    def _fetch(self, event: m.Fetch) -> None:
        name = event.name
        if name in self.objects:  # found just now
            digest = self.kept.get(name) or self._digests.get(name, "")
            self._out.append(i.Say(m.Cached(name, self.objects[name], digest)))
        elif name in self._unproven:  # it came just now
            _name, size, _asked, digest, _compared = self._unproven[name]
            self._out.append(i.Say(m.Cached(name, size, digest, compared=False)))
        else:
            self._out.append(i.StartFetch(event))

    def _unpack(self, event: m.Unpack) -> None:
        if event.archive in self.objects:
            self._out.append(i.StartUnpack(event))
        else:
            self._unpacks.setdefault(event.archive, []).append(event)

    def _upload(self, event: m.Upload) -> None:
        if self._holds(event.name):
            self._out.append(i.StartUpload(event.name, event.digest))
        else:
            self._out.append(i.Say(m.UploadFailed(event.name, "this worker does not have it")))

    def _unlink(self, event: m.Unlink) -> None:
        self._forget([name for name in event.names if name not in self.kept])

    def _purge(self, event: m.Purge) -> None:
        gone = self.objects.keys() & event.names
        for name in event.names:
            self.kept.pop(name, None)
        self._forget(event.names)
        self._out.append(i.Unkeep(event.names))
        if gone:
            self._wait_again(gone)

    def _holds(self, name: str) -> bool:
        """Whether there is an object, compared or not."""
        return name in self.objects or name in self._unproven

    def _wait_again(self, gone: set[str]) -> None:
        """Have tasks that have not begun wait for objects that have gone; they may come again."""
        for task in self.tasks.values():
            lacking = gone.intersection(needs(task.run))
            if not lacking or task.slot is not None or (not task.missing and not self._unqueued(task)):
                continue
            task.missing += len(lacking)
            for name in lacking:
                self._waiting.setdefault(name, []).append(task)

    def _unqueued(self, task: Task) -> bool:
        """Take a task out of its queue, if it is in one."""
        for host in self.hosts.values():
            if task in host.queue:
                host.queue.remove(task)
                return True
        return False

    def _forget(self, names: list[str]) -> None:
        self._families.forget(names)
        names = [name for name in names if self._holds(name)]
        for name in names:
            self.objects.pop(name, None)
            self._digests.pop(name, None)
            self._unproven.pop(name, None)
            self._retains.pop(name, None)
        gone = set(names)
        for slot in self.slots.values():
            if slot.known and not slot.known.isdisjoint(gone):
                drop = slot.known & gone
                slot.known -= drop
                self._out.append(i.DropShared(slot.id, sorted(drop)))
        self._out.append(i.Delete(names))

    def waiting_for(self, name: str) -> list[Task]:
        """The tasks that lack an object."""
        return list(self._waiting.get(name, ()))

    def lacking(self, task: Task) -> list[str]:
        """What a task reads and is not here."""
        return [name for name in needs(task.run) if name not in self.objects]

    def instruct(self, instruction: Any) -> None:
        """Have something done."""
        self._out.append(instruction)

    # ---- tasks

    def _run(self, event: m.Run) -> None:
        if event.library and event.library not in self.hosts:  # it died while this was on its way
            self._no_library(event)
            return
        task = self.tasks[event.task] = Task(event)
        self._enter(task, first=False)

    def _enter(self, task: Task, *, first: bool) -> None:
        """Have a task wait for what is not here, or queue."""
        lacking = self.lacking(task)
        task.missing = len(lacking)
        for name in lacking:
            self._waiting.setdefault(name, []).append(task)
        if not lacking:
            self._ready(task, first=first)
            return
        self._families.missed(lacking)
        if len(lacking) == 1 and lacking[0] in self._making:
            self._feed(self._making[lacking[0]])

    def _ready(self, task: Task, *, first: bool) -> None:
        run = task.run
        if run.library:
            host = self.hosts[run.library]
        elif run.options.get("command"):
            self.processes.add(run.task)
            self._out.append(i.StartProcess(run))
            return
        else:
            host = self._single_host(run.options.get("environment", ""))
        if first:  # it became ready by work done here: finish what was begun
            host.queue.appendleft(task)
        else:
            host.queue.append(task)
        if first or len(host.queue) == 1:  # else others wait already, because no slot has room
            self._dispatch(host)

    def queue_first(self, host: Host, tasks: Iterable[Task]) -> None:
        """Have these go before all others, in this order."""
        for task in reversed(list(tasks)):
            self._ready(task, first=True)

    def _no_library(self, run: m.Run) -> None:
        info = {"reason": "the library is not on this worker"}
        self._out.append(i.Say(m.Failed(run.task, "library", info, b"")))

    def _single_host(self, environment: str) -> Host:
        name = f"python{self._restarts or ''}:{environment}"
        host = self.hosts.get(name)
        if host is None:
            host = self.hosts[name] = Host(name, None, environment)
            self._out.append(i.StartHost(name, None, environment))
        return host

    def _dispatch(self, host: Host) -> None:
        if not host.up:
            return
        queue = host.queue
        if host.library is None:
            while queue:
                task = queue.popleft()
                if self.tasks.get(task.run.task) is task:
                    self.call(self._new_slot(host, task.run), task)
            return
        while queue and host.slots:
            if self.tasks.get(queue[0].run.task) is not queue[0]:
                queue.popleft()  # it was cancelled
                continue
            slot = min(host.slots.values(), key=_load)
            depth = host.depth_for(queue[0].run)
            if slot.killed or slot.family or len(slot.in_flight) >= (depth if slot.short else 1):
                return
            slot.short = depth > 1
            self.call(slot, queue.popleft())

    def call(self, slot: Slot, task: Task, fed: tuple[str, int] | None = None) -> None:
        """Have a slot run a call."""
        run = task.run
        new = [name for name in run.shared if name not in slot.known]
        slot.known.update(new)
        hold, held = self._families.may_hold(slot, task), self._families.held_for(slot, task)
        task.slot = slot
        slot.in_flight.append(task)
        self._out.append(i.SendCall(slot.id, run, new, fed, hold, held))
        if slot.host.library is not None:
            self._making[run.result] = task
            self._feed(task)

    def _feed(self, maker: Task) -> None:
        """Write the first that waits for what a call in flight makes, and for nothing else, behind it to the same slot.

        Only the first: what else waits for it may run beside that one, in other slots.
        """
        waiting, slot = self._waiting.get(maker.run.result), maker.slot
        if not waiting or slot is None or slot.killed or not slot.short:
            return
        task = waiting[0]
        run, host = task.run, slot.host
        if (
            task.missing == 1
            and task.slot is None
            and run.library == host.name
            and maker.run.result in run.inputs
            and 1 < host.depth_for(run) > len(slot.in_flight)
            and self.tasks.get(maker.run.task) is maker
        ):
            self.call(slot, task, (maker.run.result, maker.run.task))

    def _new_slot(self, host: Host, run: m.Run | None) -> Slot:
        self._next_slot += 1
        slot = self.slots[self._next_slot] = host.slots[self._next_slot] = Slot(self._next_slot, host)
        self._out.append(i.StartSlot(host.name, slot.id, run))
        return slot

    def _replied(self, event: e.Replied) -> None:
        slot = self.slots.get(event.slot)
        if slot is None:
            return
        host = slot.host
        for reply in event.replies:
            if self._families.wrote(slot, reply):
                continue
            if not slot.in_flight or slot.in_flight[0].run.task != reply.task:
                self._distrust(slot)
                return
            task = slot.in_flight.popleft()
            host.empty_deaths = 0
            if reply.info.pop("ends", None) and not slot.killed:
                # its process is not fit for another call, and ends: nobody is to blame
                slot.killed = True
                self._out.append(i.KillSlot(slot.id))
            if host.library is None:
                continue  # its outputs are collected first; then it comes back as `TaskOver`
            self._landed(task)
            if reply.kind == "unfed":
                self._enter_again(task)
                continue
            host.learn(task.run.function, reply.wall_s)
            slot.short = slot.short or not slot.in_flight
            if self._families.ended(slot, task, reply):
                continue
            if self.tasks.get(reply.task) is task:
                del self.tasks[reply.task]
                self._finish(task.run, reply)
            elif reply.kind == "done" and not _inline(reply) and not self._holds(task.run.result):
                self._out += [
                    i.Adopt(task.run.result, reply.task),
                    i.Delete([task.run.result]),
                ]  # its file has to go
        self._kill_if_cancelled(slot)
        if slot.in_flight:
            self._feed(slot.in_flight[-1])
        self._families.settle(slot)
        self._dispatch(host)

    def _distrust(self, slot: Slot) -> None:
        """A slot answers what it was not asked: what it runs has written to its socket."""
        if not slot.killed:
            slot.killed = True
            self._out.append(i.KillSlot(slot.id))
            if slot.in_flight:
                task = slot.in_flight.popleft()
                self._landed(task)
                self._crashed(task, e.SlotDown(slot.id, task.run.task, {"reason": ODD_ANSWER}))

    def _landed(self, task: Task) -> None:
        """A call is not in flight any more."""
        task.slot = None
        if self._making.get(task.run.result) is task:
            del self._making[task.run.result]
        if task.missing:  # it was to be fed, and whatever it has got was not kept
            self.stop_waiting(task)

    def _enter_again(self, task: Task) -> None:
        """A call that was in flight has not been run."""
        if self.tasks.get(task.run.task) is task:
            self._enter(task, first=True)

    def _finish(self, run: m.Run, reply: Reply) -> None:
        if reply.kind == "done":
            self.store(run, reply)
            self.made(run, reply)  # what waits for it starts before the manager is told
        self.say_over(run, reply)

    def store(self, run: m.Run, reply: Reply) -> None:
        """Put a result where it is looked for."""
        if _kept(run, reply):
            inline = _inline(reply)
            self._out.append(
                i.Keep(run.result, reply.payload)
                if inline
                else i.Adopt(run.result, run.task, reply.info.get("digest", ""))
            )

    def made(self, run: m.Run, reply: Reply) -> None:
        """A result that is where it is looked for is here for all."""
        if _kept(run, reply):
            self._here(run.result, reply.size, reply.info.get("digest", ""))

    def discard(self, run: m.Run) -> None:
        """Nobody needs a result that was stored."""
        if not self._holds(run.result):
            self._out.append(i.Delete([run.result]))

    def say_over(self, run: m.Run, reply: Reply) -> None:
        """Tell the manager how a call has ended."""
        if reply.kind == "done":
            sent = reply.payload if run.keep else b""
            self._out.append(i.Say(m.Done(run.task, reply.size, reply.wall_s, reply.info, sent)))
        else:
            self._out.append(i.Say(m.Failed(run.task, reply.kind, reply.info, reply.payload)))

    def say_lost(self, names: list[str]) -> None:
        """Tell the manager that objects are not here."""
        self._out.append(i.Say(m.Lost(names)))

    def _task_over(self, event: e.TaskOver) -> None:
        self.processes.discard(event.task)
        task = self.tasks.pop(event.task, None)
        if task is None:
            # it was cancelled; what it should have made may have been made by another one since
            self._out.append(i.Delete([name for name in event.outputs if not self._holds(name)]))
            return
        self._out.append(i.Say(event.message))
        info = event.message.info
        digests = {**info.get("digests", {}), task.run.result: info.get("digest", "")}
        for name, size in event.outputs.items():
            self._here(name, size, digests.get(name, ""))

    def _overrun(self, event: e.Overrun) -> None:
        """A call is to be ended with its slot, whose place another process takes; when nothing of it runs any more it has failed."""
        task = self.tasks.get(event.message.task)
        if task is not None and task.slot is not None and not task.slot.killed:
            task.slot.killed, task.slot.verdict = True, event.message
            self._out.append(i.KillSlot(task.slot.id))

    def _exhausted(self, event: e.Exhausted) -> None:
        """A slot goes, with what it has written. The call that it runs, if there is one, has failed."""
        slot = self.slots.get(event.slot)
        if slot is None or slot.killed:
            return
        slot.killed = True
        if slot.in_flight:
            slot.verdict = m.Failed(slot.in_flight[0].run.task, "exhausted", event.info, b"")
        self._out.append(i.KillSlot(slot.id))

    def _tell_verdict(self, slot: Slot) -> None:
        """Tell of the call for which a slot was killed; if that was faster, it is over already."""
        if slot.verdict is not None and self.tasks.pop(slot.verdict.task, None) is not None:
            self._out.append(i.Say(slot.verdict))

    def _cancel(self, event: m.Cancel) -> None:
        for number in event.tasks:
            task = self.tasks.pop(number, None)
            if task is None:
                continue
            if task.slot is not None:
                self.stop_waiting(task)
                self._kill_if_cancelled(task.slot)
            elif number in self.processes:
                self._out.append(i.KillProcess(number))
            else:
                self.stop_waiting(task)

    def stop_waiting(self, task: Task) -> None:
        """Have a task wait for nothing any more."""
        for name in needs(task.run) if task.missing else ():
            waiting = self._waiting.get(name, [])
            if task in waiting:
                waiting.remove(task)
                if not waiting:
                    del self._waiting[name]

    def _kill_if_cancelled(self, slot: Slot) -> None:
        """Kill a slot whose turn it is to run what was cancelled; what is behind that in its socket goes to another slot."""
        if slot.in_flight and not slot.killed:
            first = slot.in_flight[0]
            if self.tasks.get(first.run.task) is not first:
                slot.killed = True
                self._out.append(i.KillSlot(slot.id))

    def _recall(self, event: m.Recall) -> None:
        host = self.hosts.get(event.library)
        given: list[int] = []
        while host is not None and host.queue and len(given) < event.most:
            task = host.queue.pop()
            if self.tasks.pop(task.run.task, None) is not None:
                given.append(task.run.task)
        self._out.append(i.Say(m.Recalled(event.library, given)))

    # ---- hosts and slots

    def _library(self, event: m.Library) -> None:
        host = self.hosts.get(event.name)
        if host is not None:
            host.library = event
            self._fill_slots(host)
            return
        host = self.hosts[event.name] = Host(event.name, event, event.environment)
        mounts = [mount[0] for mount in event.options.get("mounts", ())]
        host.missing = {
            name for name in (event.setup, event.environment, *mounts) if name and name not in self.objects
        }
        self._start_if_complete(host)

    def _start_if_complete(self, host: Host) -> None:
        if not host.missing and host.library is not None and not host.up:
            self._out.append(i.StartHost(host.name, host.library, host.environment))

    def _fill_slots(self, host: Host) -> None:
        if host.library is not None and host.up:
            while len(host.slots) < host.library.slots:
                self._new_slot(host, None)
            self._dispatch(host)

    def _host_up(self, event: e.HostUp) -> None:
        host = self.hosts.get(event.host)
        if host is None:
            return
        host.up = True
        if host.library is not None:
            self._out.append(i.Say(m.LibraryReady(host.name, event.wall_s, event.versions)))
            self._fill_slots(host)
        else:
            self._dispatch(host)
            self._end_if_old(host)

    def _host_slow(self, event: e.HostSlow) -> None:
        if event.host in self.hosts:
            self._out.append(i.Say(m.LibrarySlow(event.host, event.where)))

    def _host_down(self, event: e.HostDown) -> None:
        host = self.hosts.pop(event.host, None)
        if host is None:
            return
        self._kill_slots(host)
        lost = [task for task in self.tasks.values() if self._belongs(task, host)]
        for task in lost:
            del self.tasks[task.run.task]
            self.stop_waiting(task)
        if host.library is not None:
            self._out.append(i.Say(m.LibraryFailed(host.name, event.reason, event.final, event.payload)))
        else:
            for task in lost:
                kind = "input" if event.final else "library" if task.slot is None else "crash"
                self._out.append(i.Say(m.Failed(task.run.task, kind, {"reason": event.reason}, b"")))

    def _kill_slots(self, host: Host) -> None:
        for slot in host.slots.values():
            del self.slots[slot.id]
            self._out.append(i.KillSlot(slot.id))
            self._families.lost(slot)
            for task in slot.in_flight if host.library is not None else ():
                self._landed(task)

    def _belongs(self, task: Task, host: Host) -> bool:
        if host.library is not None:
            return task.run.library == host.name
        return task in host.queue or (task.slot is not None and task.slot.host is host)

    def _remove_library(self, event: m.RemoveLibrary) -> None:
        host = self.hosts.pop(event.name, None)
        if host is None:
            return
        self._kill_slots(host)
        for task in [task for task in self.tasks.values() if task.run.library == event.name]:
            del self.tasks[task.run.task]
            self.stop_waiting(task)
        self._out.append(i.StopHost(event.name))

    def _restart(self, _event: m.Restart) -> None:
        """Fork the next single tasks from new processes; the old ones end when what they have forked is over."""
        self._restarts += 1
        for host in [host for host in self.hosts.values() if host.library is None]:
            self._end_if_old(host)

    def _end_if_old(self, host: Host) -> None:
        current = f"python{self._restarts or ''}:{host.environment}"
        if host.library is None and host.name != current and not host.slots and not host.queue:
            del self.hosts[host.name]
            self._out.append(i.StopHost(host.name))

    def _slot_down(self, event: e.SlotDown) -> None:
        slot = self.slots.pop(event.slot, None)
        if slot is None:
            return
        host = slot.host
        del host.slots[slot.id]
        self._tell_verdict(slot)
        if host.library is None:
            for task in slot.in_flight:
                self._crashed(task, event)
            self._end_if_old(host)
            return
        if event.running < 0 and not slot.killed:
            host.empty_deaths += 1
        for task in slot.in_flight:
            self._landed(task)
        anew = self._families.lost(slot)
        for task in reversed(slot.in_flight):
            if task.run.task == event.running and not slot.killed:
                self._crashed(task, event)
            elif task.missing or self.lacking(task):
                self._enter_again(task)
            elif self.tasks.get(task.run.task) is task:
                host.queue.appendleft(task)
        for task in reversed(anew):
            self._enter_again(task)
        if host.empty_deaths > MOST_EMPTY_DEATHS:
            self._out.append(i.StopHost(host.name))
            self._host_down(e.HostDown(host.name, f"its slots die: {event.info.get('reason')}", False, b""))
        else:
            self._fill_slots(host)

    def _crashed(self, task: Task, event: e.SlotDown) -> None:
        if self.tasks.get(task.run.task) is task:
            del self.tasks[task.run.task]
            self._out.append(i.Say(m.Failed(task.run.task, "crash", event.info, b"")))


def _load(slot: Slot) -> tuple[bool, bool, int]:
    return slot.killed or slot.family is not None, not slot.short, len(slot.in_flight)


def _kept(run: m.Run, reply: Reply) -> bool:
    """Whether a result stays here: not if only the manager wants it, which it is sent to."""
    return not (run.keep and reply.payload and run.options.get("once"))


def _inline(reply: Reply) -> bool:
    """Whether a result is in its reply and not in a file."""
    return reply.size <= INLINE_LIMIT
