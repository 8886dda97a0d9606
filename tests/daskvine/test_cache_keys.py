"""What differs anywhere has another name; what is the same has the same one, in another process, too."""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import pathlib
import subprocess
import sys
import threading
import types

import cloudpickle
import numpy as np
import pytest
from dask._task_spec import Alias, DataNode, List, Task, TaskRef

from daskvine.cache_keys import ResultKeys
from daskvine.fingerprint import Fingerprinter
from daskvine.graph import Graph, flatten_keys, to_task_spec_graph
from daskvine.program_state import collect_program_state
from daskvine.value_descriptions import NotFingerprintable
from tests.daskvine import sample_graphs as v
from tests.daskvine.sample_graphs import by_value
from vinecore.manager.installed_packages import digest_packages


def names(graph, *keys, context=(), deterministic=lambda _key: True):
    graph = Graph(to_task_spec_graph(graph), keys or list(graph))
    around = collect_program_state(os.environ)
    recipes = ResultKeys(graph, (context, around.digest), deterministic, around.resources)
    return {key: recipes.key_for(key) for key in graph.vertices}


def name_of(function, *args, **kwargs):
    return names({"x": Task("x", function, *args, **kwargs)})["x"]


class Counter:
    """Defined where workers do not look."""

    __module__ = "__main__"

    def __init__(self, start):
        self.start = start

    def __call__(self, x):
        return x + self.start


def counter_like(step):
    class Counter:
        __module__ = "__main__"

        def __call__(self, x):
            return x + step

    return Counter


def closure(value):
    return by_value(
        "def make(value):\n    def g(x): return x + value\n    return g\nf = make(value)", value=value
    )


ALMOST_THE_SAME = {
    "a function": by_value("def f(x): return x + 1"),
    "another constant": by_value("def f(x): return x + 2"),
    "a constant of another type": by_value("def f(x): return x + 1.0"),
    "another operator": by_value("def f(x): return x - 1"),
    "another name of an attribute": by_value("def f(x): return x.real + 1"),
    "and another": by_value("def f(x): return x.imag + 1"),
    "another order": by_value("def f(x): return 1 + x"),
    "a lambda": by_value("f = lambda x: x + 1"),
    "another lambda": by_value("f = lambda x: x + 2"),
    "a default": by_value("def f(x, y=1): return x + y"),
    "another default": by_value("def f(x, y=2): return x + y"),
    "a keyword default": by_value("def f(x, *, y=1): return x + y"),
    "another keyword default": by_value("def f(x, *, y=2): return x + y"),
    "a closure": closure(1),
    "another closure": closure(2),
    "a closure of another type": closure(1.0),
    "a global": by_value("def f(x): return x + CUT", CUT=1),
    "another global": by_value("def f(x): return x + CUT", CUT=2),
    "a global array": by_value("def f(x): return x + CUT", CUT=np.array([1, 2])),
    "a global array of another dtype": by_value("def f(x): return x + CUT", CUT=np.array([1, 2], "i4")),
    "a global function": by_value("def g(x): return x\ndef f(x): return g(x)"),
    "another global function": by_value("def g(x): return -x\ndef f(x): return g(x)"),
    "a global function of a global": by_value("A = 1\ndef g(x): return x + A\ndef f(x): return g(x)"),
    "another global of a global": by_value("A = 2\ndef g(x): return x + A\ndef f(x): return g(x)"),
    "a global in a function inside": by_value("A = 1\ndef f(x):\n    def g(): return A\n    return g()"),
    "another in a function inside": by_value("A = 2\ndef f(x):\n    def g(): return A\n    return g()"),
    "a nested function": by_value("def f(x):\n    def g(y): return y + 1\n    return g(x)"),
    "another nested function": by_value("def f(x):\n    def g(y): return y + 2\n    return g(x)"),
    "a comprehension": by_value("def f(x): return [y + 1 for y in x]"),
    "another comprehension": by_value("def f(x): return [y + 2 for y in x]"),
    "a recursive function": by_value("def f(x): return f(x - 1) if x else 0"),
    "another recursive function": by_value("def f(x): return f(x - 2) if x else 0"),
    "two that call each other": by_value("def g(x): return f(x)\ndef f(x): return g(x) if x else 0"),
    "two others that do": by_value("def g(x): return f(x)\ndef f(x): return g(x) if x else 1"),
    "a partial": functools.partial(v.inc),
    "a partial with an argument": functools.partial(v.inc, 1),
    "with another one": functools.partial(v.inc, 2),
    "an object": Counter(1),
    "an object in another state": Counter(2),
    "an object of a class with a closure": counter_like(1)(),
    "an object of a class with another": counter_like(2)(),
    "a method of an object": Counter(1).__call__,
    "a method of another": Counter(2).__call__,
    "a built-in": len,
    "another built-in": sum,
    "an imported function": v.inc,
    "a generator": by_value("def f(x): yield x"),
    "an exception that is caught": by_value("def f(x):\n    try: return x\n    except KeyError: return 1"),
    "another that is caught": by_value("def f(x):\n    try: return x\n    except ValueError: return 1"),
    "an annotated one": by_value("import functools\n@functools.lru_cache\ndef g(x): return x\ndef f(x): return g(x)"),
}  # fmt: skip


