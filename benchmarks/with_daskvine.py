"""The contender that is judged."""

from __future__ import annotations

import contextlib
import functools
import itertools
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import data, jobs, work
from benchmarks.jobs import Get, Job, Prepare
from benchmarks.sizes import SLOTS, Size
from daskvine import DaskVine
from vinecore import Factory, File, FunctionCall, Manager, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

CALLS = {
    "task_mode": "function-calls",
    "lib_resources": {"cores": SLOTS, "slots": SLOTS},
    "progress_disable": True,
}
HEP_MODULES = ["awkward", "coffea.nanoevents", "dask_awkward", "hist.dask", "numpy", "uproot"]


class Vine:
    """daskvine, with one local worker of two cores."""

    @contextlib.contextmanager
    def calls(self) -> Iterator[Prepare]:
        with Manager(port=0, address="127.0.0.1") as m, Factory("local", manager=m, cores=SLOTS):
            m.install_library(m.create_library_from_functions("bench", work.increment, exec_mode="direct"))

            def run(count: int) -> int:
                for n in range(count):
                    m.submit(FunctionCall("bench", "increment", n))
                total = 0
                while not m.empty():
                    output = m.wait().output
                    if isinstance(output, BaseException):
                        raise output
                    total += output
                return total

            def prepare(size: Size, _part: str) -> Job:
                return Job(size.calls, lambda: run(size.calls), size.calls * (size.calls + 1) // 2)

            yield prepare

    @contextlib.contextmanager
    def graph(self) -> Iterator[Prepare]:
        with _get(**CALLS) as get:
            yield jobs.wide(get)

    @contextlib.contextmanager
    def chain(self) -> Iterator[Prepare]:
        with _get(**CALLS) as get:
            yield jobs.chain(get)

    @contextlib.contextmanager
    def tasks(self) -> Iterator[Prepare]:
        with _get(task_mode="tasks", progress_disable=True) as get:
            yield jobs.single(get)

    @contextlib.contextmanager
    def warm(self) -> Iterator[Prepare]:
        with _get(**CALLS) as get:
            yield jobs.warm(get)

    @contextlib.contextmanager
    def cold(self) -> Iterator[Prepare]:
        def run() -> Any:
            with _get(**CALLS) as get:
                return get({"x": (work.increment, 1)}, "x")

        yield lambda _size, _part: Job(1, run, 2)

    def transfer(self) -> contextlib.AbstractContextManager[Prepare]:
        """Time the transfer of a file between two workers."""
        return self._course(compared=False)

    def compared(self) -> contextlib.AbstractContextManager[Prepare]:
        """Time a transfer between two workers, its verification and the start of its reader."""
        return self._course(compared=True)

    @contextlib.contextmanager
    def _course(self, *, compared: bool) -> Iterator[Prepare]:
        with (
            tempfile.TemporaryDirectory() as folder,
            Manager(port=0, address="127.0.0.1") as m,
            Factory("local", manager=m, min_workers=2, cores=1),
        ):
            m.wait_for_workers(2)
            yield functools.partial(_transfer, _Course(m, Path(folder)), compared)

    @contextlib.contextmanager
    def load(self) -> Iterator[Prepare]:
        """Time a vertex that loads an array which another vertex has made."""
        with DaskVine.local(cores=1) as m:

            def prepare(size: Size, _part: str) -> Job:
                graph = {
                    "array": (data.array, size.array_mb),
                    "loaded": (data.length, "array"),
                    "before": (data.private_mb, "loaded"),
                    "grown": (data.grown_mb, "array", "before"),
                }
                one = {"cores": 1, "slots": 1}
                get = functools.partial(
                    m.get, task_mode="function-calls", lib_resources=one, progress_disable=True
                )
                return Job(1, lambda: max(get(graph, "grown"), 0.0), measures=True)

            yield prepare

    @contextlib.contextmanager
    def sent(self) -> Iterator[Prepare]:
        """All that a manager sends to a new worker for a graph whose vertices share a large object."""

        def run(graph: dict[Any, Any], key: Any, value: int) -> int:
            with (
                DaskVine(port=0, address="127.0.0.1") as m,
                contextlib.closing(data.Counter(m.port)) as counter,
                data.worker(counter.port, m.password_file, SLOTS),
            ):
                if m.get(graph, key, **CALLS) != value:
                    raise AssertionError
                return counter.sent

        def prepare(size: Size, _part: str) -> Job:
            graph, key, value = data.analysis(size.partitions, size.branches)
            return Job(len(graph), lambda: run(graph, key, value), measures=True)

        yield prepare

    @contextlib.contextmanager
    def adl(self) -> Iterator[Prepare]:
        with _get(**CALLS, lazy_transfers=True, import_modules=HEP_MODULES) as get:
            yield jobs.queries(get)


class _Course:
    """Two workers with one core each: one has the file and is kept busy, the other one gets it."""

    def __init__(self, m: Manager, folder: Path) -> None:
        self.m, self.folder = m, folder
        self.file: File | None = None
        self._gates = (folder / f"gate{n}" for n in itertools.count())
        self._gate = next(self._gates)

    def begin(self, megabytes: int) -> None:
        """Make a new file on a worker, and forget the one before."""
        self._gate.touch()
        while not self.m.empty():
            self._end()
        if self.file is not None:
            self.m.undeclare_file(self.file)
        source = self.folder / f"source{megabytes}"
        if not source.exists():
            data.write_noise(source, megabytes)
        self.file = self.m.declare_temp()
        making = Task(f"cp {source} out")
        making.add_output(self.file, "out")
        self.m.submit(making)
        self._end()
        self._gate, held = next(self._gates), self.folder / "held"
        held.unlink(missing_ok=True)
        self.m.submit(self._reader(f"touch {held}; while [ ! -e {self._gate} ]; do sleep 0.1; done"))
        while not held.exists():
            time.sleep(0.001)

    def _reader(self, command: str) -> Task:
        assert self.file is not None
        task = Task(command)
        task.set_cores(1)
        task.add_input(self.file, "in", mount_symlink=True)
        return task

    def _end(self) -> None:
        task = self.m.wait()
        if task is None or not task.successful():
            msg = f"a task has failed: {task and task.error()}"
            raise RuntimeError(msg)

    def run(self, compared: bool) -> float:
        """Give the seconds until the other worker has all of it, or until a task there may read it."""
        assert self.file is not None
        start = time.perf_counter()
        self.m.submit(self._reader("true"))
        while self.m.get_file_replica_count(self.file) < 2:
            time.sleep(0.001)
        moved = time.perf_counter() - start
        self._end()  # also where that is not measured: nobody else's turn begins before
        return time.perf_counter() - start if compared else moved


def _transfer(course: _Course, compared: bool, size: Size, _part: str) -> Job:
    course.begin(size.file_mb)
    return Job(size.file_mb * data.MB / 1e9, lambda: course.run(compared), measures=True)


@contextlib.contextmanager
def _get(**options: object) -> Iterator[Get]:
    with DaskVine.local(cores=SLOTS) as m:
        yield functools.partial(m.get, **options)
