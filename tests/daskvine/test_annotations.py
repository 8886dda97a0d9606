"""What `dask.annotate` and `retries` say of vertices is done, or named as not done."""

from __future__ import annotations

import warnings

import dask
import numpy as np
import pytest

from daskvine.annotations import RESOURCE_NAMES, VertexAnnotations, collect_annotations, read_annotations
from daskvine.graph import Graph, to_task_spec_graph
from daskvine.options import Options
from tests.daskvine import sample_graphs as v
from vinecore.errors import InsufficientResources
from vinecore.resources.amounts import ResourceRequest


def raise_until(log, times):
    """Raise at the first so many runs; each run adds a line to the log."""
    v.write_down(log, "run")
    runs = len(log.read_text().split())
    if runs <= times:
        msg = f"run {runs}"
        raise OSError(msg)
    return runs


def runs_of(log):
    return len(log.read_text().split())


# ---- retries


@pytest.mark.parametrize("retries", [1, 3])
def test_raising_function_is_retried(m, tmp_path, task_mode, retries):
    """A function that raises is run again as often as retries says."""
    log = tmp_path / "log"
    vertex = dask.delayed(raise_until)(log, retries)
    assert vertex.compute(scheduler=m.get, task_mode=task_mode, retries=retries) == retries + 1


def test_last_exception_is_raised_after_retries(m, tmp_path, task_mode):
    """The last exception is raised when all retries are used."""
    log = tmp_path / "log"
    vertex = dask.delayed(raise_until)(log, 99)
    with pytest.raises(OSError, match="run 3") as caught:
        vertex.compute(scheduler=m.get, task_mode=task_mode, retries=2)
    assert runs_of(log) == 3
    assert "attempt 3" in "".join(caught.value.__notes__)


def test_raising_function_runs_once_without_retries(m, tmp_path, task_mode):
    """A function that raises is run once without retries."""
    log = tmp_path / "log"
    with pytest.raises(OSError, match="run 1"):
        dask.delayed(raise_until)(log, 1).compute(scheduler=m.get, task_mode=task_mode)
    assert runs_of(log) == 1


def test_annotated_retries_count_for_their_vertices(m, tmp_path, task_mode):
    """Annotated retries count for the vertices they are written at."""
    logs = [tmp_path / "first", tmp_path / "second"]
    with dask.annotate(retries=2):
        first = dask.delayed(raise_until)(logs[0], 2)
    second = dask.delayed(raise_until)(logs[1], 1)
    assert first.compute(scheduler=m.get, task_mode=task_mode) == 3
    with pytest.raises(OSError, match="run 1"):
        second.compute(scheduler=m.get, task_mode=task_mode)
    assert runs_of(logs[1]) == 1


def test_surrounding_annotations_count_for_all(m, tmp_path):
    """Annotations that surround the compute count for all vertices."""
    vertices = [dask.delayed(raise_until)(tmp_path / f"log-{n}", 1) for n in range(3)]
    with dask.annotate(retries=1):
        assert dask.compute(*vertices, scheduler=m.get, task_mode="function-calls") == (2, 2, 2)


def test_readers_of_retried_vertex_get_value(m, tmp_path, task_mode):
    """Readers of a vertex that raised first get its value."""
    source = dask.delayed(raise_until)(tmp_path / "source", 1)
    readers = [dask.delayed(v.inc)(source) for _ in range(3)]
    assert dask.compute(*readers, scheduler=m.get, task_mode=task_mode, retries=1) == (3, 3, 3)


# ---- resources, priority, and what has no meaning


def test_annotations_say_what_a_vertex_needs(m):
    with dask.annotate(cores=2, memory=500):
        x = dask.delayed(v.variable)("CORES")
        y = dask.delayed(v.variable)("MEMORY")
    z = dask.delayed(v.variable)("CORES")
    with dask.annotate(resources={"CPU": 2}):
        w = dask.delayed(v.variable)("CORES")
    assert dask.compute(x, y, z, w, scheduler=m.get) == ("2", "500", "1", "2")


def test_annotations_that_cannot_be_are_errors(m):
    with dask.annotate(cores=64):
        large = dask.delayed(v.inc)(1)
    with pytest.raises(InsufficientResources, match="at most 2 cores"):
        large.compute(scheduler=m.get)
    for wrong, kind in (
        ({"cores": "many"}, TypeError),
        ({"retries": -1}, ValueError),
        ({"priority": float("nan")}, ValueError),
        ({"resources": {"GPU": -1}}, ValueError),
    ):
        with dask.annotate(**wrong):
            vertex = dask.delayed(v.inc)(1)
        with pytest.raises(kind, match=r"which is invalid"):
            vertex.compute(scheduler=m.get)


