"""What a script defines and registers is there in its vertices, as with dask's own schedulers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from daskvine.registrations import Registrations
from vinecore.protocol import library_context
from vinecore.protocol.serialization import values


def test_functions_with_caches_and_generic_functions_travel(succeed):
    succeed("""
import functools

@functools.cache
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

@functools.lru_cache(maxsize=7, typed=True)
def following(n):
    return n + 1

fibonacci.about = "rabbits"

def calling(n):
    return fibonacci(n), following(n), following.cache_parameters(), fibonacci.about

@functools.singledispatch
def generic(value):
    return "any"

@generic.register
def _(value: int):
    return "int"

@generic.register
def _(value: list):
    return [generic(one) for one in value]

class Detector:
    @functools.lru_cache
    def gain(self, n):
        return 2 * n

    @functools.cached_property
    def area(self):
        return 5

    @functools.singledispatchmethod
    def kind(self, value):
        return "any"

    @kind.register
    def _(self, value: int):
        return "int"

def use(detector):
    return detector.gain(3), detector.area, detector.area, detector.kind(1), detector.kind("")

@functools.wraps(fibonacci)
def wrapping(n):
    return fibonacci(n)

if __name__ == "__main__":
    generic("")  # has used its cache
    with DaskVine.local(cores=1) as m:
        assert everywhere(lambda: dask.delayed(fibonacci)(30)) == 832040
        assert everywhere(lambda: dask.delayed(sum)([dask.delayed(fibonacci)(n) for n in range(9)])) == 54
        everywhere(lambda: dask.delayed(calling)(6))
        assert everywhere(lambda: dask.delayed(generic)(["", 1, [2]])) == ["any", "int", ["int"]]
        everywhere(lambda: dask.delayed(use)(Detector()))
        everywhere(lambda: dask.delayed(wrapping)(10))
        everywhere(lambda: dask.delayed(functools.partial(fibonacci, 9))())
""")


def test_behaviors_of_arrays_reach_vertices(succeed):
    """Behaviors of arrays hold in vertices whenever they are registered."""
    pytest.importorskip("awkward", reason="registers behaviors: pip install awkward")
    succeed("""
import awkward as ak
import numpy as np

points = ak.Array([[{"x": 3, "y": 4}], [], [{"x": 6, "y": 8}]])

@ak.mixin_class(ak.behavior)
class point:
    @property
    def r(self):
        return np.hypot(self.x, self.y)

def made(n):
    return ak.sum(ak.zip({"x": [3, 6], "y": [4, 8]}, with_name="point").r) * n

def given(points):
    return points.r.to_list(), type(points).__name__

def difference(pairs):
    return (pairs[0] - pairs[1]).x.to_list()

def known(n):
    return sorted(name for name in ak.behavior if isinstance(name, str))

if __name__ == "__main__":
    with DaskVine.local(cores=1) as m:
        assert everywhere(lambda: dask.delayed(made)(1)) == 15
        assert everywhere(lambda: dask.delayed(given)(ak.with_name(points, "point")))[1] == "pointArray"
        pairs = ak.with_name(points, "point"), ak.with_name(points, "point")
        ak.behavior[np.subtract, "point", "point"] = lambda a, b: ak.zip({"x": a.x - b.x, "y": a.y - b.y})
        assert everywhere(lambda: dask.delayed(difference)(pairs)) == [[0], [], [0]]
        point.scale = 2
        point.r = property(lambda self: self.scale * np.hypot(self.x, self.y))
        assert everywhere(lambda: dask.delayed(made)(1)) == 30  # the class was edited
        kept, calls = dict(ak.behavior), {"task_mode": "function-calls", "progress_disable": True}
        for content in (kept, {}, kept, {"other": ak.Array}, {}, kept):
            ak.behavior.clear()
            ak.behavior.update(content)
            assert everywhere(lambda: dask.delayed(known)(1)) == sorted(n for n in content if isinstance(n, str))
""")


def test_registered_vectors_reach_vertices(succeed):
    """Vectors registered by the script are vectors in vertices."""
    pytest.importorskip("vector", reason="pip install vector")
    succeed("""
import awkward as ak
import vector

vector.register_awkward()

def mass(n):
    muons = ak.Array([[{"pt": 10.0, "eta": 1.0, "phi": 0.0, "mass": 0.1}, {"pt": 9.0, "eta": 0.0, "phi": 3.0, "mass": 0.1}]])
    muons = ak.with_name(muons, "Momentum4D")
    return round(float((muons[:, 0] + muons[:, 1]).mass[0]), 6)

if __name__ == "__main__":
    with DaskVine.local(cores=1) as m:
        assert everywhere(lambda: dask.delayed(mass)(1)) > 10
""")


def test_dask_settings_reach_vertices(succeed):
    """Settings of dask hold in vertices as long as they hold here."""
    succeed("""
def found(*names):
    return [dask.config.get(name, "nothing") for name in names]

