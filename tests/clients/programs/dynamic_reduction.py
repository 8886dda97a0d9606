"""dynamic_data_reduction: two processors over two data sets."""

import json

import ndcctools.taskvine as vine
from dynamic_data_reduction import DynamicDataReduction

DATA = {"datasets": {"few": {"values": [1, 2, 3, 4, 5]}, "more": {"values": [10, 20, 30]}}}


def list_values(dataset, **_options):
    for value in dataset["values"]:
        yield value, 1


def take_value(value, **_options):
    return value


def double(value):
    return 2 * value


def square(value):
    return value * value


def add(a, b):
    return a + b


if __name__ == "__main__":
    manager = vine.Manager(port=0, name="of-ddr")
    reduction = DynamicDataReduction(
        manager,
        data=DATA,
        source_preprocess=list_values,
        source_postprocess=take_value,
        processors={"double": double, "square": square},
        accumulator=add,
    )
    workers = vine.Factory("local", manager=manager)
    workers.max_workers = 1
    workers.min_workers = 1
    workers.cores = 2
    workers.memory = 2000
    workers.disk = 8000
    with workers:
        found = reduction.compute()
    print(json.dumps(found))