def test_vertices_of_higher_priority_run_first(m, tmp_path):
    """Each needs both cores, so they run one after another; all are submitted together."""
    log = tmp_path / "log"
    vertices = []
    for n in range(6):
        with dask.annotate(priority=n % 3):
            vertices.append(dask.delayed(v.write_down)(log, n % 3))
    dask.compute(*vertices, scheduler=m.get, task_mode="tasks", resources={"cores": 2})
    assert [int(line) for line in log.read_text().split()] == [2, 2, 1, 1, 0, 0]


def read(annotations, **options):
    with dask.annotate(**annotations):
        vertex = dask.delayed(v.inc)(1)
    graph = Graph(to_task_spec_graph(vertex.dask), [vertex.key])
    found = read_annotations(collect_annotations(vertex.dask), graph, Options.parse(options))
    return found[vertex.key]


@pytest.mark.parametrize(
    ("annotations", "options", "named"),
    [
        ({"workers": ["a"]}, {}, "workers"),
        ({"allow_other_workers": True}, {}, "allow_other_workers"),
        ({"resources": {"license": 1}}, {}, "license"),
        ({"resources": {"GPU": 1}}, {"task_mode": "function-calls"}, "lib_resources"),
        ({"cores": 2}, {"task_mode": "function-calls"}, "lib_resources"),
        ({"priority": 1}, {"task_priority_mode": "FIFO"}, "task_priority_mode"),
        ({"mine": 1}, {}, "mine"),
    ],
)
def test_an_annotation_without_effect_is_named(annotations, options, named):
    with pytest.warns(UserWarning, match=f"annotations without effect.*{named}"):
        assert read(annotations, **options) == VertexAnnotations()


def test_library_annotations_warn_of_nothing(m, task_mode, tmp_path):
    """What a library marks its own vertices with warns of nothing."""
    ak, dak = pytest.importorskip("awkward"), pytest.importorskip("dask_awkward")
    array = dak.from_awkward(ak.Array([[1, 2], [], [3]]), npartitions=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="annotations without effect")
        dak.to_parquet(array, str(tmp_path), compute=False).compute(scheduler=m.get, task_mode=task_mode)
    assert ak.from_parquet(str(tmp_path)).to_list() == [[1, 2], [], [3]]


def test_honoured_annotation_warns_of_nothing():
    """An annotation that is honoured warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read({"retries": np.int64(2), "priority": np.float32(1), "resources": {"GPU": 1}}) == (
            VertexAnnotations(ResourceRequest(gpus=1), 2, 1.0)
        )
        assert set(RESOURCE_NAMES.values()) == {"cores", "memory", "disk", "gpus"}


@pytest.mark.parametrize(
    ("option", "mode"),
    [("resources", "function-calls"), ("lib_resources", "tasks"), ("lib_modules", "tasks")],
)
def test_option_of_other_mode_is_named(m, option, mode):
    """An option of the other mode is named."""
    value = ["math"] if option == "lib_modules" else {"cores": 1}
    with pytest.warns(UserWarning, match=f"{option}.* has no effect with task_mode='{mode}'"):
        assert dask.delayed(v.inc)(1).compute(scheduler=m.get, task_mode=mode, **{option: value}) == 2


def annotations_that_arrive(make, options, settings):
    """Give what the scheduler hears of vertices that were made with ``retries=2``."""
    seen = []

    def get(graph, keys, **_options):
        seen.append(collect_annotations(graph))
        return dask.get(graph, keys)

    with dask.annotate(retries=2):
        collection = make()
    with dask.config.set(settings):
        collection.compute(scheduler=get, **options)
    return set(map(str, seen[0].values()))


@pytest.mark.parametrize(
    ("options", "settings"), [({"optimize_graph": False}, {}), ({}, {"optimization.fuse.active": False})]
)
def test_array_annotations_reach_vertices(options, settings):
    """Annotations of arrays are there where dask does not optimize them away."""
    ones = pytest.importorskip("dask.array").ones
    assert annotations_that_arrive(lambda: ones(8, chunks=4) + 1, options, settings) == {"{'retries': 2}"}


def test_bag_annotations_reach_vertices():
    """Annotations of bags are there where dask does not optimize them away."""
    bags = pytest.importorskip("dask.bag")
    found = annotations_that_arrive(
        lambda: bags.from_sequence("ab", npartitions=2).map(str.upper).count(), {"optimize_graph": False}, {}
    )
    assert found == {"{'retries': 2}"}


def test_annotations_around_array_computation_count(m, tmp_path, task_mode):
    """Annotations around the computation of an array count for all vertices."""

    def raise_first(block):
        with open(tmp_path / "runs", "a+") as runs:
            runs.write("x")
            runs.seek(0)
            if len(runs.read()) == 1:
                raise RuntimeError
        return block

    array = pytest.importorskip("dask.array").ones(4, chunks=4).map_blocks(raise_first, meta=np.empty(0))
    with dask.annotate(retries=1):
        assert array.sum().compute(scheduler=m.get, task_mode=task_mode) == 4
