"""The scheduler by itself: no sockets, no frames, no threads; simulated workers in the same process answer at once."""

from __future__ import annotations

import gc
import itertools
import json
import sys
import time
from collections.abc import Iterator

from benchmarks.scaling.cell import Cell
from benchmarks.scaling.shapes import SHAPES, specs
from benchmarks.scaling.workers import Worker
from daskvine.computation import MAX_TASKS_PER_SLICE
from vinecore.manager.compatibility import python_version
from vinecore.protocol import messages as m
from vinecore.resources.amounts import ResourceRequest
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.scheduler import Scheduler
from vinecore.scheduler.specs import FileSpec, GraphSpec, LibrarySpec, TaskSpec

TURN_S = 0.001  # of the simulated clock; a turn of the loop takes about as long
TICKS = 250  # turns between two of them


class SimulatedManager:
    """A scheduler and its workers.

    Attributes
    ----------
    spent_s
        CPU time of the scheduler so far.
    """

    def __init__(self, cell: Cell) -> None:
        self.scheduler = Scheduler(python_version())
        self.spent_s = 0.0
        self.ended: list[i.GraphFinished] = []
        self._now = 0.0
        self._workers = {n: Worker(n, *cell[4:]) for n in range(1, cell.workers + 1)}
        self._said: list[e.Event] = []
        for number, worker in self._workers.items():
            self._said.append(e.WorkerConnected(number, "127.0.0.1", worker.hello))

    def turn(self, *happened: e.Event) -> bool:
        """Pass events to the scheduler, and its messages to the workers; return whether there were instructions."""
        self._now += TURN_S
        events = [*self._said, *happened]
        started = time.thread_time()
        instructions = self.scheduler.handle(events, self._now)
        self.spent_s += time.thread_time() - started
        heard: dict[int, list[m.Message]] = {}
        for instruction in instructions:
            if type(instruction) is i.Send:
                heard.setdefault(instruction.worker, []).append(instruction.message)
            elif type(instruction) is i.SendObject:
                heard.setdefault(instruction.worker, []).append(m.PutObject(instruction.name, b"a function"))
            elif type(instruction) is i.GraphFinished:
                self.ended.append(instruction)
        self._said = [
            e.MessageReceived(number, said)
            for number, messages in heard.items()
            for said in self._workers[number].hear(messages)
        ]
        return bool(instructions)


def compute(manager: SimulatedManager, run: int, tasks: Iterator[TaskSpec]) -> None:
    """Compute tasks, a slice in each turn."""
    manager.turn(e.GraphOpened(GraphSpec(run, "scaling")))
    turns = itertools.count(1)
    while batch := list(itertools.islice(tasks, MAX_TASKS_PER_SLICE)):
        manager.turn(e.TasksSubmitted(batch))
        if not next(turns) % TICKS:
            manager.turn(e.Tick())
    manager.turn(e.GraphSubmitted(run))
    while not manager.ended:
        manager.turn()
        if not next(turns) % TICKS:
            manager.turn(e.Tick())
    if manager.ended.pop().outcome != "success":
        raise RuntimeError
    manager.turn(e.GraphClosed(run))


def scheduler_us(cell: Cell) -> float:
    """CPU time of the scheduler per task, in microseconds."""
    manager = SimulatedManager(cell)
    name, function = "library", "function"
    manager.turn(
        e.FilesDeclared([FileSpec(n, 10, at_manager=True) for n in (function, "setup")]),
        e.LibraryInstalled(LibrarySpec(name, "setup", cell.cores, ResourceRequest(cores=cell.cores))),
    )
    shape, warm = SHAPES[cell.shape], cell.workers * cell.cores
    compute(manager, 1, specs(shape(warm), 1, 1, name, function))
    manager.spent_s = 0.0
    gc.collect()
    gc.disable()  # as the engine sees to it that there is little of that
    compute(manager, 2, specs(shape(cell.tasks), 2, 2 * warm + 10, name, function))
    return 1e6 * manager.spent_s / cell.tasks


def main() -> None:
    """Read a cell from standard input, and write what was measured."""
    cell = Cell(**json.loads(sys.stdin.readline()))
    sys.stdout.write(json.dumps({"tasks": cell.tasks, "loop_us": scheduler_us(cell)}) + "\n")


if __name__ == "__main__":
    main()
