"""Descriptions of TTrees that were read before: nobody can tell, but by the time."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from pathlib import Path

import pytest

from daskvine import DaskVine
from daskvine.remote import ttree_cache

np = pytest.importorskip("numpy", reason="reads ROOT files: pip install uproot")
ak = pytest.importorskip("awkward", reason="reads ROOT files: pip install uproot")
uproot = pytest.importorskip("uproot", reason="reads ROOT files: pip install uproot")


SAMPLES = Path(__file__).parents[1] / "data"
TREES = [
    ("treemaker.root", "PreSelection"),
    ("edm4hep.root", "events"),
    ("edm4hep.root", "podio_metadata"),
    ("p8_ee_WW_ecm240_edm4hep.root", "events"),
    ("pduneana.root", "pduneana/beamana"),
]


@pytest.fixture
def kept(monkeypatch):
    """What is kept in this process, for the time of a test."""
    monkeypatch.setitem(uproot.classes, "TTree", uproot.classes["TTree"])
    ttree_cache.install_ttree_cache()
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
def test_cached_tree_equals_read_one(kept, tmp_path, compression):
    """A tree that is known is as the one that was read."""
    path = write(tmp_path / "file.root", compression=compression)
    first, second = read(path), read(path)
    assert kept.hits == 1
    assert second is not first
    assert second.file is not first.file
    assert everything(second) == everything(first)


def test_closing_file_closes_no_other_use(kept, tmp_path):
    """Who closes the file closes it for nobody else."""
    path = write(tmp_path / "file.root")
    first = read(path)
    second = read(path)
    first.file.close()
    third = read(path)
    second.file.close()
    assert third["x"].array().to_list() == [*range(100)] * 2
    assert kept.hits == 2


def test_changes_to_tree_are_not_shared(kept, tmp_path):
    """What one does to a tree is not seen in the next."""
    path = write(tmp_path / "file.root")
    for _ in range(3):
        tree = read(path)
        assert "mine" not in vars(tree["x"])
        tree["x"].mine = True
        tree["x"].members["fBasketSeek"] = None
    assert kept.hits == 2
    assert read(path)["x"].array().to_list() == [*range(100)] * 2


def test_rewritten_file_is_read_again(kept, tmp_path):
    """A file that was written again is read again."""
    path = write(tmp_path / "file.root")
    assert read(path).num_entries == 200
    write(path, 50, scale=2.0)
    assert read(path)["x"].array().to_list() == [2.0 * n for n in range(50)] * 2
    assert kept.hits == 0


def test_equal_identity_does_not_confuse_files(kept, tmp_path):
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


def test_least_recently_used_trees_go_first(kept, tmp_path, monkeypatch):
    """Those not asked for longest go when there are too many."""
    paths = [write(tmp_path / f"{n}.root") for n in range(3)]
    description = ttree_cache.pickle_ttree(tree := read(paths[0]), [tree.file, tree.chunk, tree.parent])
    monkeypatch.setattr(ttree_cache, "MOST_BYTES", int(2.5 * len(description.text)))
    for n in (0, 1, 0, 2):  # 1 goes
        read(paths[n])
    hits = kept.hits
    read(paths[0])
    assert kept.hits == hits + 1
    read(paths[1])
    assert kept.hits == hits + 1


def test_tree_with_foreign_object_is_reread(kept, tmp_path, monkeypatch):
    """A tree with a stranger in it is read each time."""
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
    steps = {"keep": "ttrees.install_ttree_cache()", "import": "import uproot"}
    program = [
        "import sys",
        "from daskvine.remote import ttree_cache as ttrees",
        "before = list(sys.meta_path)",
        *(steps[step] for step in order.split(", ")),
        "assert uproot.classes['TTree'].kept.hits == 0",
        "assert sys.meta_path == before, sys.meta_path",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(program)], check=True)


def digests(path, name, columns):
    """Open a file and read columns one after another; give digests of their contents, or the type of error that reading one raises."""
    tree, found = read(path, name), []
    for column in columns:
        try:
            form, length, parts = ak.to_buffers(ak.Array(tree[column].array()))
        except Exception as error:  # noqa: BLE001
            found.append((column, type(error).__name__))
        else:
            digest = hashlib.sha256(f"{form} {length}".encode())
            for part in sorted(parts):
                digest.update(parts[part].dtype.str.encode() + parts[part].tobytes())
            found.append((column, digest.hexdigest()))
    return found


@pytest.fixture(scope="module")
def plain():
    """What uproot itself finds in a tree."""
    known = {}

    def plain(path, name):
        if (path, name) not in known:
            known[path, name] = dict(digests(path, name, read(path, name).keys(recursive=True)))
        return known[path, name]

    return plain


@pytest.fixture(scope="module")
def vine():
    with DaskVine.local(workers=1, cores=2) as m:
        yield m


@pytest.mark.parametrize(("mode", "size"), [("function-calls", 40), ("tasks", 200)])
@pytest.mark.parametrize(("file", "name"), TREES, ids=[f"{file}:{name}" for file, name in TREES])
def test_columns_equal_uproot_in_any_order(vine, plain, file, name, mode, size):
    """All columns of real files are what uproot reads each time and in any order."""
    path = SAMPLES / file
    expected = plain(path, name)
    order = 2 * [*expected]
    random.Random(file + mode).shuffle(order)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    graph = {("part", n): (digests, str(path), name, columns) for n, columns in enumerate(parts)}
    found = vine.get(graph, [*graph], task_mode=mode, progress_disable=True)
    wrong = {column for part in found for column, digest in part if digest != expected[column]}
    assert not wrong
    assert sorted(column for part in found for column, _digest in part) == sorted(order)


def test_trees_with_texts_of_root_are_kept(kept):
    """They are strings in Python, which have their text beside their dictionary."""
    for file, name in TREES:
        before = kept.hits
        first, second = read(SAMPLES / file, name), read(SAMPLES / file, name)
        assert kept.hits == before + 1
        for one, other in zip(first.itervalues(), second.itervalues(), strict=True):
            assert one.all_members.keys() == other.all_members.keys()
            for member, value in one.all_members.items():
                if isinstance(value, str):
                    assert (type(other.member(member)), str(other.member(member))) == (
                        type(value),
                        str(value),
                    )


def test_one_collection_of_coffea_after_another(vine):
    nanoevents = pytest.importorskip("coffea.nanoevents", reason="needs coffea: pip install 'daskvine[hep]'")
    pytest.importorskip("dask_awkward", reason="needs dask-awkward: pip install 'daskvine[hep]'")
    events = nanoevents.NanoEventsFactory.from_root(
        {str(SAMPLES / "treemaker.root"): "PreSelection"},
        schemaclass=nanoevents.TreeMakerSchema,
        mode="dask",
    ).events()
    for name in ("Electrons", "Photons", "Jets", "Electrons", "Muons"):
        found = events[name].pt.compute(scheduler=vine.get, task_mode="function-calls", progress_disable=True)
        assert found.to_list() == events[name].pt.compute(scheduler="synchronous").to_list()


def test_file_with_own_classes_is_reread(kept, tmp_path):
    """A file that needs classes of its own is read each time."""
    path = write(tmp_path / "file.root")
    read(path)
    for _ in range(2):
        file = uproot.reading.ReadOnlyFile(path, object_cache=None, array_cache=None)
        file.remove_class_definition("TLeafD")  # as uproot does where its own definition does not fit
        assert file.root_directory["Events"]["x"].array().to_list() == [*range(100)] * 2
    assert kept.hits == 0


def test_other_class_in_uproot_invalidates_cache(kept, tmp_path, monkeypatch):
    """What is known does not count once uproot takes another class."""
    path = write(tmp_path / "file.root")
    read(path)
    usual = type(read(path)["x"].member("fLeaves")[0])
    other = type(usual.__name__, (usual,), {"__module__": usual.__module__})
    monkeypatch.setitem(uproot.classes["TLeafD"].known_versions, usual.class_version.fget(usual()), other)
    hits = kept.hits
    assert type(read(path)["x"].member("fLeaves")[0]) is other
    assert kept.hits == hits


@pytest.mark.parametrize("minimal", [True, False])
def test_file_options_filter_cached_tree(kept, tmp_path, minimal):
    """What the options of a file leave out is left out."""
    path = write(tmp_path / "file.root")
    read(path)
    with uproot.open(path, minimal_ttree_metadata=minimal) as file:
        assert file["Events"].has_member("fIndexValues") is not minimal
        assert file["Events"].arrays().to_list() == read(path).arrays().to_list()


def hits():
    """How often a tree was known in this slot."""
    return uproot.classes["TTree"].kept.hits


def total(path, _number):
    """Read a tree in a vertex."""
    return float(ak.sum(read(path)["x"].array()))


def test_slots_keep_trees_between_graphs(tmp_path):
    """Slots keep what the vertices of all graphs have read."""
    path = write(tmp_path / "file.root")
    with DaskVine.local(workers=1, cores=1) as m:
        options = {"task_mode": "function-calls", "progress_disable": True}
        for _ in range(2):
            assert m.get({("x", n): (total, path, n) for n in range(3)}, [("x", 0), ("x", 2)], **options) == (
                9900.0,
                9900.0,
            )
        assert m.get({"hits": (hits,)}, "hits", **options) == 3
