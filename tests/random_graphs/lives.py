"""Programs that end or are killed, and start again after an edit, with what their workers have kept.

`compute_lives` starts this module as a program, once for each life. A life computes some cases, compares each, and writes down what was
wrong; the last case of a life that is to die kills it when half of its vertices are done.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from daskvine import DaskVine
from tests.harness.processes import PATIENCE_S, call_after_each_task, is_alive, wait_until
from tests.random_graphs.cases import Case, make_case
from tests.random_graphs.program import Program
from tests.random_graphs.runner import Runs, home_in

LIVES = 3
A_LIFE_S = 300.0
"""After so long it hangs."""


def compute_lives(folder: Path, seed: int, cases: int, without: frozenset[str]) -> list[str]:
    """Compute cases in each of some lives of a program; give what was wrong.

    Parameters
    ----------
    folder
        Where the program, its workers and its journals have their folders.
    seed, cases
        The first case, and how many.
    without
        Kinds and edits that they shall not have.
    """
    home = folder / "home"
    home.mkdir()
    wrong: list[str] = []
    for life in range(LIVES):
        dies = life < LIVES - 1
        command = [
            sys.executable,
            "-m",
            "tests.random_graphs.lives",
            str(folder),
            str(seed),
            str(cases),
            str(life),
        ]
        paths = os.pathsep.join([*(path for path in sys.path if path), os.getcwd()])
        done = subprocess.run(
            [*command, *(["--dies"] if dies else []), *(f"--without={name}" for name in sorted(without))],
            env={**os.environ, "PYTHONPATH": paths, "TMPDIR": str(folder)},
            capture_output=True,
            text=True,
            check=False,
            timeout=A_LIFE_S,
        )
        told = json.loads((folder / f"life-{life}.json").read_text())
        wait_until(lambda: not any(map(is_alive, told["workers"])), "the workers of a life to end")  # noqa: B023
        wrong += told["wrong"]
        if done.returncode not in ((0, -signal.SIGKILL) if dies else (0,)):
            wrong.append(
                f"life {life} of seeds {seed} to {seed + cases - 1} has ended with {done.returncode}: {done.stderr[-3000:]}"
            )
            break
    return wrong


class Life:
    """One life of the program.

    Parameters
    ----------
    m
        Its vine.
    folder, number
        Where it writes down what was wrong, and how many were before.
    """

    def __init__(self, m: Any, folder: Path, number: int) -> None:
        self._m, self._number = m, number
        self._path = folder / f"life-{number}.json"
        self._told: dict[str, list[Any]] = {
            "workers": [process.pid for process in m.factory.processes],
            "wrong": [],
        }
        self._write()

    def compute(self, case: Case, home: Path) -> None:
        """Compute a case after the edits before this life."""
        program = Program(case, home, case.edits[: self._number])
        program.start()
        reuse = (True, False, None)[case.seed % 3]
        when = f"in life {self._number}, with reuse={reuse}, after {case.edits[: self._number]}"
        try:
            Runs(self._m, program, reuse=reuse, life=self._number).compute(when)
        except Exception as error:  # noqa: BLE001 - any is a finding
            self._told["wrong"].append(f"{case}\n  {type(error).__name__}: {str(error)[:1000]}")
            self._write()

    def _write(self) -> None:
        self._path.write_text(json.dumps(self._told))

    def die_after(self, count: int) -> None:
        """Kill this process when so many vertices more are done."""
        left = itertools.count(count - 1, -1)
        call_after_each_task(self._m, lambda _mind: next(left) or os.kill(os.getpid(), signal.SIGKILL))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("seed", type=int)
@click.argument("cases", type=int)
@click.argument("number", type=int)
@click.option("--dies", is_flag=True)
@click.option("--without", multiple=True)
def main(folder: Path, seed: int, cases: int, number: int, dies: bool, without: tuple[str, ...]) -> None:
    """Live once."""
    options = {"workspace": folder / "kept", "run_info_path": folder / "info", "resume": True}
    with (
        home_in(folder / "home") as home,
        DaskVine.local(workers=1, cores=2, memory_mb=2000, disk_mb=2000, **options) as m,
    ):
        m.wait_for_workers(1, PATIENCE_S)
        life = Life(m, folder, number)
        for place in range(seed, seed + cases):
            case = make_case(place, frozenset(without))
            if dies and place == seed + cases - 1:
                life.die_after(max(1, len(case.vertices) // 2))
            life.compute(case, home)


if __name__ == "__main__":
    main()
