"""Modules of the user's own: each process imports them for itself, as they are now."""

from __future__ import annotations

import importlib
import os
import re
import sys
import textwrap
import traceback
import zipfile
from concurrent.futures import ThreadPoolExecutor

import dask
import numpy as np
import pytest

from daskvine import DaskVine
from daskvine.compiler import modules_behind
from tests.daskvine import sample_graphs as v
from tests.harness.processes import PATIENCE_S, scheduler_state, wait_for_task, wait_until
from vinecore import FunctionCall, PythonTask, TaskFailed

TASKS = 30
OWN = """
    import asyncio, os, pathlib, queue, threading
    import numpy as np

    IMPORTED_BY = os.getpid()
    HERE = pathlib.Path(__file__).parent
    handle = open(HERE / "numbers.bin", "rb", buffering=0)
    archive = np.load(HERE / "arrays.npz")
    asked, answers = queue.Queue(), queue.Queue()


    def answer():
        while True:
            answers.put(asked.get() ** 2)


    threading.Thread(target=answer, daemon=True).start()
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()


    def from_handle(number):
        found = []
        for place in range(100):
            handle.seek(8 * (number + place))
            found.append(int.from_bytes(handle.read(8), "big") - place)
        return found == [number] * 100


    def from_archive(number):
        return bool((archive[f"a{number}"] == number).all())


    def through_thread(number):
        asked.put(number)
        return answers.get(timeout=240) == number**2


    async def double(number):
        return 2 * number


    def through_loop(number):
        return asyncio.run_coroutine_threadsafe(double(number), loop).result(60) == 2 * number


    def imported_here(number):
        return IMPORTED_BY == os.getpid()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of the user's, on the path of imports of this process and of its workers."""
    folder = tmp_path_factory.mktemp("analysis")
    folder.joinpath("numbers.bin").write_bytes(b"".join(n.to_bytes(8, "big") for n in range(TASKS + 100)))
    np.savez(folder / "arrays.npz", **{f"a{n}": np.full(5_000, n) for n in range(TASKS)})
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        yield folder
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(folder) in sys.modules[name].__file__:
            del sys.modules[name]


@pytest.fixture(scope="module")
def m(folder):
    with DaskVine.local(cores=2) as m:
        yield m


def write(folder, name, text):
    folder.joinpath(f"{name}.py").write_text(textwrap.dedent(text))
    importlib.invalidate_caches()
    return importlib.import_module(name)


@pytest.mark.parametrize(
    "function", ["from_handle", "from_archive", "through_thread", "through_loop", "imported_here"]
)
def test_import_side_effects_work_in_tasks(m, folder, task_mode, function):
    """What a module opens or starts when it is imported works in every task."""
    function = getattr(write(folder, "mine_opens", OWN), function)
    options = {"scheduler": m.get, "task_mode": task_mode}
    dask.compute(*(dask.delayed(function)(n, pure=False) for n in range(2)), **options)  # had it be learnt
    found = dask.compute(*(dask.delayed(function)(n, pure=False) for n in range(TASKS)), **options)
    assert found == (True,) * TASKS


def test_requested_module_is_imported_before_fork(m, folder):
    """A module that is asked for is imported before the fork."""
    module = write(
        folder, "mine_hoisted", "import os\nPID = os.getpid()\ndef pid(n):\n    return PID, os.getppid()"
    )
    calls = [dask.delayed(module.pid)(n) for n in range(4)]
    found = dask.compute(*calls, scheduler=m.get, task_mode="function-calls", import_modules=["mine_hoisted"])
    assert all(pid == parent for pid, parent in found)


def test_tasks_use_code_compiled_before_fork(m, folder):
    """Later tasks take what was compiled before the fork."""
    text = "from vineworker.library import fresh_imports\ndef known():\n    return __file__ in fresh_imports._compiled\n"
    module = write(folder, "mine_compiled", text)
    wait_until(lambda: dask.delayed(module.known)(pure=False).compute(scheduler=m.get, task_mode="tasks"))


