"""Classes and modules that a script has defined are there in its vertices, and come back from them."""

from __future__ import annotations

import sys
import types

import pytest

from daskvine.registrations import collect_registrations


def test_classes_with_slots_travel_both_ways(succeed):
    succeed("""
import dataclasses
import typing
import weakref

class Plain:
    __slots__ = "a"
    def __init__(self, a):
        self.a = a

class Referenced:
    __slots__ = ("a", "__weakref__")
    def __init__(self, a):
        self.a = a

class Open:
    __slots__ = ("a", "__dict__", "__weakref__")
    def __init__(self, a):
        self.a, self.b = a, a

class Private:
    __slots__ = ("__a",)
    def __init__(self, a):
        self.__a = a
    @property
    def a(self):
        return self.__a

class Child(Referenced):
    __slots__ = ("b",)

class Loose(Plain):
    pass

class Named(typing.NamedTuple):
    a: int

@dataclasses.dataclass(frozen=True, **({"slots": True} if sys.version_info >= (3, 10) else {}))
class Data:
    a: int

def double(thing):
    made = type(thing)(2 * thing.a)
    if hasattr(type(made), "__weakref__"):
        assert weakref.ref(made)() is made
    return made, hasattr(made, "__dict__")

def all_doubled():
    kinds = (Plain, Referenced, Open, Private, Child, Loose, Data, Named)
    return dask.delayed(lambda found: [(type(one).__name__, one.a, *rest) for one, *rest in found])(
        [dask.delayed(double)(kind(n)) for n, kind in enumerate(kinds)]
    )

def back():
    return [dask.delayed(double)(kind(3)) for kind in (Plain, Referenced, Open, Private, Child, Loose, Data)]

if __name__ == "__main__":
    with DaskVine.local(cores=1) as m:
        everywhere(all_doubled)
        for mode in ("tasks", "function-calls"):
            found = dask.compute(*back(), scheduler=m.get, task_mode=mode)
            assert [(type(one), one.a) for one, _ in found] == [
                (kind, 6) for kind in (Plain, Referenced, Open, Private, Child, Loose, Data)
            ], found
""")


def test_modules_without_files_travel(succeed):
    succeed("""
import types

made = types.ModuleType("made")
exec('''
import math
FACTOR = 3
def scale(x):
    return FACTOR * math.floor(x)
class Box:
    def __init__(self, value):
        self.value = scale(value)
    def __eq__(self, other):
        return type(self) is type(other) and self.value == other.value
''', made.__dict__)
sys.modules["made"] = made
sys.modules["made.constants"] = made.constants = types.ModuleType("made.constants")
made.constants.CUT = 5
import made

def imported(x):
    import made.constants
    from made import scale
    return scale(x) + made.constants.CUT

def all_uses():
    uses = [
        dask.delayed(lambda x: made.scale(x))(2),
        dask.delayed(made.scale)(2),
        dask.delayed(lambda box: box.value)(made.Box(2)),
        dask.delayed(lambda x: made.Box(x))(2),
        dask.delayed(lambda module: module.FACTOR)(made),
        dask.delayed(imported)(2),
    ]
    return dask.delayed(list)(uses)

if __name__ == "__main__":
    with DaskVine.local(cores=1) as m:
        for options in ({}, {"reuse": True}):
            for made.FACTOR in (3, 4):
                everywhere(all_uses, **options)
        m.get({"x": (made.scale, 2)}, "x", reuse=True)
        assert m.get({"x": (made.scale, 2)}, "x", reuse=True) == 8
        assert m.last_run.executed == 0
        made.FACTOR = 5
        assert m.get({"x": (made.scale, 2)}, "x", reuse=True) == 10
""")


def test_modules_of_packages_without_files_stay(monkeypatch):
    pytest.importorskip("boost_histogram", reason="has modules without specifications")
    assert "modules" not in collect_registrations()
    monkeypatch.setitem(sys.modules, "made", types.ModuleType("made"))
    assert [*collect_registrations()["modules"]] == ["made"]
