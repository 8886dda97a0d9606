"""Pools of processes that a vertex makes compute with functions and classes of the script."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_take_functions_of_the_script(succeed, method):
    """Functions and objects of the script go to the pool's processes and come back."""
    succeed(f"""
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

METHOD = {method!r}
OFFSET = 3

class Event:
    def __init__(self, value):
        self.value = value

def shift(event):
    return Event(event.value + OFFSET)

def add_with_pool(n):
    with multiprocessing.get_context(METHOD).Pool(2) as pool:
        return sum(event.value for event in pool.map(shift, [Event(k) for k in range(n)]))

def add_with_executor(n):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(METHOD)) as pool:
        shifted = list(pool.map(shift, [Event(k) for k in range(n)]))
    return all(type(event) is Event for event in shifted), sum(event.value for event in shifted)

def both():
    return dask.delayed(lambda *parts: parts)(
        dask.delayed(add_with_pool)(4), dask.delayed(add_with_executor)(5)
    )

if __name__ == "__main__":
    with DaskVine.local(cores=1) as m:
        assert everywhere(both) == (18, (True, 25))
""")
