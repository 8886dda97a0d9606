"""One cell: a manager in this process, simulated workers in others, and what it costs."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from benchmarks.scaling import files
from benchmarks.scaling.crowd import Orders
from benchmarks.scaling.shapes import SHAPES, dask_graph, specs
from daskvine import DaskVine
from daskvine.computation import MAX_TASKS_PER_SLICE
from vinecore import LibraryTask
from vinecore.manager.graphs import GraphHandle

PER_CROWD = 500  # workers of one process
LOOK_S = 0.01
MOST_TURNS = 5  # of the warm-up
SPARE_FILES = 200
PATIENCE_S = 120.0


class Cell(NamedTuple):
    """What is to be measured."""

    tasks: int
    workers: int
    shape: str = "tree"
    interface: str = "engine"
    cores: int = 4
    result_bytes: int = 20_000
    call_s: float = 0.02


class Measured(NamedTuple):
    """What came of it."""

    tasks: int  # as many as the graph really had
    memory: float  # bytes: the most there were, while all vertices waited or while they ran, less what there was before
    connect_s: float  # until all workers were there, after the first one
    lost: int  # workers
    loop_us: float  # CPU time per task of the thread that decides and talks
    user_us: float  # CPU time per task of the thread that submits
    rate: float  # tasks per second
    first_s: float  # until the first vertex was on a worker
    away_s: float  # the longest time that the loop was busy with one thing


class Crowds:
    """The processes that the workers are in."""

    def __init__(self, port: int, secret: str, cell: Cell) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        for first in range(0, cell.workers, PER_CROWD):
            count = min(PER_CROWD, cell.workers - first)
            command = [sys.executable, "-m", "benchmarks.scaling.crowd"]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
            self._processes.append(process)
            self._tell(process, json.dumps(Orders(port, secret, first, count, *cell[4:])))

    def _tell(self, process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line + "\n")

    def obey(self, order: str) -> None:
        """Tell all of them something."""
        for process in self._processes:
            self._tell(process, order)

    def join(self) -> dict[str, int]:
        """Wait until the manager has let all of them go; give what they have counted together."""
        counts: dict[str, int] = {}
        for process in self._processes:
            assert process.stdout is not None
            for name, count in json.loads(process.stdout.readline()).items():
                counts[name] = counts.get(name, 0) + count
        return counts

    def close(self) -> None:
        """End what has not ended."""
        for process in self._processes:
            process.kill()
            process.communicate()


def measure(cell: Cell) -> Measured:
    """Run one cell."""
    files.allow(cell.workers + SPARE_FILES)
    with DaskVine(port=0, address="127.0.0.1", shutdown=True) as m:
        secret = Path(m.password_file).read_text().strip()
        begun = time.perf_counter()
        with contextlib.closing(Crowds(m.port, secret, cell)) as crowds:
            m.wait_for_workers(1, PATIENCE_S)
            starting_s = time.perf_counter() - begun
            m.wait_for_workers(cell.workers, PATIENCE_S)
            connect_s = time.perf_counter() - begun - starting_s
            interface = INTERFACES[cell.interface](m, cell)
            waiting = _wait(interface, crowds, cell)
            _warm_up(m, interface, cell)
            count = interface.prepare(cell.tasks)
            gc.collect()
            before, peak = resident(), reset_peak()
            timed = _run(m, interface, count)
            lost = cell.workers - m.workers_connected
            running = peak() - before
            m.close()
            done = crowds.join()["done"]
    if done < count:
        msg = f"workers have done {done} of {count} tasks"
        raise RuntimeError(msg)
    return Measured(count, max(waiting, running), connect_s, lost, *timed)


def _warm_up(m: DaskVine, interface: Interface, cell: Cell) -> None:
    """Have the library up on every worker, and buffers where they are needed."""
    for _turn in range(MOST_TURNS):
        interface.prepare(2 * cell.workers * cell.cores)
        interface.run()
        if all(worker["libraries"] for worker in m.summarize_workers()):
            break


def _wait(interface: Interface, crowds: Crowds, cell: Cell) -> int:
    """Memory that is needed while all tasks wait, and none of them is ever done; first of all, so that there is none to be used again."""
    if not isinstance(interface, EngineInterface):
        return 0
    crowds.obey("hold")
    interface.prepare(cell.tasks)
    gc.collect()
    before = resident()
    interface.submit()
    needed = resident() - before
    interface.close()
    crowds.obey("go")
    return needed


def _run(m: DaskVine, interface: Interface, count: int) -> tuple[float, ...]:
    """Compute all tasks; return the times, as `Measured` has them."""
    watch, clock = Watch(m), manager_clock()
    manager_s, user_s, started = time.clock_gettime(clock), time.thread_time(), time.perf_counter()
    watch.start()
    interface.run()
    seconds, user_s = time.perf_counter() - started, time.thread_time() - user_s
    manager_s = time.clock_gettime(clock) - manager_s
    first_s = watch.stop() - started
    return 1e6 * manager_s / count, 1e6 * user_s / count, count / seconds, first_s, watch.longest


def manager_clock() -> int:
    """Return the clock of the CPU time of the manager's thread."""
    [thread] = [thread for thread in threading.enumerate() if thread.name == "vine-manager"]
    assert thread.ident is not None
    return time.pthread_getcpuclockid(thread.ident)


