"""A module of a user's own, with all kinds of functions.

Each case writes it anew: with a name of its own, and with other numbers for those that have four digits and begin with 9.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import glob
import importlib
import itertools
import json
import logging
import multiprocessing
import os
import pathlib
import random
import subprocess
import sys
import threading
import time
import uuid
import warnings

import limits
import numpy as np
from limits import CUT

PRIME = 1_000_003
OFFSET = 9001
TABLE = {"first": lambda number: number + 9002}
FOLDER = os.path.dirname(os.path.abspath(__file__))
SETTINGS = json.loads(pathlib.Path(FOLDER, "own.json").read_text())
RANDOM = random.Random()
GENERATOR = np.random.default_rng()
CALLS = itertools.count()


def total(value):
    """Make one number of whatever a vertex may be given."""
    if value is None:
        return 0
    if isinstance(value, (int, float)):
        return int(value) % PRIME
    if isinstance(value, np.ndarray):
        return int(value.sum()) % PRIME
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(total(key) + 2 * total(part) for key, part in value.items()) % PRIME
    return sum(place * total(part) for place, part in enumerate(value, 1)) % PRIME


# ---- what depends on its arguments, and on numbers that may be edited


def code(*values):
    return total(values) * 3 + 9003


def constant(*values):
    return total(values) + OFFSET


def imported(*values):
    return total(values) + CUT


def attribute(*values):
    return total(values) + limits.LIMIT


def inside(*values):
    from limits import LIMIT

    return total(values) + LIMIT


def by_name(*values):
    return total(values) + importlib.import_module("limits").LIMIT


def table(*values):
    return TABLE["first"](total(values))


def settings(*values):
    return total(values) + SETTINGS["shift"]


def settings_now(*values):
    return total(values) + json.loads(pathlib.Path(FOLDER, "own.json").read_text())["step"]


@functools.lru_cache
def remembered(number):
    return number + 9004


def calls_remembered(*values):
    return remembered(total(values))


def weighted(weight, *values):
    return total(values) * weight


class Scaler:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, *values):
        return total(values) * self.factor

    def scale(self, *values):
        return total(values) * self.factor + 1


def environ(*values):
    return total(values) + len(os.environ["RANDOM_GRAPHS_WORD"])


# ---- results of other kinds


def array(*values):
    return np.arange(20) + total(values)


def large_array(*values):
    return np.arange(12_000) * (total(values) % 1000)


def nested(*values):
    number = total(values)
    return {"number": number, "parts": [number, (number + 1, {"more": number + 2})]}


def text(*values):
    return "x" * (total(values) % 100)


def each(function, block):
    """Call a function with each number of a block of an array."""
    return np.array([function(int(number)) for number in block])


# ---- what may change what it is given


def changes_copies(*values):
    values = copy.deepcopy(values)
    for value in values:
        if isinstance(value, list):
            value.append(1)
        if isinstance(value, np.ndarray):
            value[:] = 0
    return total(values)


def changes(value):
    """Change what nobody else reads."""
    if isinstance(value, dict):
        value["parts"].append(5)
    if isinstance(value, np.ndarray):
        value += 1
    return total(value)


def aliases(first, second):
    first.append(1)
    return len(first) + 10 * len(second)


def same(first, second):
    return [first is second, total(first)]


# ---- what is also heard of


def prints(*values):
    number = total(values)
    print("a vertex prints", number)
    print("and complains", number, file=sys.stderr, flush=True)
    return number


def logs(*values):
    logging.getLogger("own").warning("a vertex logs %s", total(values))
    return total(values) + 1


def warns(*values):
    warnings.warn("a vertex warns", stacklevel=2)
    return total(values) + 2


# ---- processes and threads


def forks(*values):
    there, here = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this process has threads
        child = os.fork()
    if not child:
        os.write(here, str(total(values) + 3).encode())
        os._exit(0)
    os.close(here)
    with os.fdopen(there) as pipe:
        number = int(pipe.read())
    os.waitpid(child, 0)
    return number


def _send(pipe, number):
    pipe.send(number)


def starts_process(*values):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(there, total(values) + 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child.start()
    number = here.recv()
    child.join()
    return number


def runs_program(*values):
    return int(subprocess.run(["/bin/echo", str(total(values))], capture_output=True, check=True).stdout)


def starts_thread(*values):
    found = []
    thread = threading.Thread(target=lambda: found.append(total(values)))
    thread.start()
    thread.join()
    return found[0]


def computes(*values):
    import dask

    return dask.delayed(total)(values).compute()


# ---- files


def file_named(path, *values):
    with open(path) as file:
        return total(values) + int(file.read())


def file_found(number, *values):
    """A path that only this function makes."""
    return file_named(os.path.join(FOLDER, f"file-{number}"), *values)


def file_matching(pattern, *values):
    return total(values) + sum(int(pathlib.Path(path).read_text()) for path in sorted(glob.glob(pattern)))


def file_at_address(address, *values):
    return file_named(address.removeprefix("file:"), *values)


def file_of_user(path, *values):
    return file_named(os.path.expanduser(path), *values)


def writes(path, *values):
    number = total(values)
    with open(path, "w") as file:
        file.write(str(number))
    return number


def writes_found(number, *values):
    """A path that only this function makes."""
    return writes(os.path.join(FOLDER, f"written-{number}"), *values)


# ---- what is another value each time


def random_number(*values):
    return random.random()


def numpy_number(*values):
    return float(np.random.rand())  # noqa: NPY002 - what users do


def own_random(*values):
    return RANDOM.random()


def own_generator(*values):
    return float(GENERATOR.random())


def drawn(generator, *values):
    return float(generator[0].random())


def called(draw, *values):
    return float(draw())


def new_generator(*values):
    return float(np.random.default_rng().random())


def unique(*values):
    return uuid.uuid4().hex


def counts(*values):
    return next(CALLS)


def tells_time(*values):
    return time.time_ns()


# ---- errors


class TwoNumbers(Exception):
    """Its constructor takes something else than what it leaves in ``args``."""

    def __init__(self, first, second):
        super().__init__(f"numbers {first} and {second}")
        self.first, self.second = first, second


class OnlyKeywords(ValueError):
    def __init__(self, *, path):
        super().__init__(f"cannot read {path}")
        self.path = path


def raises(number, *values):
    if limits.RAISES:
        raise TwoNumbers(number, 9008)
    return total(values)


def raises_from(number, *values):
    if limits.RAISES:
        try:
            return {}[number]
        except KeyError as error:
            raise OnlyKeywords(path=f"/{number}") from error
    return total(values)


def raises_during(number, *values):
    if limits.RAISES:
        try:
            return 1 / 0
        except ZeroDivisionError:
            raise LookupError(number, "nothing there")  # noqa: B904 - with a context, without a cause
    return total(values)


def raises_note(number, *values):
    if limits.RAISES:
        error = RuntimeError(number)
        with contextlib.suppress(AttributeError):
            error.add_note("in a graph")
        raise error
    return total(values)
