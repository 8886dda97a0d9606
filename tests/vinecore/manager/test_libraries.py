"""Libraries of functions: loaded once on a worker, called many times."""

from __future__ import annotations

import fractions
import json
import os
import signal
import subprocess
import sys
import traceback
import venv
from pathlib import Path

import cloudpickle
import pytest

from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, is_alive, wait_until, worker_summaries
from vinecore import FunctionCall, FunctionCallNoResult, LibraryError, LibraryTask, load_variable_from_library

MODES = pytest.mark.parametrize("exec_mode", ["fork", "direct"])


@pytest.fixture
def install(m):
    """Install libraries that are removed after the test."""
    installed = []

    def install(name, *functions, cores=2, slots=None, **more):
        library = m.create_library_from_functions(name, *functions, **more)
        library.set_cores(cores)
        if slots is not None:
            library.set_function_slots(slots)
        m.install_library(library)
        installed.append(name)
        return library

    yield install
    for name in installed:
        m.remove_library(name)


@MODES
def test_a_function_is_called_with_its_arguments(install, run, exec_mode):
    install("lib", sample_tasks.add, exec_mode=exec_mode)
    assert run(FunctionCall("lib", "add", 1, y=2)).output == 3


@MODES
def test_many_calls_return_their_own_results(install, run, exec_mode):
    """Many calls come back with their own results."""
    install("lib", sample_tasks.square, exec_mode=exec_mode)
    assert [task.output for task in run(*(FunctionCall("lib", "square", n) for n in range(100)))] == [
        n * n for n in range(100)
    ]


def test_slots_are_forked_from_one_process(install, run):
    """Calls run in slots that are forked from one process."""
    install("lib", sample_tasks.who, exec_mode="direct", cores=4, slots=2)
    found = [task.output for task in run(*(FunctionCall("lib", "who") for _ in range(20)))]
    assert len({parent for _pid, parent in found}) == 1
    assert 1 <= len({pid for pid, _parent in found}) <= 2


def test_fork_mode_gives_call_its_process(install, run):
    """In fork mode every call has a process of its own."""
    install("lib", sample_tasks.who, exec_mode="fork", cores=4, slots=1)
    found = [task.output for task in run(*(FunctionCall("lib", "who") for _ in range(5)))]
    assert len({pid for pid, _slot in found}) == 5
    assert len({slot for _pid, slot in found}) == 1


@MODES
def test_exception_is_output_of_its_call(install, run, exec_mode):
    """An exception is the output and harms no other call."""
    install("lib", sample_tasks.add, exec_mode=exec_mode, cores=1)
    bad, good = run(FunctionCall("lib", "add", 1, None), FunctionCall("lib", "add", 1, 2))
    assert isinstance(bad.output, TypeError)
    assert (bad.completed(), bad.successful(), good.output) == (True, False, 3)


@MODES
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, RecursionError])
def test_whatever_a_function_raises_comes_back_once(install, run, tmp_path, exec_mode, kind):
    def fail(log):
        sample_tasks.note(log, "ran")
        raise kind("said so")

    install("lib", fail, exec_mode=exec_mode, cores=1)
    call = run(FunctionCall("lib", "fail", tmp_path / "log"))
    assert (type(call.output), call.output.args, call.successful()) == (kind, ("said so",), False)
    assert (tmp_path / "log").read_text() == "ran\n"


@MODES
def test_signal_in_call_reruns_it(install, run, shared_cluster, exec_mode):
    """An interrupt that is a signal ends the process and the call runs again."""
    install("lib", sample_tasks.dies_once, exec_mode=exec_mode, cores=1)
    name = f"interrupted-{exec_mode}"
    assert run(FunctionCall("lib", "dies_once", shared_cluster.path("."), name, signal.SIGINT)).output == name
    assert shared_cluster.count_lines(name) == 2


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, RecursionError])
def test_exception_of_context_explains_failed_start(install, run, kind):
    """Whatever a context raises is why the library could not be started."""

    def build():
        raise kind("said so")

    install("lib", sample_tasks.add, exec_mode="direct", library_context_info=[build])
    error = run(FunctionCall("lib", "add", 1, y=2)).error()
    assert (type(error), error.args) == (kind, ("said so",))
    assert ", in build" in "".join(traceback.format_tb(error.__traceback__))


