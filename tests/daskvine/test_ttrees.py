"""Descriptions of TTrees that were read before: nobody can tell, but by the time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from daskvine import DaskVine, ttrees

np = pytest.importorskip("numpy", reason="reads ROOT files: pip install uproot")
ak = pytest.importorskip("awkward", reason="reads ROOT files: pip install uproot")
uproot = pytest.importorskip("uproot", reason="reads ROOT files: pip install uproot")


@pytest.fixture
def kept(monkeypatch):
    """What is kept in this process, for the time of a test."""
    monkeypatch.setitem(uproot.classes, "TTree", uproot.classes["TTree"])
    ttrees.keep()
    return uproot.classes["TTree"].kept


def write(path, count=100, scale=1.0, compression=None):
    """Write a tree with numbers and lists of numbers, in two baskets each."""
    with uproot.recreate(path, compression=compression) as file:
        tree = file.mktree("Events", {"x": "f8", "i": "i4", "y": "var * float32"}, title="Tree")
        for _ in range(2):
            arrays = {
                "x": scale * np.arange(count),
                "i": np.arange(count, dtype=np.int32),
                "y": ak.unflatten(np.arange(3 * count, dtype=np.float32), [0, 6] * (count // 2)),
            }
            tree.extend(arrays)
    return path


def read(path, name="Events"):
    """Open a file and read a tree, as the vertices of a graph do."""
    return uproot.reading.ReadOnlyFile(path, object_cache=None, array_cache=None).root_directory[name]


def everything(tree):
    """All that a tree can say."""
    branches = {
        name: (
            branch.typename,
            str(branch.interpretation),
            branch.title,
            branch.num_entries,
            branch.entry_offsets,
            [branch.basket_compressed_bytes(n) for n in range(branch.num_baskets)],
            branch.parent is tree,
            branch.file is tree.file,
        )
        for name, branch in tree.items()
    }
    return (
        type(tree),
        tree.title,
        tree.num_entries,
        tree.object_path,
        tree.cache_key,
        branches,
        tree.arrays().to_list(),
    )


@pytest.mark.parametrize("compression", [None, uproot.ZLIB(1)], ids=["plain", "compressed"])
def test_a_tree_that_is_known_is_as_the_one_that_was_read(kept, tmp_path, compression):
    path = write(tmp_path / "file.root", compression=compression)
    first, second = read(path), read(path)
    assert kept.hits == 1
    assert second is not first
    assert second.file is not first.file
    assert everything(second) == everything(first)


def test_who_closes_the_file_closes_it_for_nobody_else(kept, tmp_path):
    path = write(tmp_path / "file.root")
    first = read(path)
    second = read(path)
    first.file.close()
    third = read(path)
    second.file.close()
    assert third["x"].array().to_list() == [*range(100)] * 2
    assert kept.hits == 2


def test_what_one_does_to_a_tree_is_not_seen_in_the_next(kept, tmp_path):
    path = write(tmp_path / "file.root")
    for _ in range(3):
        tree = read(path)
        assert "mine" not in vars(tree["x"])
        tree["x"].mine = True
        tree["x"].members["fBasketSeek"] = None
    assert kept.hits == 2
    assert read(path)["x"].array().to_list() == [*range(100)] * 2


def test_a_file_that_was_written_again_is_read_again(kept, tmp_path):
    path = write(tmp_path / "file.root")
    assert read(path).num_entries == 200
    write(path, 50, scale=2.0)
    assert read(path)["x"].array().to_list() == [2.0 * n for n in range(50)] * 2
    assert kept.hits == 0


def test_files_with_the_same_identity_are_not_taken_for_each_other(kept, tmp_path):
    """ROOT gives all files of a reproducible job the same."""
    first, second = write(tmp_path / "first.root"), write(tmp_path / "second.root", 60)
    own, other = (read(path).file.uuid.bytes for path in (first, second))
    data = second.read_bytes()
    assert other in data
    second.write_bytes(data.replace(other, own))
    assert read(first).num_entries == 200
    tree = read(second)
    assert tree.file.uuid == read(first).file.uuid
    assert tree.num_entries == 120
    assert tree["x"].array().to_list() == [*range(60)] * 2


def test_trees_of_one_file_are_told_apart(kept, tmp_path):
    with uproot.recreate(tmp_path / "file.root") as file:
        for number, name in enumerate(["first", "second"]):
            file.mktree(name, {"x": "i4"}).extend({"x": np.arange(3, dtype=np.int32) + number})
    for _ in range(2):
        assert read(tmp_path / "file.root", "first")["x"].array().to_list() == [0, 1, 2]
        assert read(tmp_path / "file.root", "second")["x"].array().to_list() == [1, 2, 3]
    assert kept.hits == 2


def test_those_not_asked_for_longest_go_when_there_are_too_many(kept, tmp_path, monkeypatch):
    paths = [write(tmp_path / f"{n}.root") for n in range(3)]
    description, _classes = ttrees.describe(tree := read(paths[0]), [tree.file, tree.chunk, tree.parent])
    monkeypatch.setattr(ttrees, "MOST_BYTES", int(2.5 * len(description)))
    for n in (0, 1, 0, 2):  # 1 goes
        read(paths[n])
    hits = kept.hits
    read(paths[0])
    assert kept.hits == hits + 1
    read(paths[1])
    assert kept.hits == hits + 1


def test_a_tree_with_a_stranger_in_it_is_read_each_time(kept, tmp_path, monkeypatch):
    path = write(tmp_path / "file.root")
    usual = uproot.models.TTree.Model_TTree.read

    def with_stranger(*args, **kwargs):
        tree = usual(*args, **kwargs)
        tree.stranger = open(path, "rb")
        return tree

    monkeypatch.setattr(uproot.models.TTree.Model_TTree, "read", with_stranger)
    for _ in range(2):
        with read(path).stranger as stranger:
            assert not stranger.closed
    assert kept.hits == 0


@pytest.mark.parametrize("order", ["keep, import", "import, keep", "keep, keep, import"])
def test_whenever_uproot_is_imported(order):
    steps = {"keep": "ttrees.keep()", "import": "import uproot"}
    program = [
        "import sys",
        "from daskvine import ttrees",
        "before = list(sys.meta_path)",
        *(steps[step] for step in order.split(", ")),
        "assert uproot.classes['TTree'].kept.hits == 0",
        "assert sys.meta_path == before, sys.meta_path",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(program)], check=True)


def hits():
    """How often a tree was known in this slot."""
    return uproot.classes["TTree"].kept.hits


def total(path, _number):
    """Read a tree in a vertex."""
    return float(ak.sum(read(path)["x"].array()))


def test_slots_keep_what_the_vertices_of_all_graphs_have_read(tmp_path):
    path = write(tmp_path / "file.root")
    with DaskVine.local(workers=1, cores=1) as m:
        options = {"task_mode": "function-calls", "progress_disable": True}
        for _ in range(2):
            assert m.get({("x", n): (total, path, n) for n in range(3)}, [("x", 0), ("x", 2)], **options) == (
                9900.0,
                9900.0,
            )
        assert m.get({"hits": (hits,)}, "hits", **options) == 3
