"""The settings of a factory: names as in TaskVine, each value checked."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from vinecore import validators

MOST = 10**15
MOST_S = 10**9
"""Of a duration: more than thirty years, and a thread can wait for so long."""
WORKER_OPTIONS = {
    "transfer-port": True,
    "task-wrapper": True,
    "single-shot": False,
    "debug-workers": False,
}
"""Settings that are options of vine_worker, and whether they have a value."""
IGNORED_SETTINGS = {
    "foremen-name": "there are no foremen, because workers get files from each other",
    "autosize": "a worker offers what its job asked for: set cores, memory and disk to the size of a slot",
    "disable-afs-check": "nothing is checked of AFS",
    "run-factory-as-manager": "a factory submits its workers itself",
    "tls-sni": "a certificate is known by its fingerprint, whatever it is called: set ssl or ssl-fingerprint",
    "amazon-config": "there is no such batch system here: run vine_worker HOST PORT on such a machine",
    "k8s-image": "there is no such batch system here: run vine_worker HOST PORT in a pod",
    "k8s-worker-image": "there is no such batch system here: run vine_worker HOST PORT in a pod",
    "mesos-master": "there is no such batch system here: run vine_worker HOST PORT in a task",
    "mesos-path": "there is no such batch system here: run vine_worker HOST PORT in a task",
    "mesos-preload": "there is no such batch system here: run vine_worker HOST PORT in a task",
}
"""Settings of TaskVine that are accepted and change nothing, with the reason and what to do instead."""
FIXED_SETTINGS = {
    "manager-name": "manager_name",
    "master-name": "manager_name",
    "factory-name": "factory_name",
}
"""What a configuration may say, too, and a factory does not change while it works."""


@dataclass(frozen=True)
class FactorySettings:
    """The settings of a factory.

    Attributes
    ----------
    min_workers, max_workers : int
        How many workers there are at least and at most.
    workers_per_cycle : int
        How many are submitted in one period at most; 0 for as many as are needed.
    factory_period : float
        Seconds between two looks.
    tasks_per_worker : int or None
        How many tasks one worker is counted for; None: one for each core.
    capacity : bool
        Start no more workers than the manager can keep busy.
    timeout : float
        A worker leaves after so many seconds without work.
    factory_timeout : float
        The factory ends when there was no work, or no manager, for so many seconds; 0: never.
    wall_time : float or None
        How many seconds a worker lives: it hands over what only it has before, and is replaced if there is work. None: as long as it has work.
    cores, memory, disk, gpus : int or None
        The resources of each worker, and of its job; memory and disk in MB.
    condor_requirements : tuple of str
        Further conditions on the machine, all of which have to hold.
    batch_options : str
        Lines for the batch system, passed on as they are.
    env : mapping
        Variables of the workers' environment.
    wrapper : str
        A command that runs the worker's command.
    worker_binary : str
        The program that is started as the worker instead of our own, as a path or a name in PATH (local).
    python_env : str
        An archive with an environment for the worker's own Python.
    extra_options : str
        Further options of ``vine_worker``.
    feature : tuple of str
        Features that the workers advertise.
    workers_blocked : tuple of str
        Machines that get no worker (condor).
    wrapper_input : tuple of str
        Files that the wrapper needs (condor).
    """

    min_workers: int = 5
    max_workers: int = 100
    workers_per_cycle: int = 0
    factory_period: float = 5.0
    tasks_per_worker: int | None = None
    capacity: bool = False
    timeout: float = 300.0
    factory_timeout: float = 0.0
    wall_time: float | None = None
    cores: int | None = None
    memory: int | None = None
    disk: int | None = None
    gpus: int | None = None
    condor_requirements: tuple[str, ...] = ()
    batch_options: str = ""
    env: Mapping[str, str] | None = None
    wrapper: str = ""
    worker_binary: str = ""
    python_env: str = ""
    extra_options: str = ""
    feature: tuple[str, ...] = ()
    workers_blocked: tuple[str, ...] = ()
    wrapper_input: tuple[str, ...] = ()

    @property
    def fixed(self) -> bool:
        """Whether the number of workers is constant."""
        return self.min_workers == self.max_workers

    def changed(self, **values: Any) -> FactorySettings:
        """Return these settings with some of them changed.

        Raises
        ------
        ValueError
            There is no such setting, or a value makes no sense.
        """
        checked = {}
        for name, value in values.items():
            if name not in _CHECKS:
                raise ValueError(unknown_setting_message(name, _CHECKS))
            checked[name] = _CHECKS[name](name, value)
        new = replace(self, **checked)
        if new.max_workers < new.min_workers:
            msg = (
                f"min_workers={new.min_workers}, max_workers={new.max_workers}: use no more than max_workers"
            )
            raise ValueError(msg)
        return new

    def reject_unsupported(self, batch_type: str, names: tuple[str, ...]) -> None:
        """Make sure that nothing is set that a batch system has no use for.

        Raises
        ------
        ValueError
        """
        for name in names:
            if getattr(self, name):
                msg = f"{name}={getattr(self, name)!r}: it has no effect on workers of type {batch_type!r}, leave it out"
                raise ValueError(msg)


def fixed_settings(values: Any) -> dict[str, str]:
    """Find in a configuration what a factory is told once.

    Raises
    ------
    ValueError
    """
    found: dict[str, str] = {}
    for key, name in FIXED_SETTINGS.items():
        if isinstance(values, dict) and key in values:
            if name in found:
                msg = f"{key!r} and a synonym of it are both given: remove one of them"
                raise ValueError(msg)
            found[name] = _text(key, values[key])
    return found


def from_json(values: Any) -> dict[str, Any]:
    """Understand what a configuration file says; names are those of the command's options.

    Raises
    ------
    ValueError
    """
    if not isinstance(values, dict):
        msg = 'a configuration is an object, such as {"max-workers": 10}'
        raise ValueError(msg)  # noqa: TRY004 - as all that may be wrong with it
    found = {}
    known = [
        *FIXED_SETTINGS,
        *(name.replace("_", "-") for name in _CHECKS if name != "extra_options"),
        "worker-extra-options",
    ]
    for key, value in values.items():
        if key in FIXED_SETTINGS or key in IGNORED_SETTINGS or key in WORKER_OPTIONS:
            continue
        if key not in known:
            raise ValueError(unknown_setting_message(key, known))
        found["extra_options" if key == "worker-extra-options" else key.replace("-", "_")] = value
    if extra := worker_options(values):
        found["extra_options"] = f"{extra} {_text('worker-extra-options', found.get('extra_options', ''))}"
    return found


def worker_options(values: Mapping[str, Any]) -> str:
    """Return the settings that are options of vine_worker as part of its command line."""
    words: list[str] = []
    for name, has_value in WORKER_OPTIONS.items():
        value = values.get(name)
        if value is not None and value is not False:
            words += [f"--{name.replace('debug-workers', 'debug')}", *([str(value)] if has_value else [])]
    return shlex.join(words)


def unknown_setting_message(name: str, known: Any) -> str:
    """Return the message about an unknown setting, with the nearest known one."""
    hint = validators.suggest_name(name, known) or f"; there are: {', '.join(sorted(known))}"
    return f"there is no setting {name!r}{hint}"


def _number(least: float, kind: type, none: bool = False, time: bool = False) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if value is None and none:
            return None
        try:
            if kind is int:
                return validators.whole(name, value, int(least), MOST)
            plain = float((validators.seconds if time else validators.number)(name, value, least))
        except TypeError as error:
            raise ValueError(str(error)) from None  # as all that may be wrong with a setting
        if time and plain > MOST_S:
            validators.refuse(name, value, f"a number of {MOST_S:,} or less (seconds)")
        return plain

    return check


def _flag(name: str, value: Any) -> bool:
    try:
        return validators.flag(name, value)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        msg = f"{name}={value!r}: use a text"
        raise ValueError(msg)
    return value


def _program(name: str, value: Any) -> str:
    """Take a program that can be started: its name or path."""
    program = _text(name, os.fspath(value) if isinstance(value, os.PathLike) else value)
    if program and shutil.which(os.path.expanduser(program)) is None:
        msg = f"{name}={program!r}: there is no such program on this machine that can be executed"
        raise ValueError(msg)
    return program


def _texts(name: str, value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) and "\n" not in v for v in values):
        msg = f"{name}={value!r}: use a text of one line, or several"
        raise ValueError(msg)
    return tuple(v for v in values if v.strip())


def _words(pattern: str, what: str) -> Callable[[str, Any], tuple[str, ...]]:
    """Texts with one word each, or one text with several."""

    def check(name: str, value: Any) -> tuple[str, ...]:
        words = [word for text in _texts(name, value) for word in text.split()]
        for word in words:
            if re.fullmatch(pattern, word) is None:
                msg = f"{name}={value!r}: {word!r} is not {what}"
                raise ValueError(msg)
        return tuple(words)

    return check


def check_name(name: str) -> str:
    """Make sure that a factory can be called so, if it has a name.

    Raises
    ------
    ValueError
    """
    if name and (not isinstance(name, str) or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) is None):
        msg = f"factory_name={name!r}: use letters, digits, and . _ - between them, such as 'my-factory'"
        raise ValueError(msg)
    return name


def _env(name: str, value: Any) -> dict[str, str]:
    pairs = dict(value) if isinstance(value, Mapping) else None
    if pairs is None or not all(
        isinstance(k, str) and k.isidentifier() and isinstance(v, str) and "\n" not in v
        for k, v in pairs.items()
    ):
        msg = f"{name}={value!r}: use names and texts of one line, such as {{'VAR': 'value'}}"
        raise ValueError(msg)
    return pairs


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "min_workers": _number(0, int), "max_workers": _number(0, int), "workers_per_cycle": _number(0, int),
    "factory_period": _number(0.01, float, time=True), "tasks_per_worker": _number(1, int, none=True), "capacity": _flag,
    "timeout": _number(1, float, time=True), "wall_time": _number(1, float, none=True, time=True),
    "factory_timeout": _number(0, float, time=True), "cores": _number(1, int, none=True),
    "memory": _number(1, int, none=True), "disk": _number(1, int, none=True), "gpus": _number(0, int, none=True),
    "condor_requirements": _texts, "batch_options": _text, "env": _env, "wrapper": _text, "worker_binary": _program, "python_env": _text, "extra_options": _text,
    "feature": _words(r"[^\s/]+", "one word without a slash"), "workers_blocked": _words(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", "the name of a machine"),
    "wrapper_input": _texts,
}  # fmt: skip
assert set(_CHECKS) == {field.name for field in fields(FactorySettings)}