@MODES
def test_context_is_built_once_for_calls(install, run, shared_cluster, exec_mode):
    """The context is built once and seen by all calls."""
    counter = str(shared_cluster.path(f"context-{exec_mode}"))

    def context(start, *, factor):
        sample_tasks.note(counter)
        return {"base": start * factor, "names": ["a"]}

    def use(x):
        return load_variable_from_library("base") + x

    def use_global(x):
        return base + x  # noqa: F821 - made by the context

    def missing():
        return load_variable_from_library("nothing")

    install(
        "lib",
        use,
        use_global,
        missing,
        exec_mode=exec_mode,
        library_context_info=[context, [10], {"factor": 2}],
    )
    calls = [FunctionCall("lib", name, n) for name in ("use", "use_global") for n in range(5)]
    assert [task.output for task in run(*calls)] == [20, 21, 22, 23, 24] * 2
    assert shared_cluster.count_lines(f"context-{exec_mode}") == 1
    output = run(FunctionCall("lib", "missing")).output
    assert isinstance(output, KeyError)
    assert "it has: base, names" in str(output)


@MODES
def test_calls_draw_random_numbers_of_their_own(install, run, exec_mode):
    pytest.importorskip("numpy")

    def context():
        import random

        from numpy.random import default_rng

        return {"generator": default_rng(), "plain": random.Random()}

    def draw():
        import random

        import numpy as np

        return random.random(), np.random.random(), generator.random(), plain.random()  # noqa: F821, NPY002 - of the context

    info = [context, [], {}]
    install("lib", draw, exec_mode=exec_mode, hoisting_modules=["numpy.random"], library_context_info=info)
    found = [task.output for task in run(*(FunctionCall("lib", "draw") for _ in range(20)))]
    assert [len(set(values)) for values in zip(*found, strict=True)] == [20] * 4


