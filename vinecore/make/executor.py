"""Runs rules as tasks of a manager, with a factory of its own if it has one."""

from __future__ import annotations

import os
import queue
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vinecore.make.placement import Placement
from vinecore.make.rules import Rule
from vinecore.manager.files import File
from vinecore.manager.manager import Manager
from vinecore.manager.tasks import Task
from vinecore.protocol.trees import remove_tree


class FinishedRule(NamedTuple):
    """A rule that has ended, with its task; without a task the executor has failed."""

    number: int
    task: Task | None
    problem: str = ""


class RuleExecutor:
    """A manager for the rules that run in one way: on this machine, or with the same batch options.

    Parameters
    ----------
    folder : str
        The absolute folder to which paths are relative.
    manager : Manager
        The manager; the executor closes it.
    factory : object or None
        The started factory that brings workers, if there is one; the executor stops it.
    finished : queue.SimpleQueue
        The queue for `FinishedRule`.
    default_cores : int or None
        The cores of a rule that asks for no resources; None for a whole worker.
    """

    def __init__(
        self,
        folder: str,
        manager: Manager,
        factory: Any,
        finished: queue.SimpleQueue[FinishedRule],
        default_cores: int | None,
    ) -> None:
        self._folder, self.manager, self._factory = folder, manager, factory
        self._finished, self._default_cores = finished, default_cores
        self._files: dict[str, File] = {}
        self._numbers: dict[int, int] = {}
        self._submitted = threading.Semaphore(0)
        self._closing = False
        self._thread = threading.Thread(target=self._collect, name="vine-make", daemon=True)
        self._thread.start()

    def submit(self, number: int, rule: Rule, placement: Placement) -> None:
        """Submit a rule whose sources exist.

        Older files at the paths of its targets are removed before, so that a target that exists
        is complete. A folder stays, because it may hold files of the user.

        Parameters
        ----------
        number : int
            The number of the rule, for `FinishedRule`.
        rule : Rule
            The rule.
        placement : Placement
            The places of its files.

        Raises
        ------
        OSError
            A file cannot be read, or a folder cannot be made.
        ValueError
            The engine refuses the rule.
        """
        task = Task(self._command(rule, placement))
        for path, name in placement.inputs:
            task.add_input(self._declare(path), name)
        for path in [file.path for file in rule.targets]:
            place = os.path.join(self._folder, path)
            if not os.path.isdir(place):
                remove_tree(place)
            os.makedirs(os.path.dirname(place), exist_ok=True)
        for path, name in placement.outputs:
            task.add_output(self._declare(path), name, success_only=True)
        self._set_resources(task, rule)
        task.set_category(rule.category)
        task.set_tag(rule.name)
        for variable, value in rule.variables.items():
            task.set_env_var(variable, value)
        self._numbers[self.manager.submit(task)] = number
        self._submitted.release()

    def _command(self, rule: Rule, placement: Placement) -> str:
        if placement.runs_in_folder:
            return f"cd {shlex.quote(self._folder)} || exit 126\n{rule.command}"
        folders = sorted({os.path.dirname(name) for _, name in placement.outputs} - {""})
        made = f"mkdir -p {shlex.join(folders)} || exit 126\n" if folders else ""
        return f"{made}{rule.command}"

    def _declare(self, path: str) -> File:
        """Declare a file once, so that workers keep it for all rules that read it."""
        if path not in self._files:
            self._files[path] = self.manager.declare_file(Path(self._folder, path), cache="workflow")
        return self._files[path]

    def _set_resources(self, task: Task, rule: Rule) -> None:
        given = rule.resources
        if not given.keys() - {"wall_time"} and self._default_cores is not None:
            task.set_cores(self._default_cores)
        setters: dict[str, Callable[[Any], None]] = {
            "cores": task.set_cores,
            "memory": task.set_memory,
            "disk": task.set_disk,
            "gpus": task.set_gpus,
            "wall_time": task.set_time_max,
        }
        for name, amount in given.items():
            setters[name](amount)

    def _collect(self) -> None:
        """Pass on each task that ends; the semaphore counts those that have not come back."""
        while True:
            self._submitted.acquire()
            if self._closing:
                return
            try:
                task = self.manager.wait()
            except RuntimeError as error:
                self._finished.put(FinishedRule(-1, None, str(error)))
                return
            if task is None:
                return
            assert task.id is not None
            self._finished.put(FinishedRule(self._numbers.pop(task.id), task))

    def close(self) -> None:
        """End the factory and the manager, and with them all tasks."""
        self._closing = True
        self._submitted.release()
        if self._factory is not None:
            self._factory.stop()
        self.manager.close()
        self._thread.join()
