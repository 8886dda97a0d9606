"""With `reuse`, what has changed is seen, wherever a vertex gets it from; and what has not is used again."""

from __future__ import annotations

import decimal
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import NamedTuple

import cloudpickle
import dask
import numpy as np
import pytest

from daskvine import DaskVine
from tests.daskvine import sample_graphs as v

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def m():
    with DaskVine.local(workers=1, cores=2, memory_mb=2000, disk_mb=2000) as m:
        yield m


def by_value(text, **more):
    """A function as it is defined in a notebook, which has `read` at hand."""
    return v.by_value(f"{READ}\n{text}", **more)


class Case(NamedTuple):
    """A function ``f(x)``, what it is given, and whether it can be known that nothing has changed; all with the folder and its parts at hand."""

    text: str
    argument: str = ""
    known: bool = True


READ = "def read(path):\n    with open(path) as file: return file.read()"
BUILT = "'/'.join([*PARTS, ''.join(['da', 'ta.txt'])])"  # a path that nothing names
CASES = {
    "an absolute path": Case("def f(x): return read(x)", "{folder}/data.txt"),
    "a tree in a file": Case("def f(x): return read(x.partition(':')[0])", "{folder}/data.txt:Events"),
    "an address of a file": Case("def f(x): return read(x.removeprefix('file:'))", "file:{folder}/data.txt"),
    "a home": Case("import os\ndef f(x): return read(HOME + x[1:])", "~/data.txt"),
    "a relative path": Case("def f(x): return read(x)", "data.txt"),
    "a pattern": Case("import glob\ndef f(x): return [read(p) for p in glob.glob(x)]", "{folder}/d*.txt"),
    "a folder": Case("import os\ndef f(x): return read(os.path.join(x, 'inner', 'data.txt'))", "{folder}"),
    "a path in the code": Case("def f(x): return read('{folder}/data.txt')"),
    "a path that is built": Case(f"def f(x): return read({BUILT})", known=False),
    "what is in a folder": Case("import os\ndef f(x): return sorted(os.listdir('/'.join(PARTS)))", known=False),
    "another process": Case(f"import subprocess\ndef f(x): return subprocess.check_output(['cat', {BUILT}])", known=False),
    "a file behind Python's back": Case(
        "import numpy as np, mmap, ctypes\ndef f(x):\n    libc = ctypes.CDLL(None)\n"
        f"    fd = libc.open({BUILT}.encode(), 0)\n    room = ctypes.create_string_buffer(100)\n    libc.read(fd, room, 100)\n"
        "    libc.close(fd)\n    return room.value",
        known=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_changed_file_is_read_again(m, task_mode, name, tmp_path, monkeypatch):
    """A file that has changed is read again."""
    case, folder = CASES[name], tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    parts = ["", *folder.parts[1:]]
    for content in ("one", "another"):
        for place in (folder, folder / "inner"):
            (place / "data.txt").write_text(content)
        (folder / f"{content}.csv").touch()
        for again in (False, True):
            f = by_value(case.text.format(folder=folder), PARTS=parts, HOME=str(folder))
            graph = {"x": (f, case.argument.format(folder=folder))}
            expected = dask.get(graph, "x")
            assert m.get(graph, "x", task_mode=task_mode, reuse=True) == expected
            assert m.last_run.executed == (0 if again and case.known else 1)


def test_readers_of_uncertain_values_rerun(m, task_mode, tmp_path):
    """What is made of a value that may differ is made again."""
    f = by_value(f"def f(x): return int(read({BUILT}))", PARTS=["", *tmp_path.parts[1:]])
    for content in (1, 2):
        (tmp_path / "data.txt").write_text(str(content))
        graph = {
            "a": (f, 0),
            "b": (abs, "a"),
            "c": (abs, -task_mode.count("t") - 10),
            "end": (sum, ["b", "c"]),
        }
        assert m.get(graph, "end", task_mode=task_mode, reuse=True) == dask.get(graph, "end")
    assert m.last_run.executed == 3


def test_file_written_by_vertex_is_rewritten(m, task_mode, tmp_path):
    """A file that a vertex has written is written again."""
    f = by_value("def f(x):\n    with open('/'.join(PARTS), 'w') as file: file.write('x')\n    return 1", PARTS=["", *(tmp_path / "out").parts[1:]])  # fmt: skip
    for _ in range(2):
        assert m.get({"x": (f, 0)}, "x", task_mode=task_mode, reuse=True) == 1
        (tmp_path / "out").unlink()


def test_variables_of_module_by_value_count(m, task_mode):
    """Variables of a module that travels by value count."""
    own = types.ModuleType("own_by_value")
    exec("CUT = 0\ndef f(x): return x + CUT", vars(own))
    sys.modules["own_by_value"] = own
    cloudpickle.register_pickle_by_value(own)
    try:
        for cut, executed in ((1, 1), (2, 1), (2, 0)):
            own.CUT = cut
            graph = {"x": (own.f, 10.0 * len(task_mode))}
            assert m.get(graph, "x", task_mode=task_mode, reuse=True) == dask.get(graph, "x")
            assert m.last_run.executed == executed
    finally:
        cloudpickle.unregister_pickle_by_value(own)
        del sys.modules["own_by_value"]


RANDOM = {
    "numpy": "import numpy as np\ndef f(x): return np.random.random()",
    "a generator of numpy": "import numpy as np\ndef f(x): return np.random.default_rng().random()",
    "random": "import random\ndef f(x): return random.random()",
    "a generator": "import random\ndef f(x): return random.Random().random()",
    "entropy": "import os\ndef f(x): return os.urandom(8)",
    "a token": "import uuid\ndef f(x): return str(getattr(uuid, 'uu' + 'id4')())",
    "the time": "import time\ndef f(x): return time.time_ns()",
}


def test_repeated_draws_are_fresh_values(m, task_mode):
    """Eight draws are eight values and eight others the next time."""
    graph = {(kind, n): (by_value(text), 0) for kind, text in RANDOM.items() for n in range(8)}
    found = [value for _ in range(2) for value in m.get(graph, [*graph], task_mode=task_mode, reuse=True)]
    assert len(set(found)) == len(found)


def test_draws_with_a_seed_are_used_again(m, task_mode):
    f = by_value("import numpy as np\ndef f(x): return np.random.default_rng(x).random(3)")
    graph = {"x": (f, len(task_mode))}
    for executed in (1, 0):
        assert np.array_equal(m.get(graph, "x", task_mode=task_mode, reuse=True), dask.get(graph, "x"))
        assert m.last_run.executed == executed


def test_repeated_list_differs_from_equal_ones(m, task_mode):
    """One list that is there twice is not two equal ones."""
    f = by_value("def f(x):\n    x[0].append(1)\n    return x[1]")
    make = by_value("def f(x):\n    return len(x)")
    one = [0]
    found = [
        m.get({"x": (make, ["t", task_mode]), "y": (f, literal)}, "y", task_mode=task_mode, reuse=True)
        for literal in (dask.core.quote([one, one]), dask.core.quote([one, one.copy()]))
    ]
    assert found == [[0, 1], [0]]


# ---- in successive programs

PROGRAM = """
import importlib, json, sys
from cuts import CUT, LIMITS, Cut
import beside, hidden, own, table, variables

def constant(x): return x + CUT
def limits(x): return LIMITS[x]
def inside(x):
    import lazy
    return lazy.CUT + x
def by_name(x): return importlib.import_module("after" + "wards").CUT + x
def of_a_table(x): return table.TABLE[x]()
def at_import(x): return beside.AT_IMPORT + x
def later(x): return beside.load() + x
def built(x): return hidden.load() + x
def of_the_environment(x): return variables.ERA + str(x)
def of_a_package(x): return own.packaged() + x
def of_an_unversioned(x): return own.unversioned() + x

GRAPH = {f.__name__: (f, 0) for f in (constant, inside, by_name, at_import, later, built, of_the_environment, of_a_package, of_an_unversioned)}
GRAPH |= {"limits": (limits, "low"), "of_a_table": (of_a_table, "a"), "instance": (Cut(1), 0)}

if __name__ == "__main__":
    mode, workspace = sys.argv[1:]
    import dask
    from daskvine import DaskVine

    with DaskVine.local(cores=1, memory_mb=1000, disk_mb=1000, workspace=workspace) as m:
        found = m.get(GRAPH, [*GRAPH], task_mode=mode, reuse=True, progress_disable=True)
    expected = dask.get(GRAPH, [*GRAPH])  # afterwards: it imports what nothing names
    print(json.dumps([dict(zip(GRAPH, found)), dict(zip(GRAPH, expected)), m.last_run.executed]))
"""

MODULES = {
    "cuts.py": "CUT = 1\nLIMITS = {'low': 1}\nclass Cut:\n    STEP = 1\n    def __init__(self, start): self.start = start\n    def __call__(self, x): return self.start + self.STEP\n",
    "lazy.py": "CUT = 1\n",
    "afterwards.py": "CUT = 1\n",
    "selections.py": "def a(): return 1\n",
    "table.py": "import selections\nTABLE = {'a': selections.a}\n",
    "beside.py": "import json\nfrom pathlib import Path\nHERE = Path(__file__).parent\nAT_IMPORT = json.loads((HERE / 'import.json').read_text())\n"
    "def load(): return json.loads((HERE / 'later.json').read_text())\n",
    "hidden.py": "import json\nfrom pathlib import Path\ndef load(): return json.loads((Path(__file__).parent / ('bu' + 'ilt.json')).read_text())\n",
    "import.json": "1",
    "later.json": "1",
    "built.json": "1",
    "variables.py": "import os\nERA = os.environ['ANALYSIS_ERA']\n",
    "own.py": "import stale_packaged, stale_unversioned\ndef packaged(): return stale_packaged.CUT\ndef unversioned(): return stale_unversioned.CUT\n",
    "site-packages/stale_packaged/__init__.py": "CUT = 1\n",
    "site-packages/stale_packaged-1.0.dist-info/RECORD": "stale_packaged/__init__.py,,\n",
    "site-packages/stale_packaged-1.0.dist-info/METADATA": "Name: stale_packaged\nVersion: 1.0\n",
    "site-packages/stale_unversioned.py": "CUT = 1\n",
    "program.py": PROGRAM,
}  # fmt: skip

CHANGES = {
    "nothing": {},
    "what nothing names": {"lazy.py": "CUT = 22\n", "afterwards.py": "CUT = 22\n", "built.json": "22"},
    "own modules": {
        "cuts.py": MODULES["cuts.py"].replace("1", "22"),
        "selections.py": "def a(): return 22\n",
    },
    "files beside a module": {"import.json": "22", "later.json": "22"},
    "packages": {
        "site-packages/stale_packaged/__init__.py": "CUT = 22\n",
        "site-packages/stale_packaged-1.0.dist-info/RECORD": "stale_packaged/__init__.py,,10\n",
        "site-packages/stale_unversioned.py": "CUT = 22\n",
    },
}
UNKNOWN = 3
"""Vertices of which it cannot be known beforehand what they import and read."""


def test_change_between_programs_is_seen(tmp_path):
    """What has changed between two programs is seen."""
    folder = tmp_path / "analysis"
    for name, text in MODULES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    variables = {**os.environ, "ANALYSIS_ERA": "2018", "PYTHONDONTWRITEBYTECODE": "1"}
    paths = [str(folder / "site-packages"), str(ROOT), str(ROOT / "worker")]
    variables["PYTHONPATH"] = os.pathsep.join(paths)

    def run(mode):
        command = [sys.executable, str(folder / "program.py"), mode, str(tmp_path / "kept")]
        done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found, expected, executed = json.loads(done.stdout.splitlines()[-1])
        assert found == expected
        return expected, executed

    before, _executed = run("function-calls")
    for number, changes in enumerate(CHANGES.values()):
        for name, text in changes.items():
            (folder / name).write_text(text)
        after, executed = run(("tasks", "function-calls")[number % 2])
        assert (after == before) == (not changes)
        if not changes:
            assert executed == UNKNOWN
        before = after
    variables["ANALYSIS_ERA"] = "2022"
    after, _executed = run("tasks")
    assert after != before


def test_second_vertex_sees_edit_of_module(tmp_path, monkeypatch):
    """The module is imported in the functions only, so the program does not have it."""
    module = tmp_path / "imported_late.py"
    monkeypatch.syspath_prepend(str(tmp_path))

    def first():
        from imported_late import K

        return K

    def second():
        from imported_late import K

        return K + 100

    def by_name():
        import importlib

        return importlib.import_module("".join(reversed("etal_detropmi"))).K + 200

    for value in (1, 2):
        module.write_text(f"K = {value}\n")
        with DaskVine.local(cores=1, workspace=tmp_path / "workspace") as m:
            graphs = ({"x": (function,)} for function in (first, second, by_name))
            found = [m.get(graph, "x", task_mode="function-calls", reuse=True) for graph in graphs]
        assert found == [value, value + 100, value + 200]


def test_settings_do_not_leak_read_values(m, tmp_path, monkeypatch):
    """What one vertex has read is not left to the next by settings."""
    monkeypatch.setattr(decimal.getcontext(), "prec", 40)
    read = by_value("import glob\ndef f(x): return [open(path).read() for path in sorted(glob.glob(x))]")
    graph = {"x": (read, f"{tmp_path}/*.txt")}
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(str(number))
        for executed in (1, 0):
            found = m.get(graph, "x", task_mode="function-calls", reuse=True)
            assert found == [str(n) for n in range(number + 1)]
            assert m.last_run.executed == executed