def test_packages_of_own_modules_are_preimported(m, folder, task_mode):
    """Packages that own modules refer to are imported before the fork."""
    write(
        folder, "mine_near", "import sys\nBEFORE = 'colorsys' in sys.modules\nfrom colorsys import hsv_to_rgb"
    )
    module = write(folder, "mine_far", "import mine_near\ndef before(n):\n    return mine_near.BEFORE")
    assert modules_behind(module) == {"mine_far", "mine_near", "colorsys", "sys"}
    assert modules_behind(np) == {"numpy"}
    options = {"import_modules": ["this"]} if task_mode == "function-calls" else {}  # a library that is new
    calls = [dask.delayed(module.before)(n) for n in range(4)]
    dask.compute(*calls, scheduler=m.get, task_mode=task_mode, **options)
    assert all(dask.compute(*calls, scheduler=m.get, task_mode=task_mode, **options))


# ---- edits while the program runs


def edited(folder, name, text):
    """Write a module anew and reload it, as one does in a notebook."""
    module = write(folder, name, text)
    return importlib.reload(module)


def test_reloaded_module_runs_new_code(m, folder, task_mode):
    """A module that is edited and reloaded runs its new code."""
    name = f"mine_edited_{task_mode[:4]}"
    for factor in range(1, 9):  # texts of the same length, within the same second
        module = edited(folder, name, f"def scaled(n):\n    return {factor} * n\n")
        calls = [dask.delayed(module.scaled)(n) for n in range(4)]
        found = dask.compute(*calls, scheduler=m.get, task_mode=task_mode)
        assert found == tuple(factor * n for n in range(4))


def test_indirectly_edited_module_runs_new_code(m, folder, task_mode):
    """A module behind another one that is edited runs its new code."""
    far, near = f"mine_far_{task_mode[:4]}", f"mine_near_{task_mode[:4]}"
    for cut in range(1, 5):
        edited(folder, near, f"CUT = {cut}\n")
        module = edited(folder, far, f"from {near} import CUT\ndef cut():\n    return CUT\n")
        assert dask.delayed(module.cut)().compute(scheduler=m.get, task_mode=task_mode) == cut


def test_reloaded_module_rereads_its_files(m, folder, task_mode):
    """A module that is reloaded reads its files again."""
    text = "import pathlib\nCUT = pathlib.Path(__file__).with_name('cut.txt').read_text()\ndef cut():\n    return CUT\n"
    for cut in ("one", "two", "six"):
        folder.joinpath("cut.txt").write_text(cut)
        module = edited(folder, "mine_reads", text)
        assert dask.delayed(module.cut)().compute(scheduler=m.get, task_mode=task_mode) == cut


def test_processes_of_old_code_end(m, folder):
    """Processes of the code before an edit end."""
    installed = set()
    for number in range(5):
        module = edited(folder, "mine_piled_up", f"def number():\n    return {number}\n")
        vertex = dask.delayed(module.number)()
        assert vertex.compute(scheduler=m.get, task_mode="function-calls") == number
        installed.add(scheduler_state(m, lambda scheduler: len(scheduler.state.libraries)))
    assert len(installed) == 1
    workers = scheduler_state(m, lambda scheduler: list(scheduler.state.workers.values()))
    assert [len(worker.libraries) for worker in workers] == [1]


def test_edit_during_computation_stops_nothing(m, folder, gate):
    """An edit while a computation runs stops neither it nor the next one."""
    options = {"scheduler": m.get, "task_mode": "function-calls", "lib_resources": {"cores": 1, "slots": 1}}
    module = edited(folder, "mine_meanwhile", "def number(*_):\n    return 1\n")
    held = dask.delayed(module.number)(dask.delayed(v.stop_at)(gate.port, "held"))
    with ThreadPoolExecutor(1) as threads:
        computing = threads.submit(held.compute, **options)
        gate.watch(computing)
        gate.wait_for(1)
        module = edited(folder, "mine_meanwhile", "def number(*_):\n    return 2\n")
        assert dask.delayed(module.number)().compute(**options) == 2
        gate.open()
        computing.result(PATIENCE_S)


def test_restart_gives_new_processes(m, task_mode):
    calls = [dask.delayed(os.getppid if task_mode == "tasks" else os.getpid, pure=False)() for _ in range(8)]
    before = set(dask.compute(*calls, scheduler=m.get, task_mode=task_mode))
    m.restart()
    after = set(dask.compute(*calls, scheduler=m.get, task_mode=task_mode))
    assert before
    assert after
    assert before.isdisjoint(after)