if __name__ == "__main__":
    names = "array.chunk-size", "mine", "other.deep.one"
    with DaskVine.local(cores=1) as m:
        for settings in ({"mine": 1, "array.chunk-size": "1 MiB"}, {}, {"other.deep.one": [1, 2], "mine": 2}, {}):
            with dask.config.set({**settings, "callback": print}):
                everywhere(lambda: dask.delayed(found)(*names))
""")


def test_uproot_classes_and_own_reducers(succeed):
    """Classes for uproot and pickles of own types."""
    pytest.importorskip("uproot", reason="pip install uproot")
    succeed("""
import copyreg
import uproot

class Model_TMine(uproot.model.Model):
    pass

class Handle:
    def __init__(self, path):
        self.path, self.lines = path, (line for line in path)

class Mine(uproot.interpretation.Interpretation):
    @classmethod
    def match_branch(cls, branch, context, simplify):
        return False

def interpretations():
    from uproot.interpretation import identify

    return [kind.__name__ for kind in identify._registered_interpretations]

uproot.register_interpretation(Mine)
copyreg.pickle(Handle, lambda handle: (Handle, (handle.path,)))
uproot.classes["TMine"] = Model_TMine

def known(name):
    return [uproot.classes[name].__name__ if name in uproot.classes else None]

if __name__ == "__main__":
    with DaskVine.local(cores=1) as m:
        assert everywhere(lambda: dask.delayed(known)("TMine")) == ["Model_TMine"]
        assert everywhere(lambda: dask.delayed(interpretations)()) == ["Mine"]
        for mode in ("tasks", "function-calls"):
            handle = dask.delayed(Handle)("x.root")
            assert dask.delayed(getattr)(handle, "path").compute(scheduler=m.get, task_mode=mode) == "x.root"
            assert handle.compute(scheduler=m.get, task_mode=mode).path == "x.root"
""")


def test_unpicklable_registration_is_named_and_skipped(succeed):
    """What cannot be pickled is named and harms nobody else."""
    pytest.importorskip("awkward", reason="registers behaviors: pip install awkward")
    succeed("""
import logging
import awkward as ak

lines = (line for line in "")
ak.behavior["stuck"] = lambda: lines
ak.behavior["fine"] = type("fine", (ak.Array,), {})

def known(n):
    return sorted(ak.behavior)

if __name__ == "__main__":
    said = []
    logging.getLogger("daskvine").addFilter(lambda record: said.append(record.getMessage()))
    with DaskVine.local(cores=1) as m:
        for mode in ("tasks", "function-calls"):
            assert dask.delayed(known)(1).compute(scheduler=m.get, task_mode=mode) == ["fine"]
    assert ["'stuck' cannot be pickled" in text for text in said] == [True], said
""")


def test_later_registration_prevents_stale_result(succeed):
    """What has been registered since is no reason to find an old result."""
    pytest.importorskip("awkward", reason="registers behaviors: pip install awkward")
    succeed("""
import awkward as ak

def known(n):
    return sorted(ak.behavior)

if __name__ == "__main__":
    with DaskVine.local(cores=1) as m:
        for name in ("one", "two", "three"):
            ak.behavior[name] = ak.Array
            for _ in range(2):
                assert name in dask.delayed(known)(1, dask_key_name="x").compute(scheduler=m.get, reuse=True)
""")


def test_edited_cached_function_prevents_stale_result(succeed):
    """A cached function that was edited is no reason to find an old result."""
    succeed("""
import functools

if __name__ == "__main__":
    with DaskVine.local(cores=1) as m:
        for n in (1, 2, 3):
            exec(f"@functools.cache\\ndef scale(x): return {n} * x\\ndef call(x): return scale(x)")
            for function in (scale, call):
                found = dask.delayed(function)(5, dask_key_name="x").compute(scheduler=m.get, reuse=True)
                assert found == 5 * n, (n, found)
""")


def test_late_arrival_of_registration_does_not_count(monkeypatch):
    """What was registered earlier and comes late does not count."""
    ak = pytest.importorskip("awkward")
    monkeypatch.setattr(ak, "behavior", {})
    monkeypatch.setattr(library_context, "registered", {})
    monkeypatch.setattr(library_context, "registered_ns", [0])
    here, texts = Registrations(), []
    for name in ("one", "two"):
        ak.behavior[name] = ak.Array
        texts.append(here.serialize())
    ak.behavior.clear()
    for text in (texts[1], texts[0]):
        values.loads(text)
        assert sorted(ak.behavior) == ["one", "two"]


def test_only_script_registrations_are_pickled_again(monkeypatch):
    """Awkward and vector have hundreds of entries, whose pickle takes longer than a small graph."""
    ak = pytest.importorskip("awkward", reason="registers behaviors: pip install awkward")
    vector = pytest.importorskip("vector", reason="registers behaviors: pip install vector")
    monkeypatch.setattr(ak, "behavior", dict(ak.behavior))
    vector.register_awkward()
    point = type("point", (ak.Record,), {"__module__": "__main__", "scale": 1})
    ak.behavior["point"] = point
    ak.behavior[np.absolute, "point"] = ak.Record
    ak.behavior[np.add, point] = ak.Record
    here = Registrations()
    monkeypatch.setattr(library_context, "registered", {})
    monkeypatch.setattr(library_context, "registered_ns", [0])
    here.serialize()
    lasting, own = here._texts["behavior"]
    entries = values.loads(lasting)
    assert len(entries) == len(ak.behavior) - 2
    assert (np.absolute, "point") in entries
    of_script = values.loads(own)
    # one class, in the key and in the value
    assert {name if isinstance(name, str) else name[1] for name in of_script} == {
        "point",
        of_script["point"],
    }
    point.scale = 2
    text = here.serialize()
    again, changed = here._texts["behavior"]
    assert again is lasting
    assert values.loads(changed)["point"].scale == 2
    ak.behavior.clear()
    values.loads(text)
    assert ak.behavior["point"].scale == 2
    assert len(ak.behavior) == len(entries) + 2


def test_single_tasks_register_as_documented(succeed):
    """Single tasks and libraries register for themselves in the way that the page says."""
    pytest.importorskip("awkward", reason="registers behaviors: pip install awkward")
    succeed("""
