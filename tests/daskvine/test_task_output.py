"""What vertices print, log and warn is seen where the program is: as if they had run there, with the key of the vertex, and not without end."""

from __future__ import annotations

import ctypes
import logging
import os
import pty
import subprocess
import sys
import warnings

import pytest

from daskvine import task_output as output
from tests.harness.processes import PATIENCE_S
from vinecore import FunctionCall, PythonTask


def say(x, text="said"):
    print(f"{text} {x}")
    return x


def say_in_all_ways():
    print("by print")
    os.write(1, b"by the descriptor\n")
    subprocess.run(["echo", "by a subprocess"], check=True)
    ctypes.CDLL(None).puts(b"by C")
    sys.stdout.write("without an end of line")
    print("an error", file=sys.stderr)
    logging.getLogger("analysis").warning("a log")
    logging.getLogger("analysis").info("a detail")


def warn(x):
    warnings.warn("take care", RuntimeWarning, stacklevel=1)
    return x


@pytest.fixture
def options(m, task_mode):
    return {"task_mode": task_mode, "progress_disable": True}


def lines(text, key="x"):
    return [line.removeprefix(f"[{key}] ") for line in text.splitlines() if line.startswith(f"[{key}] ")]


def test_all_output_of_vertex_is_seen(m, options, capsys):
    """What a vertex writes in any way is seen."""
    m.get({"x": (say_in_all_ways,)}, "x", **options)
    out, err = capsys.readouterr()
    ways = ["by print", "by the descriptor", "by a subprocess", "by C", "without an end of line"]
    assert sorted(lines(out)) == sorted(ways)
    assert lines(err) == ["an error", "a log"]


def test_what_each_vertex_says_is_its_own(m, options, capsys):
    graph = {("x", n): (say, n) for n in range(5)}
    m.get(graph, list(graph), **options)
    out = capsys.readouterr().out
    for n in range(5):
        assert lines(out, f"('x', {n})") == [f"said {n}"]
    m.get({"x": (abs, 1)}, "x", **options)
    assert capsys.readouterr().out == ""


def test_output_before_exception_is_seen(m, options, capsys):
    """What a vertex says before it raises is seen."""

    def complain():
        print("before")
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - it has no words
        m.get({"x": (complain,)}, "x", **options)
    assert lines(capsys.readouterr().out) == ["before"]


def test_a_warning_is_one_of_the_program(m, options):
    graph = {("x", n): (warn, n) for n in range(4)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        m.get(graph, list(graph), **options)
    assert [w.category for w in caught] == [RuntimeWarning]
    assert str(caught[0].message).startswith("take care (in vertex ('x', ")
    assert caught[0].filename == __file__


def test_warning_filters_apply_and_stop_nothing(m, options, capsys):
    """The filters of the program count and stop nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert m.get({"x": (warn, 1), "y": (abs, "x")}, "y", **options) == 1
    assert "take care" not in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert m.get({"x": (warn, 2)}, "x", **options) == 2


def test_it_can_be_switched_off(m, options, capsys):
    m.get({"x": (say, 1)}, "x", **options, show_output=False)
    assert capsys.readouterr().out == ""


def test_only_end_of_long_output_is_shown(m, options, capsys):
    """Only the end is shown of a vertex that says much."""

    def talk():
        for n in range(100_000):
            print("talk", n)

    m.get({"x": (talk,)}, "x", **options)
    shown = capsys.readouterr().out
    assert len(shown) < 2 * output.MAX_TASK_CHARACTERS
    assert "left out" in shown.splitlines()[0]
    assert lines(shown)[-1] == "talk 99999"


def test_output_of_run_is_cut_with_notice(m, options, capsys, monkeypatch):
    """A run that says too much is cut and says so."""
    monkeypatch.setattr(output, "MAX_GRAPH_CHARACTERS", 100)
    graph = {("x", n): (say, n, "many words " * 10) for n in range(4)}
    m.get(graph, list(graph), **options)
    out, err = capsys.readouterr()
    assert out.count("many words") == 10
    assert "what 3 more vertices have printed is not shown" in err


def test_output_does_not_grow_slots_disk(m, options, task_mode, capsys):
    """Nothing grows on the disk of a slot."""

    def look():
        print("word" * 1000)
        sys.stdout.flush()
        return os.fstat(1).st_size

    graph = {("x", n): (look,) for n in range(10)}
    assert max(m.get(graph, list(graph), **options)) < 5000
    capsys.readouterr()


def speak(word):
    print(word)
    print(word, file=sys.stderr)
    return word


@pytest.mark.parametrize("exec_mode", ["fork", "direct"])
def test_a_function_call_has_what_it_printed(m, exec_mode):
    library = m.create_library_from_functions("speaking", speak, exec_mode=exec_mode)
    m.install_library(library)
    try:
        calls = [FunctionCall("speaking", "speak", f"word-{n}") for n in range(3)]
        for call in calls:
            m.submit(call)
        while m.wait(PATIENCE_S):
            pass
        assert [call.std_output for call in calls] == [f"word-{n}\n" * 2 for n in range(3)]
    finally:
        m.remove_library("speaking")


def test_a_python_task_has_what_it_printed(m):
    task = PythonTask(speak, "word")
    m.submit(task)
    assert m.wait(PATIENCE_S) is task
    assert task.std_output == "word\nword\n"


PROGRAM = """
import os, sys, time
from daskvine import DaskVine

def say():
    print("a whole line")

def wait(_said, flag):
    while not os.path.exists(flag):
        time.sleep(0.005)

with DaskVine.local(cores=1) as m:
    m.get({"x": (say,), "y": (wait, "x", sys.argv[1])}, "y", task_mode="function-calls")
"""


def test_output_appears_above_progress_bar(tmp_path):
    """It appears above the progress bar while the run goes on."""
    ours, theirs = pty.openpty()
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "TERM": "xterm"}
    seen = b""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "flag")], stdin=theirs, stdout=theirs, stderr=theirs, env=variables
    ) as program:  # fmt: skip
        os.close(theirs)
        while b"a whole line" not in seen or b"1/2" not in seen:
            seen += os.read(ours, 4096)
        (tmp_path / "flag").touch()
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # all have closed it
                break
            seen += data
            if not data:
                break
    os.close(ours)
    assert program.returncode == 0
    assert b"[x] a whole line\r\n" in seen
    assert b"2/2" in seen


def test_output_appears_below_notebook_cell():
    """In a notebook it appears below the cell."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    cells = [
        "from daskvine import DaskVine\nm = DaskVine.local(cores=1)",
        "m.get({'x': (print, 'from afar')}, 'x', task_mode='function-calls')",
        "m.close()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client.NotebookClient(notebook, timeout=PATIENCE_S).execute()
    shown = [output["text"] for output in notebook.cells[1].outputs if output.get("name") == "stdout"]
    assert shown == ["[x] from afar\n"]


def test_dying_slot_leaves_last_output(m, task_mode):
    """A slot that dies leaves its last words."""

    def die():
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)

    with pytest.raises(Exception, match="last words"):
        m.get({"x": (die,)}, "x", task_mode=task_mode, progress_disable=True)