def test_similar_functions_have_different_keys():
    """Functions that are almost the same have names of their own."""
    found = {about: name_of(function, 1) for about, function in ALMOST_THE_SAME.items()}
    found = {about: name for about, name in found.items() if name is not None}
    assert len(found) >= 45
    for (one, name), (other, other_name) in itertools.combinations(found.items(), 2):
        assert name != other_name, f"{one} and {other}"


ARGUMENTS = {
    "1": 1, "1.0": 1.0, "True": True, "'1'": "1", "b'1'": b"1", "bytearray": bytearray(b"1"), "complex": 1 + 0j, "None": None,
    "tuple": (1, 2), "list": [1, 2], "the other way round": [2, 1], "nested": [[1], 2], "otherwise nested": [1, [2]], "flat": [1, 2, []],
    "set": {1, 2}, "frozenset": frozenset({1, 2}), "dict": {"a": 1, "b": 2}, "dict in another order": {"b": 2, "a": 1},
    "dict of another key": {"c": 1, "b": 2}, "range": range(2), "slice": slice(2), "another slice": slice(0, 2),
    "f8": np.zeros(4), "f4": np.zeros(4, "f4"), "i8": np.zeros(4, "i8"), "big-endian": np.zeros(4, ">f8"), "2 by 2": np.zeros((2, 2)),
    "ones": np.ones(4), "Fortran": np.asfortranarray(np.arange(4.0).reshape(2, 2)), "C": np.arange(4.0).reshape(2, 2),
    "a scalar": np.float64(1), "of another type": np.float32(1), "a dtype": np.dtype("f8"), "another dtype": np.dtype("f4"),
    "a ufunc": np.add, "another ufunc": np.subtract, "a class": int, "another class": float, "a module": os, "another module": sys,
    "minus zero": -0.0, "zero": 0.0, "a big number": 10**30, "ellipsis": ..., "a path": pathlib.PurePosixPath("1"),
}  # fmt: skip


def test_similar_arguments_have_different_keys():
    """Arguments that are almost the same have names of their own."""
    found = {about: name_of(v.inc, argument) for about, argument in ARGUMENTS.items()}
    assert None not in found.values()
    for (one, name), (other, other_name) in itertools.combinations(found.items(), 2):
        assert name != other_name, f"{one} and {other}"