import awkward as ak
from vinecore import FunctionCall, PythonTask

mine = {}

@ak.mixin_class(mine)
class point:
    @property
    def twice(self):
        return 2 * self.x

def register():
    ak.behavior.update(mine)
    return {}

def made(n):
    return ak.sum(ak.zip({"x": [n, n]}, with_name="point").twice)

def registered_and_made(n):
    register()
    return made(n)

if __name__ == "__main__":
    with DaskVine.local(cores=1) as m:
        library = m.create_library_from_functions("points", made, library_context_info=[register, [], {}])
        m.install_library(library)
        for task in (PythonTask(registered_and_made, 3), FunctionCall("points", "made", 3)):
            m.submit(task)
            assert m.wait(60) is task
            assert task.output == 12, task.output
""")


def test_settings_of_the_program_hold_in_vertices(succeed):
    pytest.importorskip("pandas", reason="has options: pip install pandas")
    succeed("""
import decimal
import os
import numpy as np
import pandas as pd

def floats():
    try:
        return float(np.float64(1) / np.float64(0))
    except FloatingPointError as error:
        return str(error)

def decimals():
    context = decimal.getcontext()
    try:
        return str(decimal.Decimal(1) / 7), context.rounding, str(decimal.Decimal(1) / 0)
    except decimal.DivisionByZero:
        return "trapped"

def options():
    return pd.get_option("display.max_rows"), pd.get_option("future.infer_string"), str(pd.Series(["a"]).dtype)

def depth(n):
    return 0 if n == 0 else 1 + depth(n - 1)

def variables():
    return os.environ.get("VINE_OR_NOT"), os.environ.get("OF_THE_PROGRAM"), os.getenv("OF_THE_WORKER"), os.getenv("BOTH")

def look():
    return dask.delayed(list)([dask.delayed(one)() for one in (floats, decimals, options, variables)])

def numbers():
    return dask.delayed(len)(dask.delayed(str)(dask.delayed(pow)(10, 4999)))

if __name__ == "__main__":
    os.environ["OF_THE_WORKER"] = "inherited"
    with DaskVine.local(cores=1) as m:
        usual = everywhere(look)
        os.environ["OF_THE_PROGRAM"] = "late"
        del os.environ["OF_THE_WORKER"]
        with np.errstate(all="raise"), decimal.localcontext() as context, pd.option_context(
            "display.max_rows", 7, "future.infer_string", False
        ):
            context.prec, context.rounding, context.traps[decimal.DivisionByZero] = 40, decimal.ROUND_UP, False
            assert everywhere(look) != usual
            everywhere(look, reuse=True)
        sys.setrecursionlimit(6000)
        sys.set_int_max_str_digits(10000)
        assert everywhere(lambda: dask.delayed(depth)(4000)) == 4000
        assert everywhere(numbers) == 5000
        os.environ["BOTH"] = "program"
        for mode in ("tasks", "function-calls"):
            given = dask.delayed(variables)()
            found = given.compute(scheduler=m.get, task_mode=mode, env_vars={"BOTH": "vertex"}, progress_disable=True)
            assert found == (None, "late", None, "vertex"), found
        del os.environ["OF_THE_PROGRAM"], os.environ["BOTH"]
        os.environ["OF_THE_WORKER"] = "inherited"
        assert everywhere(look) == usual
""")


def test_probing_package_does_not_trigger_registration():
    """What waits for a package waits on while somebody only looks whether it is there."""
    code = """
import importlib.util
import sys
from vinecore.protocol.import_hooks import ImportWatcher, call_when_imported

arrived = []
call_when_imported("json.decoder", arrived.append)
call_when_imported("colorsys", arrived.append)
for _ in range(2):
    assert importlib.util.find_spec("colorsys").origin.endswith("colorsys.py")
assert not arrived and importlib.util.find_spec("no_such_module_here") is None
import colorsys
assert arrived == [colorsys], arrived
importlib.reload(colorsys)
import json
assert arrived == [colorsys, json.decoder], arrived
assert not any(isinstance(finder, ImportWatcher) for finder in sys.meta_path)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
