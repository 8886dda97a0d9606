"""The scaling benchmark measures every cell. Nothing here depends on how fast anything is."""

import importlib.util
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from dask.core import get_dependencies

from benchmarks.scaling import files, report
from benchmarks.scaling.shapes import SHAPES, dask_graph
from tests.harness.processes import PATIENCE_S

ROOT = Path(__file__).parents[2]


def bench(tmp_path, workers, *arguments):
    """Measure small cells; temporary files go where they can be counted."""
    scratch, record = tmp_path / "scratch", tmp_path / "scaling.json"
    scratch.mkdir()
    command = [
        sys.executable,
        "-m",
        "benchmarks.scaling",
        "--quick",
        "--tasks",
        "300",
        "--workers",
        workers,
        "--json",
        record,
    ]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env={**os.environ, "TMPDIR": str(scratch)}, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(scratch.iterdir())
    cells = json.loads(record.read_text())["cells"]
    return done.stdout, [cell["rounds"][0] for cell in cells]


def test_every_cell_is_measured_without_loss(tmp_path):
    """Every cell is measured and no worker is lost."""
    picture = tmp_path / "scaling.png"
    drawing = ["--plot", picture] if importlib.util.find_spec("matplotlib") else []
    said, cells = bench(tmp_path, "2,20", *drawing)
    assert len(cells) == 2
    assert "largest /" in said
    for cell in cells:
        assert cell["lost"] == 0
        assert cell["vertices"] >= 300
        assert cell["loop_us"] > 0
        assert cell["rate"] > 0
    assert not drawing or picture.read_bytes().startswith(b"\x89PNG")


def test_dask_graph_is_measured_from_get(tmp_path):
    """A dask graph is measured from the call of get on."""
    _said, (cell,) = bench(tmp_path, "3", "--interface", "get", "--shape", "flat")
    assert cell["lost"] == 0
    assert cell["vertices"] == 300
    assert cell["user_us"] > 0


def test_the_scheduler_is_measured_by_itself(tmp_path):
    _said, (cell,) = bench(tmp_path, "3", "--interface", "scheduler")
    assert cell["loop_us"] > 0


@pytest.mark.parametrize("count", [10, 100, 1000, 4321])
def test_tree_ends_in_one_vertex(count):
    """A tree ends in one vertex that everything leads to."""
    graph, (target,) = dask_graph(SHAPES["tree"](count))
    assert count <= len(graph) <= count + 10
    seen, stack = set(), [target]
    while stack:
        key = stack.pop()
        assert key not in seen  # every result is read once
        seen.add(key)
        stack.extend(get_dependencies(graph, key))
    assert seen == graph.keys()


def test_flat_is_largest_of_smallest():
    """Flat is what the largest is of the smallest."""
    rows = [{"loop_us": 50.0}, {"loop_us": 60.0}, {"loop_us": 40.0}]
    assert report.spread(rows, "loop_us") == pytest.approx(1.5)


def test_too_many_open_files_are_refused():
    """More open files than the system allows are refused with the number."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("it allows any number")
    with pytest.raises(OSError, match=f"{hard + 1} open files are needed"):
        files.allow(hard + 1)
