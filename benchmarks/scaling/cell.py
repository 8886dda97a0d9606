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
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.specs import GraphSpec

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
    door: str = "engine"
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
            door = DOORS[cell.door](m, cell)
            waiting = _wait(door, crowds, cell)
            _warm_up(m, door, cell)
            count = door.prepare(cell.tasks)
            gc.collect()
            before, peak = resident(), reset_peak()
            timed = _run(m, door, count)
            lost = cell.workers - m.workers_connected
            running = peak() - before
            m.close()
            done = crowds.join()["done"]
    if done < count:
        msg = f"workers have done {done} of {count} tasks"
        raise RuntimeError(msg)
    return Measured(count, max(waiting, running), connect_s, lost, *timed)


def _warm_up(m: DaskVine, door: Door, cell: Cell) -> None:
    """Have the library up on every worker, and buffers where they are needed."""
    for _turn in range(MOST_TURNS):
        door.prepare(2 * cell.workers * cell.cores)
        door.run()
        if all(worker["libraries"] for worker in m.summarize_workers()):
            break


def _wait(door: Door, crowds: Crowds, cell: Cell) -> int:
    """Memory that is needed while all tasks wait, and none of them is ever done; first of all, so that there is none to be used again."""
    if not isinstance(door, EngineDoor):
        return 0
    crowds.obey("hold")
    door.prepare(cell.tasks)
    gc.collect()
    before = resident()
    door.submit()
    needed = resident() - before
    door.close()
    crowds.obey("go")
    return needed


def _run(m: DaskVine, door: Door, count: int) -> tuple[float, ...]:
    """Have all tasks done; give the times, as `Measured` has them."""
    engine, watch = m._engine, Watch(m)
    loop, user, begun = (
        engine.query(lambda _mind: time.thread_time()),
        time.thread_time(),
        time.perf_counter(),
    )
    watch.start()
    door.run()
    seconds, user = time.perf_counter() - begun, time.thread_time() - user
    watch.stop()
    loop = engine.query(lambda _mind: time.thread_time()) - loop
    return 1e6 * loop / count, 1e6 * user / count, count / seconds, watch.first - begun, watch.longest


# ---- the doors


class Door(Protocol):
    """How tasks come in."""

    def prepare(self, count: int) -> int:
        """Have about so many tasks ready; give how many they are."""

    def run(self) -> None:
        """Have them done."""


class EngineDoor:
    """Slices of ready-made tasks, straight to the engine."""

    def __init__(self, m: DaskVine, cell: Cell) -> None:
        self._engine, self._shape = m._engine, SHAPES[cell.shape]
        library = LibraryTask("scaling", [], exec_mode="direct")
        library.set_cores(cell.cores)
        library.set_function_slots(cell.cores)
        m.install_library(library)
        self._library, self._function = m._libraries["scaling"][0], m.declare_shared_bytes(b"a function")
        self._count = self._run = 0
        self._first = 1
        self._over = threading.Event()
        self._end: i.GraphFinished | None = None
        self._engine.subscribe(i.GraphFinished, self._ended)

    def _ended(self, end: i.GraphFinished) -> None:
        self._end = end
        self._over.set()

    def prepare(self, count: int) -> int:
        """Count them: they are made on the way, as `DaskVine.get` makes them."""
        self._count = count
        return sum(1 for _vertex in self._shape(count))

    def submit(self) -> None:
        """Hand all of them over."""
        self._over.clear()
        self._run += 1
        self._engine.post_event(e.GraphOpened(GraphSpec(self._run, "scaling", size=self._count)))
        tasks = specs(self._shape(self._count), self._run, self._first, self._library, self._function)
        while slice_ := list(itertools.islice(tasks, MAX_TASKS_PER_SLICE)):
            self._first = slice_[-1].task + 1
            self._engine.submit(slice_)
        self._engine.post_event(e.GraphSubmitted(self._run))
        self._engine.query(lambda _mind: None)

    def run(self) -> None:
        """Have them done."""
        self.submit()
        while not self._over.wait(1.0):
            self._engine.ensure_open()
        if self._end is None or self._end.outcome != "success":
            raise RuntimeError(self._end)
        self.close()

    def close(self) -> None:
        """Forget them, whether they are done or not."""
        self._engine.post_event(e.GraphClosed(self._run))
        self._engine.query(lambda _mind: None)


class GetDoor:
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


DOORS: dict[str, Callable[[DaskVine, Cell], Door]] = {"engine": EngineDoor, "get": GetDoor}

# ---- measuring


class Watch:
    """Sees, from inside of the engine's loop, when the first task is on a worker, and how long the loop was away at most."""

    def __init__(self, m: DaskVine) -> None:
        self._engine, self._loop = m._engine, m._engine._loop
        self._over = False
        self._expected = 0.0
        self.first = self.longest = 0.0

    def start(self) -> None:
        """Begin."""
        self._expected = time.perf_counter()
        self._loop.call_soon_threadsafe(self._look)

    def stop(self) -> None:
        """End."""
        self._over = True
        self.first = self.first or time.perf_counter()

    def _look(self) -> None:
        now = time.perf_counter()
        self.longest = max(self.longest, now - self._expected)
        if not self.first and self._engine._scheduler.tables.assigned:
            self.first = now
        if not self._over:
            self._expected = now + LOOK_S
            self._loop.call_later(LOOK_S, self._look)


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
