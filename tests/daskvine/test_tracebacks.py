"""Tracebacks of the user's own functions lead to what the user has written, as dask's own schedulers show it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap

import pytest

from tests.harness.processes import PATIENCE_S

ANALYSIS = """
def select(pt, cut):
    return [x for x in pt if x / cut > 1]

def analyse(pt):
    kept = [1, 2]
    return len(kept) + len(select(pt, 0)) + 1
"""
COMPUTE = "dask.delayed(analyse)([1, 2]).compute(scheduler={})"
WAYS = [
    "'synchronous'",
    "m.get, progress_disable=True",
    "m.get, progress_disable=True, task_mode='function-calls'",
]


def end_of(text):
    """What a traceback shows of the user's own functions, without the notes."""
    assert "in analyse" in text, text
    lines = text[text.index(", in analyse") :].splitlines()
    return lines[: next(n for n, line in enumerate(lines) if line.startswith("ZeroDivisionError")) + 1]


def test_in_a_script(run_script):
    done = run_script(
        f"""
import sys, traceback
import dask
from daskvine import DaskVine
{ANALYSIS}
def attempt(compute):
    try:
        compute()
    except ZeroDivisionError:
        traceback.print_exc(file=sys.stdout)
        print("=====")

if __name__ == "__main__":
    with DaskVine.local(cores=1) as m:
        for way in {WAYS!r}:
            attempt(lambda: eval({COMPUTE!r}.format(way)))
"""
    )
    usual, *ours = map(end_of, done.stdout.split("=====")[:3])
    assert ours == [usual, usual]
    assert "in analyse" in usual[0]
    assert "return len(kept) + len(select(pt, 0)) + 1" in usual[1]
    assert "script.py" in done.stdout.split("=====")[1]


def test_in_the_cells_of_a_notebook(run_script):
    pytest.importorskip("IPython", reason="notebooks need it: pip install ipykernel")
    done = run_script(
        f"""
import sys, traceback
from IPython.core.interactiveshell import InteractiveShell

if __name__ == "__main__":
    shell = InteractiveShell.instance()
    for cell in ["import dask\\nfrom daskvine import DaskVine", {ANALYSIS!r}, "m = DaskVine.local(cores=1)"]:
        shell.run_cell(cell).raise_error()
    for way in {WAYS!r}:
        error = shell.run_cell("try:\\n    " + {COMPUTE!r}.format(way) + "\\nexcept Exception as e:\\n    error = e").raise_error()
        print("".join(traceback.format_exception(shell.user_ns["error"])), "=====", sep="\\n")
    shell.user_ns["error"].__notes__.clear()
    shell.InteractiveTB.set_mode("Context")
    print("\\n".join(shell.InteractiveTB.structured_traceback(ZeroDivisionError, error := shell.user_ns["error"], error.__traceback__)))
    shell.run_cell("m.close()").raise_error()
"""
    )
    assert done.returncode == 0, done.stderr
    usual, *ours = map(end_of, done.stdout.split("=====")[:3])
    assert ours == [usual, usual]
    assert "return len(kept) + len(select(pt, 0)) + 1" in usual[1]
    coloured = done.stdout.split("=====")[3]  # as IPython itself shows it
    assert "return len(kept) + len(select(pt, 0)) + 1" in re.sub(r"\x1b\[[0-9;]*m", "", coloured)


def test_at_the_prompt_of_the_interpreter(tmp_path):
    lines = ["import dask, sys, traceback", "from daskvine import DaskVine", "m = DaskVine.local(cores=1)"]
    lines += [*ANALYSIS.strip().replace("\n\n", "\n\n\n").splitlines(), ""]
    for way in WAYS:
        lines += [
            "try:",
            f"    {COMPUTE.format(way)}",
            "except Exception:",
            "    traceback.print_exc(file=sys.stdout)",
            "",
            "print('=====')",
        ]
    lines += ["m.close()", "exit()", ""]
    done = subprocess.run(
        [sys.executable, "-i", "-q"],
        input=textwrap.dedent("\n".join(lines)),
        capture_output=True,
        check=False,
        cwd=tmp_path,
        # HOME is where the interpreter writes its history
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        },
        text=True,
        timeout=PATIENCE_S,
    )
    usual, *ours = map(end_of, done.stdout.split("=====")[:3])
    assert ours == [usual, usual]
    assert '"<stdin' in done.stdout.split("=====")[2]