def test_restart_while_calls_run_loses_none(m, gate, task_mode):
    held = dask.delayed(v.stop_at)(gate.port, "held")
    last = dask.delayed(v.inc)(dask.delayed(lambda number, _held: number)(41, held))
    with ThreadPoolExecutor(1) as threads:
        computing = threads.submit(last.compute, scheduler=m.get, task_mode=task_mode)
        gate.watch(computing)
        gate.wait_for(1)
        m.restart()
        gate.open()
        assert computing.result(PATIENCE_S) == 42


@pytest.fixture
def library(m, folder):
    """A library whose functions are of a module of the user's, lead to it, or import it when they are called."""
    module = edited(folder, "mine_called", "def scaled(n):\n    return 0 * n\n")

    def through(n):
        return module.scaled(n)

    def late(n):
        import mine_called

        return mine_called.scaled(n)

    library = m.create_library_from_functions("calls", module.scaled, through, late, exec_mode="direct")
    library.set_function_slots(1)
    m.install_library(library)
    yield library
    m.remove_library("calls")


def called(m, name, n):
    task = FunctionCall("calls", name, n)
    m.submit(task)
    assert m.wait(PATIENCE_S) is task
    assert task.successful(), task.output
    return task.output


def test_library_calls_run_reloaded_code(m, folder, library):
    """Calls of a library run the new code of a module that is reloaded."""
    for factor in range(1, 4):
        edited(folder, "mine_called", f"def scaled(n):\n    return {factor} * n\n")
        assert [called(m, name, 7) for name in library.functions] == [7 * factor] * 3
    assert (
        len(
            scheduler_state(
                m, lambda scheduler: [n for n in scheduler.state.libraries if n.startswith("calls-")]
            )
        )
        == 1
    )


def test_library_is_reinstalled_after_reload_once(m, folder, library):
    """A library is installed again after a reload and stays that one."""
    edited(folder, "mine_called", "def scaled(n):\n    return 5 * n\n")
    m.install_library(library)
    assert [called(m, name, 7) for name in library.functions] == [35] * 3
    process = FunctionCall("calls", "scaled", 1)
    edited(folder, "mine_other", "NUMBER = 1\n")  # imported now, and again: no business of what runs already
    names = set(scheduler_state(m, lambda scheduler: list(scheduler.state.libraries)))
    importlib.import_module("mine_other")
    m.submit(process)
    m.wait(PATIENCE_S)
    assert names == set(scheduler_state(m, lambda scheduler: list(scheduler.state.libraries)))


def test_module_imported_anew_is_another(m, folder, library):
    """A module that is removed and imported again is another one."""
    del sys.modules["mine_called"]
    write(folder, "mine_called", "def scaled(n):\n    return 6 * n\n")
    assert called(m, "late", 7) == 42


def test_call_during_reload_returns(m, folder, gate):
    """A call that runs while its module is reloaded comes back."""
    module = edited(folder, "mine_waits", "def number(*_):\n    return 1\n")

    def held(port):
        v.stop_at(port, "held")
        return module.number()

    library = m.create_library_from_functions("held", held, module.number, exec_mode="direct")
    library.set_cores(1)
    library.set_function_slots(1)
    m.install_library(library)
    first = FunctionCall("held", "held", gate.port)
    m.submit(first)
    gate.wait_for(1)
    edited(folder, "mine_waits", "def number(*_):\n    return 2\n")
    second = FunctionCall("held", "number")
    m.submit(second)
    assert m.wait(PATIENCE_S) is second
    assert second.output == 2
    gate.open()
    assert m.wait(PATIENCE_S) is first
    assert first.output == 1
    m.remove_library("held")


