"""What this code costs on this machine: the numbers that the study does not assume.

Of several rounds the fastest counts: what else runs on the machine only adds. What is CPU time is told so.
"""

from __future__ import annotations

import importlib.util
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from benchmarks import work
from vinecore import Factory, FunctionCall, Manager, PythonTask
from vinecore.protocol import frames
from vinecore.protocol import messages as m
from vinecore.simulate import Costs

MODULES = ("numpy", "awkward", "uproot", "hist", "coffea.nanoevents", "dask_awkward")
CALLS, SEQUENTIAL, TASKS = 1000, 200, 20  # in each round
STARTS = 5


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes
    ----------
    costs : Costs
        All of it, as the simulator takes it.
    modules : tuple of str
        What ``costs.imports_s`` imports.
    calls_per_s, tasks_per_s : float
        Rates of calls and of tasks with a process of their own that do nothing, with one slot.
    """

    costs: Costs
    modules: tuple[str, ...]
    calls_per_s: float
    tasks_per_s: float


def measure(rounds: int = 5) -> Measured:
    """Measure everything, in so many rounds."""
    modules = tuple(name for name in MODULES if importlib.util.find_spec(name.partition(".")[0]) is not None)
    interpreter = _start("pass")
    imports = max(0.0, _start(f"import {', '.join(modules)}") - interpreter) if modules else 0.0
    message = _encoding()
    with _manager() as (manager, cpu):
        manager.install_library(
            manager.create_library_from_functions("ladder", work.increment, exec_mode="direct")
        )
        _calls(manager, 50)
        together = [_calls(manager, CALLS, cpu) for _ in range(rounds)]
        alone = [sum(_calls(manager, 1, cpu)[1] for _ in range(SEQUENTIAL)) for _ in range(rounds)]
    with _manager() as (manager, _cpu):
        _tasks(manager, 5)
        task = min(_tasks(manager, TASKS) for _ in range(rounds)) / TASKS
    # a call is two events, its submission and its end, and one message; one by one each of the two has a turn of the loop for itself
    each = min(cpu for _seconds, cpu in together) / CALLS
    call = min(seconds for seconds, _cpu in together) / CALLS
    event = max(0.0, (each - message) / 2)
    turn = max(0.0, (min(alone) / SEQUENTIAL - each) / 2)
    costs = Costs(
        loop_iteration_s=turn,
        event_s=event,
        message_s=message,
        interpreter_s=interpreter,
        imports_s=imports,
        fork_s=task,
        sandbox_s=0.0,  # is in that of the fork: they cannot be told apart from outside
        call_s=call,
    )
    return Measured(costs, modules, 1 / call, 1 / task)


def _start(code: str) -> float:
    """CPU seconds of an interpreter that runs this; what has to be read from a disk at first does not count."""
    seconds = []
    for _ in range(STARTS):
        before = _children()
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
        seconds.append(_children() - before)
    return min(seconds)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _encoding() -> float:
    """Seconds to encode a call, in a frame with some others."""
    encode = msgspec.json.Encoder().encode
    run = m.RunTask(
        1,
        "library-0123456789abcdef",
        "f",
        ["shared"],
        ["input-0", "input-1"],
        "result",
        False,
        {},
        bytes(100),
    )
    rounds, together = 500, 8
    began = time.perf_counter()
    for _ in range(rounds):
        b"".join(frames.encode([run] * together, encode))
    return (time.perf_counter() - began) / (rounds * together)


@contextmanager
def _manager() -> Iterator[tuple[Manager, Callable[[], float]]]:
    """Run a manager with a worker of one core; yield it and the clock of its loop's CPU time."""
    with Manager(port=0, address="127.0.0.1") as manager, Factory("local", manager=manager, cores=1):
        manager.wait_for_workers(1)
        loop = next(t for t in reversed(threading.enumerate()) if t.name == "vine-manager")
        assert loop.ident is not None
        clock = time.pthread_getcpuclockid(loop.ident)
        yield manager, lambda: time.clock_gettime(clock)


def _calls(manager: Manager, count: int, cpu: Callable[[], float] = lambda: 0.0) -> tuple[float, float]:
    """Seconds of some calls, and CPU seconds of the manager's loop."""
    began, used = time.perf_counter(), cpu()
    for number in range(count):
        manager.submit(FunctionCall("ladder", "increment", number))
    _drain(manager)
    return time.perf_counter() - began, cpu() - used


def _tasks(manager: Manager, count: int) -> float:
    began = time.perf_counter()
    for number in range(count):
        task = PythonTask(work.increment, number)
        task.set_cores(1)
        manager.submit(task)
    _drain(manager)
    return time.perf_counter() - began


def _drain(manager: Manager) -> None:
    while not manager.empty():
        task = manager.wait()
        if task is None or not task.successful():
            msg = f"a task has failed: {task and task.error()}"
            raise RuntimeError(msg)
