"""Which part of a value cannot be pickled is told with its place and type."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from vinecore.protocol.serialization import unpicklable

LOCK = threading.Lock()


def with_global():
    return LOCK


def with_cell(lock):
    return lambda: lock


class Evil:
    @property
    def __dict__(self):
        raise RuntimeError

    def __reduce__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (LOCK, "a _thread.lock cannot be pickled: take"),
        ({"a": [0, (LOCK,)]}, "a dict cannot be pickled, because ['a'][1][0] is a _thread.lock: take"),
        (SimpleNamespace(x=SimpleNamespace(lock=LOCK)), ".x.lock is a _thread.lock"),
        ((n for n in range(3)), "a generator cannot be pickled: make a list"),
        ([*range(1000), LOCK], "a list cannot be pickled: take"),
        (Evil(), "Evil cannot be pickled: take"),
    ],
    ids=["alone", "nested", "attribute", "generator", "far", "evil"],
)
def test_the_part_is_named(value, said):
    assert said in unpicklable.describe_unpicklable(value)


def test_what_a_function_refers_to_is_named():
    assert "because lock is a _thread.lock" in unpicklable.describe_unpicklable(with_cell(LOCK))
    with_global.__module__ = "__main__"  # so that it is pickled by value
    try:
        assert "because LOCK is a _thread.lock" in unpicklable.describe_unpicklable(with_global)
    finally:
        with_global.__module__ = __name__


def test_self_containing_value_is_reported():
    """A value that holds itself is told of."""
    value = [LOCK]
    value.insert(0, value)
    assert "a list cannot be pickled" in unpicklable.describe_unpicklable(value)
