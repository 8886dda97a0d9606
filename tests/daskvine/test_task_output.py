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


def test_what_a_vertex_writes_in_any_way_is_seen(m, options, capsys):
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


def test_what_a_vertex_says_before_it_raises_is_seen(m, options, capsys):
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


def test_the_filters_of_the_program_count_and_stop_nothing(m, options, capsys):
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


def test_only_the_end_is_shown_of_a_vertex_that_says_much(m, options, capsys):
    def talk():
        for n in range(100_000):
            print("talk", n)

    m.get({"x": (talk,)}, "x", **options)
    shown = capsys.readouterr().out
    assert len(shown) < 2 * output.MAX_TASK_CHARACTERS
    assert "left out" in shown.splitlines()[0]
    assert lines(shown)[-1] == "talk 99999"


def test_a_run_that_says_too_much_is_cut_and_says_so(m, options, capsys, monkeypatch):
    monkeypatch.setattr(output, "MAX_GRAPH_CHARACTERS", 100)
    graph = {("x", n): (say, n, "many words " * 10) for n in range(4)}
    m.get(graph, list(graph), **options)
    out, err = capsys.readouterr()
    assert out.count("many words") == 10
    assert "what 3 more vertices have printed is not shown" in err


def test_nothing_grows_on_the_disk_of_a_slot(m, options, task_mode, capsys):
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
        while m.wait(60):
            pass
        assert [call.std_output for call in calls] == [f"word-{n}\n" * 2 for n in range(3)]
    finally:
        m.remove_library("speaking")


def test_a_python_task_has_what_it_printed(m):
    task = PythonTask(speak, "word")
    m.submit(task)
    assert m.wait(60) is task
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


def test_it_appears_above_the_progress_bar_while_the_run_goes_on(tmp_path):
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


def test_in_a_notebook_it_appears_below_the_cell():
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    cells = [
        "from daskvine import DaskVine\nm = DaskVine.local(cores=1)",
        "m.get({'x': (print, 'from afar')}, 'x', task_mode='function-calls')",
        "m.close()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client.NotebookClient(notebook, timeout=120).execute()
    shown = [output["text"] for output in notebook.cells[1].outputs if output.get("name") == "stdout"]
    assert shown == ["[x] from afar\n"]


def test_a_slot_that_dies_leaves_its_last_words(m, task_mode):
    def die():
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)

    with pytest.raises(Exception, match="last words"):
        m.get({"x": (die,)}, "x", task_mode=task_mode, progress_disable=True)