def test_argument_order_and_names_count():
    """The order and the names of arguments count."""
    found = [
        name_of(v.inc, 1, 2), name_of(v.inc, 2, 1), name_of(v.inc, 1, y=2), name_of(v.inc, 1, z=2), name_of(v.inc, x=1, y=2),
        name_of(v.inc, (1, 2)), name_of(v.inc, 1), name_of(v.inc, 12),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert name_of(v.inc, x=1, y=2) == name_of(v.inc, y=2, x=1)


def test_the_context_counts():
    graph = {"x": (v.inc, 1)}
    assert names(graph, context={"A": "1"}) != names(graph, context={"A": "2"})


def test_keys_do_not_count():
    one = names({"a": (v.inc, 1), "b": (v.inc, "a")})
    other = names({"c": (v.inc, 1), "d": (v.inc, "c")})
    assert [*one.values()] == [*other.values()]
    assert one["a"] != one["b"]


def test_whole_history_of_input_counts():
    """What an input is made of counts to the end."""
    one = names({"a": (v.inc, 1), "b": (v.inc, "a"), "c": (v.inc, "b")})
    other = names({"a": (v.inc, 2), "b": (v.inc, "a"), "c": (v.inc, "b")})
    assert not set(one.values()) & set(other.values())


def test_alias_and_data_have_their_values_key():
    """An alias and data are what they stand for."""
    plain = names({"a": Task("a", v.inc, 1), "b": Task("b", v.inc, TaskRef("a"))}, "b")
    through = names(
        {"a": Task("a", v.inc, DataNode("n", 1)), "x": Alias("x", "a"), "b": Task("b", v.inc, TaskRef("x"))},
        "b",
    )
    assert plain["b"] == through["b"]
    number = {"n": DataNode("n", 1), "a": Task("a", v.inc, TaskRef("n"))}
    assert names(number, "a")["a"] == plain["a"]


def test_inputs_in_lists_count_in_their_order():
    graph = {"a": Task("a", v.inc, 1), "b": Task("b", v.inc, 2)}
    one = names(graph | {"s": Task("s", sum, List(TaskRef("a"), TaskRef("b")))})
    other = names(graph | {"s": Task("s", sum, List(TaskRef("b"), TaskRef("a")))})
    assert one["s"] != other["s"]


def fused(first, second, *, arguments, prefix=""):
    a, b = prefix + "a", prefix + "b"
    inner = {a: Task(a, first, TaskRef("arg0")), b: Task(b, second, TaskRef(a), TaskRef("arg1"))}
    subgraph = importlib.import_module("dask._task_spec")._execute_subgraph
    return name_of(subgraph, inner, b, ("arg1", "arg0"), *arguments)


def test_fused_vertices_are_what_they_do():
    one = fused(v.inc, v.inc, arguments=(1, 2))
    assert one == fused(v.inc, v.inc, arguments=(1, 2), prefix="random")
    assert one != fused(v.inc, v.inc, arguments=(2, 1))
    assert one != fused(v.inc, len, arguments=(1, 2))
    assert one != fused(len, v.inc, arguments=(1, 2))


def test_file_counts_with_size_and_time(tmp_path):
    """A file counts with its size and time."""
    path = tmp_path / "data.root"
    before = name_of(v.inc, str(path))
    path.write_bytes(b"one")
    first = name_of(v.inc, str(path))
    assert first not in (before, name_of(v.inc, path))
    assert first == name_of(v.inc, str(path))
    assert name_of(v.inc, [("x", str(path))]) == name_of(v.inc, [("x", str(path))])
    os.utime(path, ns=(1, 1))
    assert name_of(v.inc, str(path)) != first
    path.write_bytes(b"longer")
    os.utime(path, ns=(1, 1))
    assert len({name_of(v.inc, str(path)), first, before}) == 3


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write and load a module of the user's own, anew each time."""
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    loaded = set()

    def load(text, name="own_selection", into=tmp_path, written=1.0):
        (into / f"{name}.py").write_text(text)
        os.utime(into / f"{name}.py", (written, written))
        sys.modules.pop(name, None)
        loaded.add(name)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield load
    for name in loaded:
        sys.modules.pop(name, None)


def test_text_of_own_module_counts(module, monkeypatch):
    """The text of the users own module counts."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    one = name_of(module("def f(x): return x + 1").f, 1)
    assert name_of(module("def f(x): return x + 1").f, 1) == one
    assert name_of(module("def f(x): return x + 22").f, 1) != one
    assert name_of(module("CUT = 5\ndef f(x): return x + 1").f, 1) != one


def test_the_users_modules_behind_a_module_count(module, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = []
    for cut in ("5", "77"):
        module(f"CUT = {cut}", name="own_cuts")
        found.append(name_of(module("import own_cuts\ndef f(x): return x + own_cuts.CUT").f, 1))
    assert found[0] != found[1]


@pytest.mark.parametrize(
    "thing",
    [threading.Lock(), sys.stdout, (n for n in ()), types.SimpleNamespace(inside=threading.Lock())],
    ids=["lock", "stream", "generator", "lock inside"],
)
def test_undescribable_value_has_no_key(thing):
    """What cannot be described has no name and neither has what depends on it."""
    found = names(
        {"a": Task("a", v.inc, thing), "b": Task("b", v.inc, TaskRef("a")), "c": Task("c", v.inc, 1)}
    )
    assert (found["a"], found["b"]) == (None, None)
    assert found["c"] is not None
    with pytest.raises(NotFingerprintable):
        Fingerprinter().digest(thing)


def test_random_function_has_no_key():
    """What the user calls random has no name and neither has what depends on it."""
    found = names({"a": (v.inc, 1), "b": (v.inc, "a"), "c": (v.inc, 2)}, deterministic=lambda key: key != "a")
    assert [found[key] is None for key in "abc"] == [True, True, False]


def test_equal_vertices_of_graph_are_numbered():
    """Vertices of one graph that are the same are numbered."""
    graph = {"a": Task("a", v.inc, 1), "b": Task("b", v.inc, 1), "c": Task("c", v.inc, TaskRef("a")), "d": Task("d", v.inc, TaskRef("b"))}  # fmt: skip
    found = names(graph)
    assert len(set(found.values())) == 4
    assert [*names(graph).values()] == [*found.values()]


def test_repeated_value_differs_from_equal_ones():
    """One value that is there twice is told from two equal ones."""
    x = [1, 2]
    one = [
        name_of(v.inc, [x, x]), name_of(v.inc, x, [x]), name_of(v.inc, {"a": x, "b": (x,)}), name_of(v.inc, Counter(x), x),
    ]  # fmt: skip
    two = [
        name_of(v.inc, [x, x.copy()]), name_of(v.inc, x, [x.copy()]), name_of(v.inc, {"a": x, "b": (x.copy(),)}),
        name_of(v.inc, Counter(x), x.copy()),
    ]  # fmt: skip
    assert None not in one
    assert len({*one, *two}) == 8
    y = np.zeros(3)
    assert name_of(v.inc, y, y) != name_of(v.inc, y, y.copy())
    assert name_of(v.inc, "text", "text") == name_of(v.inc, "text", str(b"text", "ascii"))


def test_module_by_value_counts_with_variables(module):
    """A module that was made by hand or travels by value counts with its variables."""
    cuts = types.ModuleType("cuts_made_by_hand")
    found = []
    for cut in (1, 2, 1):
        cuts.CUT = cut
        found.append(name_of(by_value("def f(x): return x + cuts.CUT", cuts=cuts), 1))
    own = module("CUT = 1\ndef f(x): return x + CUT")
    cloudpickle.register_pickle_by_value(own)
    try:
        for cut in (1, 2, 1):
            own.CUT = cut
            found.append(name_of(own.f, 1))
            found.append(name_of(by_value("def f(x): return x + own.CUT", own=own), 1))
    finally:
        cloudpickle.unregister_pickle_by_value(own)
    assert None not in found
    assert [found.index(name) for name in found] == [0, 1, 0, 3, 4, 5, 6, 3, 4]


@pytest.mark.parametrize(
    "text",
    [
        "import time\ndef f(x): return time.time()",
        "from time import time\ndef f(x): return time()",
        "def f(x):\n    import time\n    return time.time()",
        "import datetime\ndef f(x): return datetime.datetime.now()",
        "from datetime import date\ndef f(x): return date.today()",
        "import uuid\ndef f(x): return uuid.uuid4()",
        "import os\ndef f(x): return os.urandom(3)",
        "import os\ndef g(): return os.getpid()\ndef f(x): return g()",
        "import os\nclass A:\n    def g(self): return os.getpid()\ndef f(x): return A().g()",
        "import os\ndef g(): return os.getpid()\nTABLE = {'g': g}\ndef f(x): return TABLE[x]()",
    ],
)
def test_code_reading_clock_has_no_key(module, text):
    """Code that asks for the time or the like has no name."""
    assert name_of(by_value(text), 1) is None
    assert name_of(module(text, name="own_chance").f, 1) is None


@pytest.mark.parametrize(
    "text",
    [
        "import sys\ndef f(x): return sys.modules[x].CUT",
        "def f(x): return __import__(x).CUT",
        "import pyarrow.parquet as pq\ndef f(x): return pq.read_table(x, memory_map=True)",
        "import pyarrow as pa\ndef g(x): return pa.OSFile(x).read()\ndef f(x): return g(x)",
    ],
)
def test_unobserved_reads_have_no_key(module, text):
    """Code that reads where nobody sees it has no name even for who vouches."""
    for f in (by_value(text), module(text, name="own_reads").f):
        assert name_of(f, 1) is None
        with pytest.raises(NotFingerprintable):
            Fingerprinter().digest(f)


@pytest.mark.parametrize(
    "text", ["import time\ndef f(x): return time.sleep(x)", "def f(events): return events.time", "import datetime\ndef f(x): return datetime.timedelta(x)",
             "def f(x):\n    'Take a long time.'\n    return getattr(x, 'real')", "import re\ndef f(x): return re.compile('from time to time')"]
)  # fmt: skip
def test_harmless_similar_code_has_key(text):
    """Code that only sounds like it has one."""
    assert name_of(by_value(text), 1) is not None


def test_key_time_is_proportional_to_size():
    """Counted in values that are looked into; each of these refers to all others, by ways whose number is exponential."""

    class Node:
        def __init__(self):
            self.others = []

    def web(size):
        nodes = [Node() for _ in range(size)]
        for node in nodes:
            node.others = nodes
        return nodes

    def looked_into(size):
        digests = Fingerprinter()
        digests.digest(web(size))
        return len(digests._known)

    assert looked_into(40) - looked_into(20) == looked_into(60) - looked_into(40)


FORMS = {
    "an absolute path": "{folder}/data.root",
    "a tree in a file": "{folder}/data.root:Events",
    "an address": "file:{folder}/data.root",
    "an address with slashes": "file://{folder}/data.root",
    "a home": "~/data.root",
    "a relative path": "data.root",
    "a relative path to a tree": "./data.root:Events",
    "a pattern": "{folder}/*.root",
    "a relative pattern": "da*.root",
    "a folder": "{folder}",
    "what is above": "{folder}/..",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_file_counts_however_it_is_named(form, tmp_path, monkeypatch):
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "data.root").write_bytes(b"1")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    text = form.format(folder=folder)
    first = name_of(v.inc, text)
    assert name_of(v.inc, text) == first
    (folder / "data.root").write_bytes(b"22")
    changed = name_of(v.inc, text)
    assert len({first, changed, None}) == 3
    (folder / "data.root").unlink()
    assert name_of(v.inc, text) not in (first, changed)


def test_what_is_below_a_folder_counts(tmp_path):
    inner = tmp_path / "table.zarr" / "0"
    inner.mkdir(parents=True)
    found = [name_of(v.inc, str(tmp_path / "table.zarr"))]
    for content in (b"1", b"22"):
        (inner / "0.0").write_bytes(content)
        found += [name_of(v.inc, str(tmp_path / "table.zarr")), name_of(v.inc, tmp_path / "table.zarr")]
    assert len(set(found)) == 5


def test_packages_count_by_installer_records(tmp_path, monkeypatch):
    """Packages count by what their installer has left."""
    place = tmp_path / "site-packages"
    record = place / "packaged-1.0.dist-info" / "RECORD"
    record.parent.mkdir(parents=True)
    (place / "packaged").mkdir()
    (place / "packaged" / "__init__.py").write_text("")
    (place / "unknown").mkdir()
    (place / "unknown" / "part.py").write_text("")
    record.write_text("packaged/__init__.py,,\n")
    monkeypatch.syspath_prepend(place)
    found = [digest_packages()]
    record.write_text("packaged/__init__.py,,\npackaged/more.py,,\n")
    found.append(digest_packages())
    (place / "packaged" / "__pycache__").mkdir()
    found.append(digest_packages())
    record.parent.rename(place / "packaged-1.1.dist-info")
    found.append(digest_packages())
    (place / "unknown" / "part.py").write_text("1")
    found.append(digest_packages())
    assert [found.index(one) for one in found] == [0, 1, 1, 3, 4]


def test_named_files_and_variables_count(module, tmp_path, monkeypatch):
    """Files and variables that an own module names count."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "cuts.json").write_text("1")
    own = module("def f(x): return open(HERE / 'cuts.json'), os.environ['OWN_CUT'], os.getenv('own_cut')")
    found = [name_of(own.f, 1)]
    (tmp_path / "cuts.json").write_text("22")
    found.append(name_of(own.f, 1))
    for variable in ("OWN_CUT", "own_cut", "ANOTHER"):
        monkeypatch.setenv(variable, "1")
        found.append(name_of(own.f, 1))
    assert [found.index(one) for one in found] == [0, 1, 2, 3, 3]


def test_a_cycle_is_told_from_another():
    def ring(*values):
        first = items = [values[0]]
        for value in values[1:]:
            following = [value]
            items.append(following)
            items = following
        items.append(first)
        return first

    found = {name_of(v.inc, ring(*values)) for values in ((1, 2), (1, 3), (2, 1), (1, 2, 1, 2), (1,))}
    assert len(found) == 5
    inside = ring(1, 2)[1]
    assert name_of(v.inc, inside) == name_of(v.inc, ring(2, 1))
    together = Fingerprinter()
    assert together.digest(ring(1, 2)) != together.digest(inside)


def test_keys_are_equal_in_other_process(tmp_path):
    """Names are the same in another process with another order of sets."""
    script = tmp_path / "script.py"
    script.write_text(
        "from tests.daskvine.test_cache_keys import *\n"
        "found = [name_of(f, 1) for f in ALMOST_THE_SAME.values()] + [name_of(v.inc, a) for a in ARGUMENTS.values()]\n"
        "found.append(name_of(v.inc, {'one', 'two', 'three', 'four'}, frozenset('abcdefgh')))\n"
        "print(*found)\n"
    )
    root = str(pathlib.Path(__file__).parents[2])
    path = os.pathsep.join([root, *(p for p in sys.path if p)])
    runs = [
        subprocess.run([sys.executable, script], env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed}, cwd=root,
                       capture_output=True, check=True, text=True).stdout.split()
        for seed in ("1", "2")
    ]  # fmt: skip
    assert len(runs[0]) > 80
    assert runs[0] == runs[1]


def test_keys_may_be_nested():
    assert len(names({("x", 0): (v.inc, 1), ("x", 1): (v.inc, 2)}, *flatten_keys([("x", 0), ("x", 1)]))) == 2
