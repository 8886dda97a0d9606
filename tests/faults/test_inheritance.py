"""What a worker has inherited from whoever started it does not come to its tasks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from daskvine import DaskVine
from tests.harness.processes import wait_for_task
from vinecore import FunctionCall, PythonTask, Task

ODD_START = """
import os, signal, sys
for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGPIPE):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM])
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.set_inheritable(log, True)
for descriptor in range(3):
    os.close(descriptor)
os.execv(sys.executable, [sys.executable, "-m", "vineworker", *sys.argv[2:]])
"""
STATUS = "^Sig(Blk|Ign):"


@pytest.fixture
def m(local_cluster):
    """With a worker that was started by something odd: closed files, blocked and ignored signals."""
    m = local_cluster.start_manager(DaskVine)
    local_cluster.start_workers(
        m,
        1,
        command=[sys.executable, "-c", ODD_START, str(local_cluster.path("log"))],
        PYTHONWARNINGS="error",
        LC_ALL="C",
    )
    return m


def masks():
    """What a program that this process starts blocks and ignores."""
    said = subprocess.run(
        ["grep", "-E", STATUS, "/proc/self/status"], capture_output=True, text=True, check=True
    )
    return said.stdout


def descriptors():
    return [os.readlink(f"/proc/self/fd/{n}") for n in range(3)]


def fails():
    return subprocess.run(["/bin/sh", "-c", "exit 3"], check=False).returncode


def results(m, make):
    """What a function gives as a task, and as a call in either mode."""
    calls = {"task": PythonTask(make)}
    for exec_mode in ("direct", "fork"):
        library = m.create_library_from_functions(f"{exec_mode}-{make.__name__}", make, exec_mode=exec_mode)
        library.set_cores(1)
        m.install_library(library)
        calls[exec_mode] = FunctionCall(library.name, make.__name__)
    for call in calls.values():
        m.submit(call)
    while not m.empty():
        assert wait_for_task(m).successful()
    return [call.output for call in calls.values()]


def test_commands_start_with_clean_process_state(m):
    """Commands come back and begin as a shell would begin them."""
    clean = subprocess.run(
        ["/bin/sh", "-c", f"grep -E '{STATUS}' /proc/self/status"],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=plain,
    ).stdout
    task = Task(f"grep -E '{STATUS}' /proc/self/status; readlink /proc/self/fd/0; exit 3")
    m.submit(task)
    assert wait_for_task(m).exit_code == 3
    *status, standard_input = task.output.splitlines()
    assert signals(status) == signals(clean.splitlines())
    assert standard_input == "/dev/null"


def signals(status):
    """Those that these lines of a process's status name, without the C library's own two, which no program can set."""
    theirs = sum(1 << (number - 1) for number in signal.valid_signals())
    return {name: int(mask, 16) & theirs for name, mask in (line.split(":") for line in status)}


def plain():
    """As a login has it."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def test_what_functions_start_ignores_and_blocks_nothing(m):
    for status in results(m, masks):
        assert signals(status.splitlines()) == {"SigBlk": 0, "SigIgn": 0}


def test_functions_hear_how_their_children_have_ended(m):
    assert results(m, fails) == [3, 3, 3]


def test_functions_have_standard_streams(m):
    for streams in results(m, descriptors):
        assert streams[0] == "/dev/null"
        assert not any("socket" in name or "memfd" in name for name in streams)


def test_an_interrupt_reaches_what_a_function_starts(m):
    def interrupted():
        return subprocess.run(["/bin/sh", "-c", "kill -INT $$; exit 0"], check=False).returncode

    assert (
        m.get({"x": (interrupted,)}, "x", task_mode="function-calls", progress_disable=True) == -signal.SIGINT
    )
    assert m.get({"x": (interrupted,)}, "x", task_mode="tasks", progress_disable=True) == -signal.SIGINT
