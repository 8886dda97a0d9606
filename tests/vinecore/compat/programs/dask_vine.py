"""A dask graph on workers, with resources for its tasks."""

import dask
from ndcctools.taskvine import DaskVine, Factory


@dask.delayed(pure=True)
def multiply(*numbers):
    product = 1
    for number in numbers:
        product *= number
    return product


@dask.delayed
def add(a, b):
    return a + b


m = DaskVine(port=0, name="dask-program")
with Factory("local", manager=m):
    leaves = [multiply(number, number + 1) for number in range(1, 9)]
    while len(leaves) > 1:
        leaves = [add(a, b) for a, b in zip(leaves[::2], leaves[1::2], strict=True)]
    for mode in ("tasks", "function-calls"):
        [total] = dask.compute(leaves[0], scheduler=m.get, resources={"cores": 1}, task_mode=mode)
        print(mode, total)

# prints: tasks 240
# prints: function-calls 240
