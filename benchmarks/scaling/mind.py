"""The mind by itself: no sockets, no frames, no threads; simulated workers in the same process answer at once."""

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

TURN_S = 0.001  # of the clock that the mind is told; a turn of the loop takes about as long
TICKS = 250  # turns between two of them


class Vine:
    """A mind and its workers.

    Attributes
    ----------
    spent_s
        CPU time of the mind so far.
    """

    def __init__(self, cell: Cell) -> None:
        self.mind = Scheduler(python_version())
        self.spent_s = 0.0
        self.ended: list[i.GraphFinished] = []
        self._now = 0.0
        self._workers = {n: Worker(n, *cell[4:]) for n in range(1, cell.workers + 1)}
        self._said: list[e.Event] = []
        for number, worker in self._workers.items():
            self._said.append(e.WorkerConnected(number, "127.0.0.1", worker.hello))

    def turn(self, *happened: e.Event) -> bool:
        """One turn of the loop: the mind takes what there is, and the workers do what it says; whether anything came of it."""
        self._now += TURN_S
        events = [*self._said, *happened]
        started = time.thread_time()
        instructions = self.mind.handle(events, self._now)
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


def compute(vine: Vine, run: int, tasks: Iterator[TaskSpec]) -> None:
    """Have tasks computed, a slice in each turn."""
    vine.turn(e.GraphOpened(GraphSpec(run, "scaling")))
    turns = itertools.count(1)
    while batch := list(itertools.islice(tasks, MAX_TASKS_PER_SLICE)):
        vine.turn(e.TasksSubmitted(batch))
        if not next(turns) % TICKS:
            vine.turn(e.Tick())
    vine.turn(e.GraphSubmitted(run))
    while not vine.ended:
        vine.turn()
        if not next(turns) % TICKS:
            vine.turn(e.Tick())
    if vine.ended.pop().outcome != "success":
        raise RuntimeError
    vine.turn(e.GraphClosed(run))


def mind_us(cell: Cell) -> float:
    """CPU time of the mind per task, in microseconds."""
    vine = Vine(cell)
    name, function = "library", "function"
    vine.turn(
        e.FilesDeclared([FileSpec(n, 10, at_manager=True) for n in (function, "setup")]),
        e.LibraryInstalled(LibrarySpec(name, "setup", cell.cores, ResourceRequest(cores=cell.cores))),
    )
    shape, warm = SHAPES[cell.shape], cell.workers * cell.cores
    compute(vine, 1, specs(shape(warm), 1, 1, name, function))
    vine.spent_s = 0.0
    gc.collect()
    gc.disable()  # as the engine sees to it that there is little of that
    compute(vine, 2, specs(shape(cell.tasks), 2, 2 * warm + 10, name, function))
    return 1e6 * vine.spent_s / cell.tasks


def main() -> None:
    """Read a cell from standard input, and write what was measured."""
    cell = Cell(**json.loads(sys.stdin.readline()))
    sys.stdout.write(json.dumps({"tasks": cell.tasks, "loop_us": mind_us(cell)}) + "\n")


if __name__ == "__main__":
    main()
