"""A TTree that a vertex holds has one name while it is the same, and naming it takes no longer than sending it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from dask._task_spec import Task

from daskvine import DaskVine, uproot_trees
from daskvine.cache_keys import ResultKeys
from daskvine.graph import Graph, to_task_spec_graph
from daskvine.program_state import collect_program_state

uproot = pytest.importorskip("uproot", reason="opens ROOT files: pip install uproot")
pytest.importorskip("dask_awkward", reason="uproot.dask needs it: pip install dask-awkward")


class Odd:
    """Not of uproot's."""


def write(path, offset, branches=5):
    with uproot.recreate(path) as file:
        file.mktree("Events", {f"b{number}": "f8" for number in range(branches)})
        file["Events"].extend({f"b{number}": [offset, 1.0, number] for number in range(branches)})


def tree_in(path):
    return uproot.open({str(path): "Events"})


def name_of(tree):
    graph = Graph(to_task_spec_graph({"x": Task("x", len, tree)}), ["x"])
    around = collect_program_state(os.environ)
    return ResultKeys(graph, around.digest, lambda _key: True, around.resources).key_for("x")


@pytest.fixture
def path(tmp_path):
    write(tmp_path / "a.root", 0.5)
    return tmp_path / "a.root"


def test_tree_has_same_key_in_other_process(path):
    """The same tree is described alike in another process."""
    program = f"from tests.daskvine.test_uproot_trees import *; print(uproot_trees.describe_tree(tree_in({str(path)!r})))"
    others = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert others == {str(uproot_trees.describe_tree(tree_in(path)))}
    assert name_of(tree_in(path)) == name_of(tree_in(path)) != "None"


def test_other_trees_have_other_names(path, tmp_path):
    found = [name_of(tree_in(path))]
    write(tmp_path / "b.root", 0.5)
    found.append(name_of(tree_in(tmp_path / "b.root")))
    write(tmp_path / "b.root", 0.75)
    found.append(name_of(tree_in(tmp_path / "b.root")))
    write(path, 0.5, branches=6)
    found.append(name_of(tree_in(path)))
    assert len(set(found)) == len(found)


def test_file_altered_after_opening_changes_key(path):
    """A file that is altered after it was opened gives another name."""
    tree = tree_in(path)
    before = name_of(tree)
    with open(path, "r+b") as file:
        content = bytearray(file.read())
        content[-1] ^= 1
        file.seek(0)
        file.write(content)
    os.utime(path, ns=(1, 1))
    assert name_of(tree) != before


def test_objects_put_into_tree_count(path):
    """What somebody has put into a tree counts."""
    tree = tree_in(path)
    before = name_of(tree)
    tree.branches[0]._interpretation = uproot.AsDtype(">i8")
    changed = name_of(tree)
    tree.mine = Odd()
    assert uproot_trees.describe_tree(tree) is None
    assert len({before, changed, name_of(tree)}) == 3


def test_branches_are_not_inspected_one_by_one(tmp_path):
    """A tree is not looked into branch by branch."""

    def parts(branches):
        from daskvine.fingerprint import Fingerprinter

        write(tmp_path / f"{branches}.root", 0.5, branches)
        digests = Fingerprinter()
        digests.digest(tree_in(tmp_path / f"{branches}.root"))
        return len(digests._known)

    assert parts(40) == parts(4)


def test_vertices_with_open_files_are_reused(path, task_mode):
    """Vertices that hold opened files are found again and see changes."""
    with DaskVine.local(workers=1, cores=2, memory_mb=2000, disk_mb=2000) as m:

        def total():
            events = uproot.dask({str(path): "Events"}, open_files=True, steps_per_file=2)
            import dask_awkward as ak

            lazy = ak.sum(events["b1"])
            value = lazy.compute(scheduler=m.get, task_mode=task_mode, reuse=True)
            assert value == lazy.compute(scheduler="synchronous")
            return m.last_run.executed

        first = total()
        assert (first > 0, total()) == (True, 0)
        write(path, 7.5)
        assert total() > 0