def test_modules_are_imported_before_slots(m, run, tmp_path, shared_cluster):
    """Modules are imported before the first slot is forked."""
    counter = shared_cluster.path("imports")
    (tmp_path / "hoisted.py").write_text(
        f"import os\nopen({str(counter)!r}, 'a').write('x\\n')\nPID = os.getpid()\n"
    )
    import colorsys

    def where():
        import hoisted

        return hoisted.PID, os.getppid(), "colorsys" in sys.modules

    library = LibraryTask("hoisting", [where], modules=["hoisted", colorsys], exec_mode="direct")
    library.set_cores(2)
    library.set_env_var("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    m.install_library(library)
    for task in run(*(FunctionCall("hoisting", "where") for _ in range(6))):
        pid, parent, imported = task.output
        assert (pid, imported) == (parent, True)
    assert shared_cluster.count_lines("imports") == 1
    m.remove_library("hoisting")


def test_lambdas_are_called_by_their_names(install, run):
    """Lambdas and functions made at run time are called by their names."""
    namespace = {}
    exec("def made(x):\n    return helper(x) + 1\n\ndef helper(x):\n    return 10 * x", namespace)
    install("lib", lambda x: x + 1, namespace["made"])
    assert [
        task.output for task in run(FunctionCall("lib", "<lambda>", 1), FunctionCall("lib", "made", 2))
    ] == [2, 21]


def test_library_files_and_variables_reach_calls(m, run):
    """Files and variables of a library are there for its calls."""

    def read():
        with open("data/in") as file:
            return file.read(), os.environ["WORD"], os.environ["CORES"]

    library = m.create_library_from_functions("filed", read, exec_mode="direct")
    library.set_cores(2)
    library.add_input(m.declare_buffer("of the library"), "data/in")
    library.set_env_var("WORD", "set")
    m.install_library(library)
    assert run(FunctionCall("filed", "read")).output == ("of the library", "set", "2")
    m.remove_library("filed")


def test_a_command_may_go_before_the_library(m, run):
    library = m.create_library_from_functions("prefixed", lambda: os.environ.get("PREFIX"))
    library.set_cores(1)
    library.set_command("env PREFIX=before")
    m.install_library(library)
    assert run(FunctionCall("prefixed", "<lambda>")).output == "before"
    m.remove_library("prefixed")


def test_init_command_holds_in_library(install, run, tmp_path):
    """What the command sets, its PYTHONPATH too, is there for the functions and what they start."""

    def look():
        import init_of_library

        started = subprocess.run(
            ["/bin/sh", "-c", "echo $PYTHONPATH"], check=True, capture_output=True, text=True
        )
        return os.environ["WORD"], os.umask(0o77), init_of_library.VALUE, started.stdout.strip()

    (tmp_path / "init_of_library.py").write_text("VALUE = 'imported'\n")
    init = f"set -- other arguments; umask 027\nexport WORD='two words' PYTHONPATH={tmp_path};"
    install("lib", look, init_command=init, add_env=False)
    assert run(FunctionCall("lib", "look")).output == ("two words", 0o27, "imported", str(tmp_path))


def test_init_command_may_choose_the_python(install, run, tmp_path):
    """The library runs in the Python that the command has put on the search path."""
    venv.create(tmp_path / "other", with_pip=False)
    (packages,) = (tmp_path / "other").glob("lib/python*/site-packages")
    (packages / "these.pth").write_text(f"{Path(cloudpickle.__file__).parent.parent}\n")
    install("lib", lambda: sys.prefix, init_command=f"source {tmp_path}/other/bin/activate")
    assert run(FunctionCall("lib", "<lambda>")).output == str(tmp_path / "other")


def test_init_command_runs_in_packed_environment(install, run, m, packed):
    init = "export PYTHON_OF_INIT=$(command -v python)"
    install(
        "lib", lambda: (os.environ["PYTHON_OF_INIT"], sys.executable), init_command=init, poncho_env=packed
    )
    of_init, of_library = run(FunctionCall("lib", "<lambda>")).output
    assert Path(of_init).parent == Path(of_library).parent != Path(sys.executable).parent


def test_failing_init_command_is_named(m, run):
    library = m.create_library_from_functions(
        "lib", sample_tasks.add, init_command="echo no such place; false"
    )
    library.set_cores(1)
    m.install_library(library)
    task = run(FunctionCall("lib", "add", 1, 2))
    assert task.result == "missing library"
    assert "init_command" in str(task.output)
    assert "no such place" in str(task.output)
    m.remove_library("lib")


def test_empty_init_command_is_refused(m):
    with pytest.raises(ValueError, match="init_command"):
        m.create_library_from_functions("lib", sample_tasks.add, init_command=" ")


@pytest.mark.parametrize("size", [10, 200_000])
def test_results_on_worker_serve_as_arguments(install, m, run, size):
    """Results stay on the worker and are arguments of other calls."""
    install("lib", sample_tasks.make_bytes, sample_tasks.length, exec_mode="direct")
    first = FunctionCall("lib", "make_bytes", size)
    first.enable_temp_output()
    m.submit(first)
    second = FunctionCall("lib", "length", first.output_file)
    m.submit(second)
    assert {m.wait(PATIENCE_S), m.wait(PATIENCE_S)} == {first, second}
    assert second.output == len(sample_tasks.make_bytes(size))


def test_bytes_return_unpickled_on_request(install, run):
    """Bytes come back as they are where that is asked for."""
    install("lib", sample_tasks.make_bytes, bytes)
    for size in (0, 100, 200_000):
        call = FunctionCall("lib", "bytes", size)
        call.disable_output_serialization()
        assert run(call).output == bytes(size)


# ---- what is refused, and what fails


def test_unknown_library_or_function_is_refused(install, m):
    """A library or function that there is not is refused at once."""
    install("lib", sample_tasks.add)
    with pytest.raises(ValueError, match=r"no library 'other' is installed; installed: .*lib"):
        m.submit(FunctionCall("other", "add"))
    with pytest.raises(ValueError, match="no function 'sub'; it has: add"):
        m.submit(FunctionCall("lib", "sub"))
    assert m.check_library_exists("lib")
    assert not m.check_library_exists("other")


def test_different_library_of_same_name_is_refused(install, m):
    """Another library of the same name is refused and the same one is not."""
    install("lib", sample_tasks.add)
    install("lib", sample_tasks.add)
    with pytest.raises(ValueError, match="remove it first"):
        m.install_library(m.create_library_from_functions("lib", sample_tasks.square))


@pytest.mark.parametrize("slots", [0, -1])
def test_a_library_needs_a_slot(m, slots):
    with pytest.raises(ValueError, match=r"slots=.*1 or more"):
        m.create_library_from_functions("lib", sample_tasks.add).set_function_slots(slots)


def test_an_unknown_way_to_execute_is_refused(m):
    with pytest.raises(ValueError, match="use 'fork'"):
        m.create_library_from_functions("lib", sample_tasks.add, exec_mode="thread")


def test_function_is_hoisted_as_its_module(m):
    """A function or class among the hoisted modules stands for its module."""
    library = m.create_library_from_functions(
        "lib", sample_tasks.add, init_command="", hoisting_modules=[json.dumps, fractions.Fraction, "csv"]
    )
    assert library.definition["modules"] == ["json", "fractions", "csv"]


def test_non_module_cannot_be_hoisted(m):
    """What is not a module cannot be hoisted."""
    with pytest.raises(TypeError, match="neither a module nor"):
        m.create_library_from_functions("lib", sample_tasks.add, hoisting_modules=[3])
    with pytest.raises(TypeError, match="a list of modules"):
        m.create_library_from_functions("lib", sample_tasks.add, hoisting_modules=0)


def test_escaping_file_name_is_refused(m):
    """A name that leads out of the library is refused."""
    with pytest.raises(ValueError, match="inside of a task's folder"):
        m.create_library_from_functions("lib", sample_tasks.add).add_input(m.declare_buffer("x"), "../x")


def test_failing_import_is_error_of_calls(install, run):
    """A library that cannot import fails its calls with the original error."""
    install("lib", sample_tasks.add, hoisting_modules=["a_module_that_there_is_not"])
    for task in run(*(FunctionCall("lib", "add", n, 1) for n in range(5))):
        assert (task.result, task.successful()) == ("missing library", False)
        assert isinstance(task.output, ModuleNotFoundError)
        assert "No module named 'a_module_that_there_is_not'" in str(task.output)
        assert any("install it there" in note for note in task.output.__notes__)


def test_failing_context_is_error_of_calls(install, run):
    """A library whose context fails fails its calls with the original error."""

    def context():
        raise KeyError("calibration")

    install("lib", sample_tasks.add, library_context_info=[context, [], {}])
    output = run(FunctionCall("lib", "add", 1, 2)).output
    assert isinstance(output, KeyError)
    assert output.args == ("calibration",)


def test_missing_library_command_fails_calls(m, run):
    """A library whose command does not exist fails its calls."""
    library = m.create_library_from_functions("commanded", sample_tasks.add)
    library.set_cores(1)
    library.set_command("/no/such/program")
    m.install_library(library)
    task = run(FunctionCall("commanded", "add", 1, 2))
    assert task.result == "missing library"
    assert isinstance(task.error(), LibraryError)
    assert isinstance(task.output, FunctionCallNoResult)
    assert "/no/such/program" in str(task.output)
    m.remove_library("commanded")


def test_library_can_be_fixed_and_reinstalled(install, m, run):
    """A library can be mended and installed anew."""
    install("lib", sample_tasks.add, hoisting_modules=["a_module_that_there_is_not"])
    assert not run(FunctionCall("lib", "add", 1, 2)).successful()
    m.remove_library("lib")
    install("lib", sample_tasks.add, hoisting_modules=["json"])
    assert run(FunctionCall("lib", "add", 1, 2)).output == 3


# ---- its end


def test_unfinished_calls_of_removed_library_return(install, m, run, shared_cluster):
    """Unfinished calls of a removed library come back."""
    install("lib", sample_tasks.held, sample_tasks.add, exec_mode="direct")
    calls = [
        FunctionCall("lib", "held", str(shared_cluster.folder), f"removed-{n}", "never") for n in range(4)
    ]
    for call in calls:
        m.submit(call)
    wait_until(lambda: shared_cluster.count_lines("removed-0"), "a call to be running")
    m.remove_library("lib")
    assert {m.wait(PATIENCE_S).result for _ in calls} == {"missing library"}
    with pytest.raises(ValueError, match="no library 'lib'"):
        m.submit(FunctionCall("lib", "add", 1, 2))
    wait_until(lambda: worker_summaries(m)[0]["libraries"] == {}, "the library to be gone from the worker")
    pid = int(shared_cluster.path("removed-0").read_text())
    wait_until(lambda: not is_alive(pid), "its slot to be gone")


def test_idle_library_makes_room_for_other(install, run):
    """An idle library makes room for another one."""
    install("first", sample_tasks.add, cores=4)
    install("second", sample_tasks.square, cores=4)
    assert run(FunctionCall("first", "add", 1, 2)).output == 3
    assert run(FunctionCall("second", "square", 3)).output == 9
    assert run(FunctionCall("first", "add", 2, 2)).output == 4


def test_a_library_leaves_no_files_behind(install, m, run, shared_cluster):
    install("lib", sample_tasks.add, exec_mode="direct")
    run(FunctionCall("lib", "add", 1, 2))
    m.remove_library("lib")
    install("lib", sample_tasks.add, hoisting_modules=["a_module_that_there_is_not"])
    run(FunctionCall("lib", "add", 1, 2))
    m.remove_library("lib")
    [session] = shared_cluster.workspace.glob("vine-worker-*/session-*")
    wait_until(
        lambda: {path.name for path in session.iterdir()} == {"cache", "incoming"},
        f"only the cache to be left: {list(session.iterdir())}",
    )
    assert list((session / "incoming").iterdir()) == []


def test_failing_library_is_named(m, caplog):
    """A library that fails is called by its name."""
    library = m.create_library_from_functions("my library", sample_tasks.add)
    library.set_command("/bin/false")
    m.install_library(library)
    call = FunctionCall("my library", "add", 1, 2)
    m.submit(call)
    assert m.wait(PATIENCE_S) is call
    assert "library my library could not be started" in str(call.output)
    (full_name, _functions) = m._libraries["my library"]
    assert full_name not in str(call.output)
    assert "library my library failed on worker" in caplog.text
    assert full_name not in caplog.text
    m.remove_library("my library")