@pytest.mark.parametrize(("named", "is_noted"), [(["vine_opening"], True), (["zipfile"], False)])
def test_damaged_file_reveals_preimported_modules(m, tmp_path, monkeypatch, named, is_noted):
    """A damaged file leads to the own modules that are imported before the fork."""
    (tmp_path / "vine_opening.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))

    def read():
        raise zipfile.BadZipFile("Bad CRC-32")

    with pytest.raises(zipfile.BadZipFile) as caught:
        dask.delayed(read)().compute(scheduler=m.get, task_mode="function-calls", import_modules=named)
    assert any("vine_opening" in text and "leave out" in text for text in caught.value.__notes__) is is_noted


WAITING = """
    import os, pathlib

    if os.environ["VINE_TEST_PROGRAM"] != str(os.getpid()):
        pathlib.Path(os.environ["VINE_TEST_GATE"]).read_text()


    def double(number):
        return 2 * number
"""
"""A module whose import waits everywhere but in the program, until somebody writes to a pipe."""


@pytest.fixture
def waiting(folder, tmp_path, monkeypatch):
    """Give a module whose import waits on workers, and the pipe that ends that."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    monkeypatch.setenv("VINE_TEST_GATE", str(gate))
    monkeypatch.setenv("VINE_TEST_PROGRAM", str(os.getpid()))
    monkeypatch.delitem(sys.modules, "vine_waiting", raising=False)
    return write(folder, "vine_waiting", WAITING), gate


def test_hanging_import_of_a_task_is_named(waiting, task_mode):
    module, gate = waiting
    with DaskVine.local(cores=1) as m, ThreadPoolExecutor(1) as threads:
        value = dask.delayed(module.double)(3, dask_key_name="doubled")
        computing = threads.submit(value.compute, scheduler=m.get, task_mode=task_mode)
        said = re.compile(
            r"doubled has been importing vine_waiting \(\S+/vine_waiting.py\) for more than \d+ s on worker 1 "
        )
        try:
            wait_until(lambda: said.match(m.stalled_reason), "the import to be named")
        finally:
            gate.write_text("go on")
        assert computing.result(PATIENCE_S) == 6
        wait_until(lambda: not m.stalled_reason, "the end of the warning")


@pytest.mark.parametrize("kind", ["task", "fork", "direct"])
def test_time_max_ends_a_hanging_import(waiting, kind):
    module, _gate = waiting
    with DaskVine.local(cores=1) as m:
        if kind == "task":
            task = PythonTask(module.double, 3)
        else:
            m.install_library(m.create_library_from_functions("lib", import_and_double, exec_mode=kind))
            task = FunctionCall("lib", "import_and_double", 3)
        task.set_time_max(1)
        m.submit(task)
        assert wait_for_task(m) is task
        assert isinstance(task.output, TaskFailed)
        assert "time_max of 1" in str(task.output)


def import_and_double(number):
    return importlib.import_module("vine_waiting").double(number)


def test_failing_import_shows_only_the_users_frames(m, folder, monkeypatch, task_mode):
    """Frames of the import system and of the worker are not the user's."""
    monkeypatch.setenv("VINE_TEST_PROGRAM", str(os.getpid()))
    text = "import os\nif os.environ['VINE_TEST_PROGRAM'] != str(os.getpid()):\n    1 / 0\n"
    folder.joinpath("vine_failing.py").write_text(text)
    importlib.invalidate_caches()

    def load():
        import vine_failing

        return vine_failing

    with pytest.raises(ZeroDivisionError) as caught:
        dask.delayed(load)().compute(
            scheduler=m.get, task_mode=task_mode, env_vars={"VINE_TEST_PROGRAM": "other"}
        )
    frames = traceback.extract_tb(caught.value.__traceback__)
    inner = [frame.filename for frame in frames[[frame.name for frame in frames].index("load") :]]
    assert inner[-1].endswith("vine_failing.py")
    assert not [name for name in inner if "vineworker" in name or "importlib" in name]


def backend():
    import matplotlib as mpl

    return mpl.get_backend()


def test_import_blocking_fork_server_is_named(tmp_path, monkeypatch):
    """An import that waits where tasks are forked is named."""
    pytest.importorskip("matplotlib", reason="is what is imported: pip install matplotlib")
    # a pipe: what is imported reads it, and waits for somebody who writes
    settings = tmp_path / "matplotlibrc"
    os.mkfifo(settings)
    monkeypatch.setenv("MATPLOTLIBRC", str(settings))
    with DaskVine.local(cores=1) as m, ThreadPoolExecutor(1) as threads:
        computing = threads.submit(dask.delayed(backend)().compute, scheduler=m.get)
        settings.write_text("backend: svg")
        assert computing.result(PATIENCE_S) == "svg"
        said = re.compile(
            r"the Python that forks tasks has been starting for more than \d+ s on worker 1 .*: "
            r"it imports what tasks need: line \d+ of \S+/matplotlib/__init__.py, in <module>"
        )
        wait_until(lambda: said.match(m.stalled_reason), "the import to be named")
        computing = threads.submit(dask.delayed(backend)().compute, scheduler=m.get)
        settings.write_text("backend: pdf")
        assert computing.result(PATIENCE_S) == "pdf"
        wait_until(lambda: not m.stalled_reason)
