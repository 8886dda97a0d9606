"""What one call does to its slot is not there for the next call in it."""

from __future__ import annotations

import os

import pytest

from vinecore import FunctionCall


def change(text):
    names = {}
    exec(text, names)
    return os.getpid(), text


def look(text):
    names = {}
    exec(f"import os, signal, decimal, sys, logging, warnings\nfound = repr(({text},))", names)
    return os.getpid(), names["found"]


CASES = {
    "working directory": ("import os; os.chdir('/')", "os.getcwd()"),
    "a directory that is gone": (
        "import os, tempfile; path = tempfile.mkdtemp(); os.chdir(path); os.rmdir(path)",
        "os.getcwd()",
    ),
    "environment": ("import os; os.environ['NEW'] = '1'", "os.environ.get('NEW')"),
    "umask": ("import os; os.umask(0o777)", "os.umask(0o22)"),
    "alarm": ("import signal; signal.alarm(100)", "signal.getitimer(signal.ITIMER_REAL)"),
    "handler": ("import signal; signal.signal(signal.SIGALRM, print)", "signal.getsignal(signal.SIGALRM)"),
    "decimals": ("import decimal; decimal.getcontext().prec = 3", "decimal.getcontext().prec"),
    "output": ("import io, sys; sys.stdout = io.StringIO()", "type(sys.stdout)"),
    "log": ("import logging; logging.basicConfig(level=1)", "logging.root.level, logging.root.handlers"),
    "processors": (
        "import os; os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])",
        "os.sched_getaffinity(0)",
    ),
    "digits": ("import sys; sys.set_int_max_str_digits(1000)", "sys.get_int_max_str_digits()"),
    "warnings": ("import warnings; warnings.simplefilter('error')", "warnings.filters"),
}
REPLACED = {
    "closed output": "import os; os.close(1)",
    "closed errors": "import os; os.close(2)",
    "all closed": "import os; os.closerange(3, 100)",
    "other input": "import os; os.dup2(os.pipe()[0], 0)",
    "other output": "import os; os.dup2(os.open('/dev/null', os.O_WRONLY), 1)",
}


@pytest.fixture(scope="module")
def library(shared_manager):
    library = shared_manager.create_library_from_functions("state", change, look, exec_mode="direct")
    library.set_cores(1)
    library.set_function_slots(1)
    shared_manager.install_library(library)
    yield "state"
    shared_manager.remove_library("state")


@pytest.mark.parametrize(("text", "where"), CASES.values(), ids=CASES)
def test_next_call_starts_from_original_state(library, run, text, where):
    """The next call in the same slot starts from what was."""
    first = run(FunctionCall(library, "look", where))
    assert first.successful(), first.output
    slot, before = first.output
    changed = run(FunctionCall(library, "change", text))
    assert changed.output == (slot, text)
    assert run(FunctionCall(library, "look", where)).output == (slot, before)


@pytest.mark.parametrize("text", REPLACED.values(), ids=REPLACED)
def test_unfit_slot_is_replaced(library, run, text):
    """A slot that is not fit for the next call is replaced."""
    calls = [FunctionCall(library, "change", text) for _ in range(7)]
    others = [FunctionCall(library, "look", "1") for _ in range(7)]
    found = run(*(task for pair in zip(calls, others, strict=True) for task in pair))
    assert [task.successful() for task in found] == [True] * 14, [task.output for task in found]
    slots = [task.output[0] for task in found[::2]]
    assert len(set(slots)) == 7


def test_call_closing_descriptors_fails_alone(library, run):
    """A call that closes every descriptor fails alone."""
    lost = FunctionCall(library, "change", "import os; os.closerange(0, 4096)")
    lost.set_retries(1)
    found = run(lost, *(FunctionCall(library, "look", "1") for _ in range(5)))
    assert [task.successful() for task in found] == [False, True, True, True, True, True]
