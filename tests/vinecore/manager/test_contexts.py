"""Contexts of libraries: built in each slot where that is asked for, and named when they take long."""

from __future__ import annotations

import os
import sys
import traceback

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import wait_for_task, wait_until
from vinecore import FunctionCall, LibraryTask, load_variable_from_library


@pytest.fixture
def install(m):
    installed = []

    def install(library, slots=1):
        library.set_cores(2)
        library.set_function_slots(slots)
        m.install_library(library)
        installed.append(library.name)

    yield install
    for name in installed:
        m.remove_library(name)


def pool():
    from concurrent.futures import ThreadPoolExecutor

    threads = ThreadPoolExecutor(1)
    threads.submit(int).result()  # its thread runs
    return {"threads": threads, "builder": os.getpid()}


def test_context_with_threads_works_in_slots(m, install, run, shared_cluster):
    """A context with threads works in each slot."""
    folder = str(shared_cluster.path("pools"))
    os.mkdir(folder)

    def use(number):
        sample_tasks.note(f"{folder}/{number}")
        sample_tasks.wait_for(f"{folder}/{1 - number}")  # so both slots are there
        assert load_variable_from_library("builder") == builder == os.getpid()  # noqa: F821 - made by the context
        return threads.submit(sample_tasks.square, 3).result(), os.getpid()  # noqa: F821 - made by the context

    about = [pool, [], {}]
    install(
        m.create_library_from_functions(
            "pools", use, exec_mode="direct", library_context_info=about, context_per_slot=True
        ),
        slots=2,
    )
    found = [task.output for task in run(*(FunctionCall("pools", "use", n) for n in range(2)))]
    assert [square for square, _pid in found] == [9, 9]
    assert len({pid for _square, pid in found}) == 2


def test_forked_calls_share_slots_context(m, install, run):
    """In fork mode a slot builds its context once."""

    def build():
        return {"builder": os.getpid()}

    def use():
        return builder == os.getppid()  # noqa: F821 - made by the context

    library = m.create_library_from_functions(
        "forked", use, library_context_info=[build], context_per_slot=True
    )
    install(library)
    assert [task.output for task in run(*(FunctionCall("forked", "use") for _ in range(3)))] == [True] * 3


@pytest.mark.parametrize("exec_mode", ["fork", "direct"])
@pytest.mark.parametrize("kind", [KeyError, SystemExit])
def test_exception_of_context_fails_calls(install, run, exec_mode, kind):
    """What a context of a slot raises is the error of the calls."""

    def build():
        raise kind("calibration")

    library = LibraryTask(
        "raising", [sample_tasks.add], exec_mode=exec_mode, context=(build, [], {}), context_per_slot=True
    )
    install(library, slots=2)
    for task in run(*(FunctionCall("raising", "add", 1, 2) for _ in range(3))):
        error = task.error()
        assert (type(error), error.args) == (kind, ("calibration",))
        assert ", in build" in "".join(traceback.format_tb(error.__traceback__))


def test_context_ending_process_fails_calls(install, run):
    """A context of a slot that ends its process fails the calls."""
    library = LibraryTask(
        "dying", [sample_tasks.add], exec_mode="direct", context=(os._exit, [3], {}), context_per_slot=True
    )
    install(library)
    assert "its process exited with code 3" in str(run(FunctionCall("dying", "add", 1, 2)).error())


def test_a_wrong_value_is_refused():
    with pytest.raises(TypeError, match="context_per_slot"):
        LibraryTask("lib", [sample_tasks.add], context_per_slot="yes")


@pytest.mark.parametrize("per_slot", [False, True])
def test_waiting_context_is_named_with_line(m, install, shared_cluster, per_slot):
    """A context that waits is named with its line."""
    gate = str(shared_cluster.path(f"gate-{per_slot}"))

    def build_calibration():
        sample_tasks.wait_for(gate)
        return {}

    library = LibraryTask(
        "waiting",
        [sample_tasks.add],
        exec_mode="direct",
        context=(build_calibration, [], {}),
        context_per_slot=per_slot,
    )
    install(library)
    m.submit(FunctionCall("waiting", "add", 1, 2))
    said = wait_until(lambda: "library waiting has been starting" in m.stalled_reason and m.stalled_reason)
    assert "it builds its context: " in said
    assert f"line {build_calibration.__code__.co_firstlineno + 1} of {__file__}, in build_calibration" in said
    open(gate, "w").close()
    assert wait_for_task(m).output == 3
    wait_until(lambda: not m.stalled_reason)


def test_a_module_whose_import_waits_is_named(m, install, shared_cluster, tmp_path):
    gate = str(shared_cluster.path("gate-import"))
    module = tmp_path / "waits_for_a_gate.py"
    module.write_text(f"import os, time\n\nwhile not os.path.exists({gate!r}):\n    time.sleep(0.01)\n")
    library = LibraryTask("importing", [sample_tasks.add], modules=["waits_for_a_gate"], exec_mode="direct")
    library.set_env_var("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    install(library)
    m.submit(FunctionCall("importing", "add", 1, 2))
    said = wait_until(lambda: "library importing has been starting" in m.stalled_reason and m.stalled_reason)
    assert "it imports its modules: line " in said
    assert f"of {module}, in <module>" in said
    open(gate, "w").close()
    assert wait_for_task(m).output == 3
