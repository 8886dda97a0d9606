"""Histograms that are accumulated on workers: the same as without them, bin for bin, in trees, and in little memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import dask
import dask.array as da
import numpy as np
import psutil
import pytest

from daskvine import DaskVine, daskvine_merge
from tests.harness import sample_tasks
from tests.harness.processes import wait_until

hist = pytest.importorskip("hist")
pytest.importorskip("dask_histogram")
hda = pytest.importorskip("hist.dask")
processor = pytest.importorskip("coffea.processor")

MB = 1_000_000
LARGE = 5000  # columns: 40 MB
ONE_SLOT = {"task_mode": "function-calls", "lib_resources": {"cores": 1, "slots": 1}}
FUNCTION_CALLS = {"task_mode": "function-calls", "lib_resources": {"cores": 2, "slots": 2}}


@dask.delayed(pure=True)
def partial(number, columns):
    """A histogram of columns of 8 kB, of which 15 % are filled, here and there."""
    made = hist.Hist.new.Reg(998, 0, 1).Reg(columns - 2, 0, 1).Double()
    bins = made.view(flow=True)
    rng = np.random.default_rng(number)
    for column in bins.T:
        column[rng.random(len(column)) < 0.15] = number + 1
    return made


@daskvine_merge
def add_in_place(parts):
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def accumulated(parts):
    wrap = dask.delayed(lambda made: {"sample": {"h": made}, "n": 1})
    unwrap = dask.delayed(lambda result: result["sample"]["h"])
    return unwrap(dask.delayed(processor.accumulate)([wrap(part) for part in parts]))


WAYS = {"sum": dask.delayed(sum), "marked": dask.delayed(add_in_place), "accumulate": accumulated}


class Anonymous:
    """The most memory of its own that any process of a local vine has had meanwhile, in MB."""

    def __init__(self, m):
        self._workers = [process.pid for process in m.factory.processes]

    def __enter__(self):
        self.peak, self._end = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()
        self._look()

    def _watch(self):
        while not self._end.wait(0.01):
            self._look()

    def _look(self):
        for worker in self._workers:
            for process in psutil.Process(worker).children(recursive=True):
                self.peak = max(self.peak, self._of(process.pid) / MB)

    @staticmethod
    def _of(pid):
        try:
            with open(f"/proc/{pid}/smaps_rollup") as lines:
                return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous"))
        except (OSError, StopIteration):
            return 0


@pytest.fixture(scope="module")
def one_slot():
    with DaskVine.local(workers=1, cores=1, memory_mb=4000, disk_mb=4000) as m:
        yield m


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_large_histograms_merge_in_twice_memory(one_slot, way):
    """Histograms of 40 mb are merged in twice their memory."""

    def computed(columns):
        made = way([partial(number, columns) for number in range(4)])
        return made.compute(scheduler=one_slot.get, **ONE_SLOT)

    with Anonymous(one_slot) as before:
        computed(10)
    with Anonymous(one_slot) as during:
        total = computed(LARGE)
    assert total == sum(dask.compute(*[partial(n, LARGE) for n in range(4)], scheduler="synchronous"))
    assert during.peak - before.peak < 2.5 * 40


def hold_memory(folder):
    held = np.ones(80 * MB // 8)
    sample_tasks.held(folder, "holds", "gate")
    return len(held)


def test_measured_memory_is_that_of_vertices(one_slot, tmp_path):
    """Where a merge takes too much, that is seen."""
    with Anonymous(one_slot) as before:
        one_slot.get({"a": (abs, -1)}, "a", **ONE_SLOT)
    with Anonymous(one_slot) as during, ThreadPoolExecutor(1) as threads:
        held = threads.submit(one_slot.get, {"a": (hold_memory, str(tmp_path))}, "a", **ONE_SLOT)
        try:
            wait_until(lambda: during.peak - before.peak > 75 or held.done(), "80 MB to be seen")
        finally:
            (tmp_path / "gate").touch()
        assert held.result() == 80 * MB // 8
    assert during.peak - before.peak > 75


@pytest.mark.parametrize("split_every", [None, False, 3])
def test_hist_dask_agrees_through_trees(m, split_every):
    """Hist dask gives what it gives elsewhere through trees."""
    x = da.random.default_rng(1).random(1000, chunks=25)
    with dask.config.set({"histogram.aggregation.split-every": 8 if split_every is None else split_every}):
        made = hda.Hist.new.Reg(50, 0, 1).Int64().fill(x)
        expected = made.compute(scheduler="synchronous")
        got = made.compute(scheduler=m.get, **FUNCTION_CALLS)
        assert got == expected
        assert type(got) is type(expected)
        assert max(map(len, m.last_run._graph.dependencies.values())) == (split_every or 8)
        made.compute(scheduler=m.get, reconstruct=False, **FUNCTION_CALLS)
        widest = max(map(len, m.last_run._graph.dependencies.values()))
        assert widest == {None: 8, False: 40, 3: 3}[split_every]


def test_accumulators_are_merged_as_coffea_merges_them(m, task_mode):
    @dask.delayed
    def process(number):
        made = hist.Hist.new.Reg(10, 0, 1).StrCat([], growth=True).Int64()
        made.fill(np.random.default_rng(number).random(100), f"sample {number % 3}")
        return {"h": made, "cutflow": {"all": 100, f"of {number % 2}": 1}}

    parts = [process(number) for number in range(20)]
    got = dask.delayed(processor.accumulate)(parts).compute(scheduler=m.get, task_mode=task_mode)
    assert got == processor.accumulate(dask.compute(*parts, scheduler="synchronous"))
    assert list(got["h"].axes[1]) == ["sample 0", "sample 1", "sample 2"]
    assert max(map(len, m.last_run._graph.dependencies.values())) == 8


def test_objects_beside_merge_may_be_large(m, task_mode):
    """What goes with a merge may be large."""
    offset = np.arange(50_000.0)

    @daskvine_merge
    def merge(parts, offset):
        return sum(parts) + (len(offset) - 50_000)

    parts = [dask.delayed(float)(number) for number in range(9)]
    options = {"task_mode": task_mode, "reconstruct": True, "merge_size": 3}
    assert dask.delayed(merge)(parts, offset=offset).compute(scheduler=m.get, **options) == 36.0