# ---- the interfaces


class Interface(Protocol):
    """How tasks are submitted."""

    def prepare(self, count: int) -> int:
        """Prepare about so many tasks; return their number."""

    def run(self) -> None:
        """Compute them."""


class EngineInterface:
    """Slices of tasks, submitted to the manager directly."""

    def __init__(self, m: DaskVine, cell: Cell) -> None:
        self._manager, self._shape = m, SHAPES[cell.shape]
        library = LibraryTask("scaling", [_compute], exec_mode="direct")
        library.set_cores(cell.cores)
        library.set_function_slots(cell.cores)
        m.install_library(library)
        self._library = m.full_library_name("scaling", _compute.__name__)
        self._function = m.declare_shared_bytes(b"a function")
        self._count, self._first_task = 0, 1
        self._graph: GraphHandle | None = None

    def prepare(self, count: int) -> int:
        """Count the tasks: they are made while they are submitted, as `DaskVine.get` makes them."""
        self._count = count
        return sum(1 for _vertex in self._shape(count))

    def submit(self) -> GraphHandle:
        """Submit all tasks, and wait until the scheduler has them."""
        self._graph = graph = self._manager.open_graph("scaling", total=self._count)
        shape = self._shape(self._count)
        tasks = specs(shape, graph.number, self._first_task, self._library, self._function)
        while slice_ := list(itertools.islice(tasks, MAX_TASKS_PER_SLICE)):
            self._first_task = slice_[-1].task + 1
            graph.submit(slice_)
        graph.submitted()
        graph.status()
        return graph

    def run(self) -> None:
        """Compute them."""
        graph = self.submit()
        while (end := graph.wait(1.0)) is None:
            pass
        if end.outcome != "success":
            raise RuntimeError(end)
        self.close()

    def close(self) -> None:
        """Release them, whether they are done or not."""
        assert self._graph is not None
        self._graph.close()
        # which waits until the scheduler has released the graph
        self._manager.queue_stats()


def _compute() -> None:
    """Stand for the function of the calls, which simulated workers do not run."""


class GetInterface:
    """A dask graph, as a user has it computed."""

    def __init__(self, m: DaskVine, cell: Cell) -> None:
        resources = {"cores": cell.cores, "slots": cell.cores}
        options: dict[str, Any] = {"task_mode": "function-calls", "lib_resources": resources}
        self._get: Callable[..., Any] = functools.partial(m.get, progress_disable=True, **options)
        self._shape = SHAPES[cell.shape]
        self._graph: dict[Any, Any] = {}
        self._wanted: list[Any] = []

    def prepare(self, count: int) -> int:
        """Build the graph: that is the user's."""
        self._graph, self._wanted = dask_graph(self._shape(count))
        return len(self._graph)

    def run(self) -> None:
        """Compute it."""
        self._get(self._graph, self._wanted)


INTERFACES: dict[str, Callable[[DaskVine, Cell], Interface]] = {
    "engine": EngineInterface,
    "get": GetInterface,
}

# ---- measuring


class Watch:
    """Asks the manager every 10 ms: when the first task is on a worker, and how long an answer takes at most."""

    def __init__(self, m: DaskVine) -> None:
        self._manager = m
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look_often)
        self._first: float | None = None
        self.longest = 0.0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> float:
        """End; return the time at which the first task was on a worker, or the end."""
        self._stopped.set()
        self._thread.join()
        return self._first or time.perf_counter()

    def _look_often(self) -> None:
        while not self._stopped.wait(LOOK_S):
            asked = time.perf_counter()
            # the second question is the cheaper one
            started = self._manager.workers_connected if self._first else self._manager.queue_stats().running
            answered = time.perf_counter()
            self.longest = max(self.longest, answered - asked)
            if started and self._first is None:
                self._first = answered


def resident() -> int:
    """Bytes of memory that this process has."""
    return _status("VmRSS")


def reset_peak() -> Callable[[], int]:
    """Begin to watch the most memory there is; give a function that tells it."""
    Path("/proc/self/clear_refs").write_text("5")
    return lambda: _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    msg = f"no {name} in /proc/self/status: this needs Linux"
    raise OSError(msg)


def main() -> None:
    """Read a cell from standard input, and write what was measured."""
    cell = Cell(**json.loads(sys.stdin.readline()))
    sys.stdout.write(json.dumps(measure(cell)._asdict()) + "\n")


if __name__ == "__main__":
    main()
