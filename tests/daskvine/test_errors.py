"""What goes wrong in a vertex, and what the user sees of it."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import traceback

import dask
import pytest

from daskvine import DaskVine
from tests.daskvine import sample_graphs as v
from tests.harness.processes import interrupt_when, scheduler_state
from vinecore.errors import LibraryError, TaskCrashed

CALLS = {"task_mode": "function-calls"}


def notes_of(error):
    return "\n".join(error.__notes__)


# ---- exceptions


def test_exception_is_raised_once_as_itself(m, task_mode, tmp_path):
    """An exception is raised as itself and once."""

    def fail():
        v.write_down(tmp_path / "log", "ran")
        raise LookupError("no such branch", "Muon_pt")

    with pytest.raises(LookupError) as caught:
        m.get({"x": (fail,)}, "x", task_mode=task_mode)
    assert type(caught.value) is LookupError
    assert caught.value.args == ("no such branch", "Muon_pt")
    assert (tmp_path / "log").read_text() == "ran\n"


def test_exception_names_vertex_and_place(m, task_mode):
    """An exception says which vertex failed and where."""
    with pytest.raises(ZeroDivisionError) as caught:
        m.get({("part", 3): (v.divide, 1)}, ("part", 3), task_mode=task_mode)
    host = m.summarize_workers()[0]["host"]
    assert f"vertex ('part', 3) failed on {host}, attempt 1" in notes_of(caught.value)


def test_traceback_leads_to_users_line(m, task_mode):
    """The traceback leads to the line in the users code."""
    with pytest.raises(ZeroDivisionError) as caught:
        m.get({"x": (v.in_between, 1)}, "x", task_mode=task_mode)
    lines = "".join(traceback.format_exception(caught.value))
    assert re.search(r'File ".*sample_graphs\.py", line \d+, in in_between\n    return divide\(x\)', lines)
    assert re.search(r'File ".*sample_graphs\.py", line \d+, in divide\n    return x / 0', lines)
    assert "vertex 'x' failed" in lines


def test_traceback_has_no_worker_frames(m, task_mode):
    """The traceback has no frames of the worker."""
    with pytest.raises(ZeroDivisionError) as caught:
        m.get({"x": (v.in_between, 1)}, "x", task_mode=task_mode)
    files = [os.path.basename(frame.filename) for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert files[-2:] == ["sample_graphs.py", "sample_graphs.py"]
    assert {"slot.py", "forked_calls.py", "task_functions.py"}.isdisjoint(files)


LOOKUPS = {
    "a module": "import no_such_module",
    "a variable": "import os; os.environ['NO_SUCH_VARIABLE']",
    "a file": "open('/no/such/file')",
    "a folder": "import os; os.chdir('/no/such/folder')",
    "an argument": "import os; os.listdir(b'/no/such/folder')",
}


@pytest.mark.parametrize("reuse", [None, True])
@pytest.mark.parametrize("text", LOOKUPS.values(), ids=LOOKUPS)
def test_last_frame_is_the_lookup_that_fails(m, task_mode, text, reuse):
    """The worker watches imports, the environment and files, and its frames would come last."""
    f = v.by_value(f"def f(x):\n    {text}")
    frames = []
    for get, options in ((dask.get, {}), (m.get, {"task_mode": task_mode, "reuse": reuse})):
        with pytest.raises((ImportError, KeyError, OSError)) as caught:
            get({"x": (f, 1)}, "x", **options)
        frames.append([frame.name for frame in traceback.extract_tb(caught.value.__traceback__)])
    expected, found = frames
    last = expected[expected.index("f") :]
    assert found[-len(last) :] == last


def test_the_cause_is_kept(m, task_mode):
    with pytest.raises(OSError, match="bad file") as caught:
        m.get({"x": (v.reread, "/store/1.root")}, "x", task_mode=task_mode)
    assert (caught.value.errno, caught.value.filename) == (5, "/store/1.root")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    lines = "".join(traceback.format_exception(caught.value))
    assert "The above exception was the direct cause" in lines
    assert "in divide" in lines


def test_the_context_is_kept(m):
    def fail():
        try:
            v.divide(1)
        except ZeroDivisionError:
            raise KeyError("while handling")  # noqa: B904

    with pytest.raises(KeyError) as caught:
        m.get({"x": (fail,)}, "x", **CALLS)
    assert isinstance(caught.value.__context__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("make", "attributes"),
    [
        (lambda: v.TwoArguments(355100, 12), {"run": 355100, "lumi": 12}),
        (lambda: v.KeywordOnly(path="/x.root"), {"path": "/x.root"}),
        (lambda: SyntaxError("bad cut", ("cuts.txt", 3, 7, "pt >")), {"msg": "bad cut", "lineno": 3}),
        (lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "no text"), {"reason": "no text", "object": b"x"}),
        (lambda: FileNotFoundError(2, "no file", "x.root"), {"errno": 2, "filename": "x.root"}),
        (lambda: ImportError("no module", name="uproot"), {"name": "uproot"}),
        (lambda: KeyError("Muon"), {"args": ("Muon",)}),
    ],
    ids=[
        "two arguments",
        "keyword only",
        "SyntaxError",
        "UnicodeDecodeError",
        "OSError",
        "ImportError",
        "KeyError",
    ],
)
def test_exceptions_with_constructors_of_their_own(m, make, attributes):
    def fail():
        raise make()

    expected = make()
    with pytest.raises(type(expected), match=re.escape(str(expected))) as caught:
        m.get({"x": (fail,)}, "x", **CALLS)
    assert {name: getattr(caught.value, name) for name in attributes} == attributes


def test_an_exception_class_that_cannot_be_imported(m, task_mode):
    class SelectionError(ValueError):
        pass

    def fail():
        raise SelectionError("no muons")

    with pytest.raises(ValueError, match="no muons") as caught:
        m.get({"x": (fail,)}, "x", task_mode=task_mode)
    assert type(caught.value).__name__ == "SelectionError"


def test_unpicklable_exception_content_is_described(m, task_mode):
    """What an exception holds and cannot be pickled is told in words."""

    def fail():
        error = ValueError("holds a lock")
        error.lock, error.file = threading.Lock(), "x.root"
        raise error

    with pytest.raises(ValueError, match="holds a lock") as caught:
        m.get({"x": (fail,)}, "x", task_mode=task_mode)
    assert type(caught.value) is ValueError
    assert caught.value.file == "x.root"
    assert repr(caught.value.lock).startswith("<unlocked _thread.lock")
    assert "its attribute 'lock', a lock, cannot be pickled" in notes_of(caught.value)
    assert "vertex 'x' failed" in notes_of(caught.value)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are newer")
def test_exception_groups(m):
    def fail():
        raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])  # noqa: F821

    with pytest.raises(ExceptionGroup, match="several") as caught:  # noqa: F821
        m.get({"x": (fail,)}, "x", **CALLS)
    assert [type(error) for error in caught.value.exceptions] == [ValueError, KeyError]


def test_notes_of_the_user_are_kept(m):
    def fail():
        error = ValueError("wrong")
        error.__notes__ = ["in file 7"]
        raise error

    with pytest.raises(ValueError, match="wrong") as caught:
        m.get({"x": (fail,)}, "x", **CALLS)
    assert caught.value.__notes__[0] == "in file 7"


def test_system_exit_is_ordinary_exception(m, task_mode, caplog):
    """System exit is an exception as any other."""
    with pytest.raises(SystemExit) as caught:
        m.get({"x": (sys.exit, 3)}, "x", task_mode=task_mode)
    assert caught.value.code == 3
    assert "vertex 'x' raised SystemExit(3), which ends this program" in caplog.text
    assert m.get({"x": (v.inc, 1)}, "x", task_mode=task_mode) == 2


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, StopIteration, RecursionError])
def test_base_exception_returns_once_as_itself(m, task_mode, tmp_path, kind):
    """What is no common exception comes back once and as itself."""

    def fail():
        v.write_down(tmp_path / "log", "ran")
        raise kind("said so")

    with pytest.raises(kind) as caught:
        m.get({"x": (fail,)}, "x", task_mode=task_mode)
    assert (type(caught.value), caught.value.args) == (kind, ("said so",))
    assert ", in fail" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert (tmp_path / "log").read_text() == "ran\n"


def test_a_recursion_without_end_in_users_code(m, task_mode):
    def deeper(n):
        return deeper(n + 1)

    with pytest.raises(RecursionError) as caught:
        m.get({"x": (deeper, 0)}, "x", task_mode=task_mode)
    assert type(caught.value) is RecursionError
    assert "Previous line repeated" in "".join(traceback.format_exception(caught.value))


def test_an_exception_whose_text_raises(m, task_mode):
    class Speechless(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    def fail():
        raise Speechless(7)

    with pytest.raises(Speechless) as caught:
        m.get({"x": (fail,)}, "x", task_mode=task_mode)
    assert caught.value.args == (7,)
    assert "vertex 'x' failed" in notes_of(caught.value)


def test_exception_class_of_program_is_caught(m, task_mode):
    """A class of the program is caught by itself."""

    class SelectionError(Exception):
        def __init__(self, cut, events):
            super().__init__(f"{cut} leaves {events} events")
            self.cut, self.events = cut, events

    def fail():
        raise SelectionError("pt > 30", 0) from KeyError("pt")

    with pytest.raises(SelectionError, match="pt > 30 leaves 0 events") as caught:
        m.get({"x": (fail,)}, "x", task_mode=task_mode)
    assert (caught.value.cut, caught.value.events) == ("pt > 30", 0)
    assert type(caught.value.__cause__) is KeyError


def test_an_error_while_arguments_are_loaded(m, task_mode):
    class Picky:
        def __reduce__(self):
            return v.divide, (1,)

    graph = {"x": (Picky,), "y": (v.inc, "x")}
    with pytest.raises(ZeroDivisionError) as caught:
        m.get(graph, "y", task_mode=task_mode)
    assert "vertex 'y' failed" in notes_of(caught.value)


def test_error_while_loading_result(m, task_mode):
    """An error while a result is loaded here."""
    here = os.getpid()

    class OnlyThere:
        def __reduce__(self):
            return v.only_elsewhere, (here,)

    with pytest.raises(RuntimeError, match="not in this process") as caught:
        m.get({"x": (OnlyThere,)}, "x", task_mode=task_mode)
    assert "'x'" in notes_of(caught.value)


def test_a_failure_cancels_the_rest(m, gate, meanwhile, tmp_path):
    graph = {"wrong": (v.divide, 1), "slow": (v.stop_at, gate.port, "here")}
    graph |= {("after", n): (v.write_down, tmp_path / "log", "ran", 0, "slow") for n in range(3)}
    graph["all"] = (max, "wrong", *[("after", n) for n in range(3)])
    with pytest.raises(ZeroDivisionError):
        m.get(graph, "all")
    gate.open()
    assert m.get({"x": (v.inc, 1)}, "x") == 2
    assert not (tmp_path / "log").exists()


def test_a_manager_goes_on_after_many_failures(m, task_mode):
    for _ in range(8):
        with pytest.raises(ZeroDivisionError):
            m.get(
                {("x", n): (v.divide, n) for n in range(5)}, [("x", n) for n in range(5)], task_mode=task_mode
            )
    assert m.get({"x": (v.inc, 1)}, "x", task_mode=task_mode) == 2


def test_concurrent_failures_reach_their_callers(m):
    """Failures at the same time reach who computes."""

    def compute(number):
        def fail():
            raise ValueError(number)

        try:
            m.get({"x": (fail,)}, "x", **CALLS, progress_disable=True)
        except ValueError as error:
            return error.args

    found = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: compute(n)})) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: (n,) for n in range(6)}


# ---- crashes


def test_vertex_ending_its_process_fails(m, task_mode):
    """A vertex that ends its process fails with the evidence."""

    def die():
        print("last words", file=sys.stderr, flush=True)
        os._exit(7)

    with pytest.raises(TaskCrashed) as caught:
        m.get({"x": (die,)}, "x", task_mode=task_mode, retries=1)
    text = str(caught.value)
    assert text.startswith("vertex 'x' failed")
    assert "tried 2 times" in text
    assert len(re.findall("its process exited with code 7 on worker 1", text)) == 2
    assert "last words" in text


def test_killed_vertex_fails_with_signal(m, task_mode):
    """A vertex that is killed fails with the signal."""
    with pytest.raises(TaskCrashed, match="killed by signal 11"):
        m.get({"x": (lambda: os.kill(os.getpid(), signal.SIGSEGV),)}, "x", task_mode=task_mode, retries=0)


def test_only_the_vertex_that_dies_is_blamed(m):
    def die(n):
        if n == 105:
            os._exit(1)
        return n

    graph = {("x", n): (die, 100 + n) for n in range(10)}
    options = {**CALLS, "lib_resources": {"cores": 2, "slots": 1}, "retries": 3}
    with pytest.raises(TaskCrashed, match=r"vertex \('x', 5\) failed.*tried 4 times"):
        m.get(graph, list(graph), **options)


def test_calls_behind_dead_one_run_elsewhere(m, tmp_path):
    """Calls that wait behind one that dies are run elsewhere."""

    def die_twice(n):
        if n == 105 and (
            v.write_down(tmp_path / "log", "died") or len((tmp_path / "log").read_text().split()) < 3
        ):
            os._exit(1)
        return n

    graph = {("x", n): (die_twice, 100 + n) for n in range(50)}
    options = {**CALLS, "lib_resources": {"cores": 2, "slots": 1}, "retries": 2}
    assert m.get(graph, list(graph), **options) == tuple(range(100, 150))


def test_the_library_survives_a_slot_that_dies(m):
    options = {**CALLS, "lib_resources": {"cores": 2, "slots": 2}}
    before = m.get({"x": (v.parent,)}, "x", **options)
    with pytest.raises(TaskCrashed):
        m.get({"x": (lambda: os._exit(1),)}, "x", **options, retries=0)
    assert m.get({"x": (v.parent,)}, "x", **options) == before


# ---- libraries that do not start


@pytest.mark.parametrize("name", ["no_such_module_anywhere", "os.no_such_part"])
def test_module_missing_on_worker_is_named(m, name):
    """A module that a worker does not have is named with the fix."""
    with pytest.raises(ModuleNotFoundError, match=name) as caught:
        m.get({"x": (v.inc, 1)}, "x", **CALLS, import_modules=[name])
    assert "install it there, ship environment='my-env.tar.gz', or take it out of import_modules" in notes_of(
        caught.value
    )
    assert m.get({"x": (v.inc, 1)}, "x", **CALLS) == 2


def test_module_raising_at_import(m):
    """A module that raises when it is imported."""
    files = {m.declare_buffer("raise ValueError('wrong machine')\n"): "raises_at_import.py"}
    for _ in range(2):  # the second time it fails as clearly as the first
        with pytest.raises(ValueError, match="wrong machine") as caught:
            m.get({"x": (v.inc, 1)}, "x", **CALLS, import_modules=["raises_at_import"], extra_files=files)
        assert "library" in notes_of(caught.value)


def test_module_ending_process_at_import(m):
    """A module that ends the process when it is imported."""
    files = {m.declare_buffer("import os\nos._exit(9)\n"): "exits_at_import.py"}
    with pytest.raises(LibraryError, match="ended with code 9 while it imported exits_at_import") as caught:
        m.get({"x": (v.inc, 1)}, "x", **CALLS, import_modules=["exits_at_import"], extra_files=files)
    assert "os._exit" in str(caught.value)


def test_needed_module_missing_on_worker(m, task_mode):
    """A module that a vertex needs and a worker does not have."""

    def use():
        import no_such_module_anywhere

        return no_such_module_anywhere

    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere") as caught:
        m.get({"x": (use,)}, "x", task_mode=task_mode)
    assert "vertex 'x' failed" in notes_of(caught.value)


# ---- Ctrl-C


@pytest.mark.parametrize(
    "options", [{}, CALLS, {"max_pending": 1}], ids=["tasks", "function-calls", "max_pending"]
)
def test_an_interrupt_cancels_what_is_computed(m, gate, options):
    def interrupt():
        gate.wait_for(1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    graph = {("x", n): (v.stop_at, gate.port, str(n)) for n in range(4)}
    with pytest.raises(KeyboardInterrupt):
        m.get(graph, list(graph), **options)
    assert scheduler_state(
        m, lambda scheduler: (list(scheduler.state.tasks), [run for run in scheduler.state.graphs if run])
    ) == ([], [])
    assert m.get({"x": (v.inc, 1)}, "x", **options) == 2  # though the gate is still closed


def test_terminal_interrupt_reaches_script_only(tmp_path, run_script):
    """An interrupt in a terminal reaches the script only."""
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    done = run_script(
        """
        import os, signal, sys, threading
        from daskvine import DaskVine

        def interrupt(fifo):
            open(fifo, "w").close()
            os.killpg(0, signal.SIGINT)  # as a terminal sends it: to all processes in the foreground

        def block(fifo):
            open(fifo).read()
            signal.pause()

        if __name__ == "__main__":
            with DaskVine.local(cores=1) as m:
                threading.Thread(target=interrupt, args=sys.argv[1:], daemon=True).start()
                try:
                    m.get({"a": (block, sys.argv[1])}, "a", task_mode="function-calls")
                except KeyboardInterrupt:
                    print("interrupted")
                print(m.get({"a": (abs, -5)}, "a", task_mode="function-calls"), len(m.summarize_workers()))
        """,
        fifo,
    )
    assert (done.stdout, done.returncode) == ("interrupted\n5 1\n", 0), done.stderr


def test_an_interrupt_while_nothing_is_connected():
    with DaskVine(port=0) as m:
        with (
            pytest.raises(KeyboardInterrupt),
            interrupt_when(lambda: scheduler_state(m, lambda scheduler: list(scheduler.state.tasks))),
        ):
            dask.delayed(v.inc)(1).compute(scheduler=m.get, progress_disable=True)
        assert scheduler_state(m, lambda scheduler: list(scheduler.state.tasks)) == []
