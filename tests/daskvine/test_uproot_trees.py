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


def test_the_same_tree_is_described_alike_in_another_process(path):
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


def test_a_file_that_is_altered_after_it_was_opened_gives_another_name(path):
    tree = tree_in(path)
    before = name_of(tree)
    with open(path, "r+b") as file:
        content = bytearray(file.read())
        content[-1] ^= 1
        file.seek(0)
        file.write(content)
    os.utime(path, ns=(1, 1))
    assert name_of(tree) != before


def test_what_somebody_has_put_into_a_tree_counts(path):
    tree = tree_in(path)
    before = name_of(tree)
    tree.branches[0]._interpretation = uproot.AsDtype(">i8")
    changed = name_of(tree)
    tree.mine = Odd()
    assert uproot_trees.describe_tree(tree) is None
    assert len({before, changed, name_of(tree)}) == 3


def test_a_tree_is_not_looked_into_branch_by_branch(tmp_path):
    def parts(branches):
        from daskvine.fingerprint import Fingerprinter

        write(tmp_path / f"{branches}.root", 0.5, branches)
        digests = Fingerprinter()
        digests.digest(tree_in(tmp_path / f"{branches}.root"))
        return len(digests._known)

    assert parts(40) == parts(4)


def test_vertices_that_hold_opened_files_are_found_again_and_see_changes(path, task_mode):
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
