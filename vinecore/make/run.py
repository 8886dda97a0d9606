"""Runs a file of rules: what the other modules decide is carried out here."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vinecore.factory import Factory
from vinecore.make.executor import FinishedRule, RuleExecutor
from vinecore.make.parser import parse_rules
from vinecore.make.placement import Placement, find_undeclared, job_size, place_files
from vinecore.make.progress import Progress
from vinecore.make.records import Record, digest_rule, find_incomplete
from vinecore.make.rules import Rule, RuleError, RuleSet
from vinecore.make.stamps import RunLog, stamps_in
from vinecore.manager.manager import Manager
from vinecore.manager.tasks import Task
from vinecore.protocol.trees import remove_tree

# Types whose workers are started here, one job for each pilot, and the one whose workers come by themselves.
BATCH_TYPES = ("condor", "slurm")
OWN_WORKERS = "vine"
MAX_OUTPUT_SHOWN = 4000


@dataclass(frozen=True)
class MakeSettings:
    """What a run needs to know.

    Attributes
    ----------
    path : Path
        The file of rules; paths in it are relative to its folder.
    log : Path or None
        The log; None for a file beside the rules.
    batch_type : str
        "local", "condor", "slurm", or "vine" for workers that connect by themselves.
    max_local, max_remote : int or None
        The highest number of rules that run at once on this machine and elsewhere.
    retries : int
        How often a rule runs again that has failed.
    local_cores, local_memory, local_disk : int or None
        The resources of this machine that rules may use.
    batch_options : str
        Options for the batch system, before those of the rules.
    shared_folders : tuple of str
        Folders that workers see under the same paths.
    port : int
        The port for workers that connect by themselves.
    port_file : Path or None
        The file for the number of the port.
    project_name : str or None
        The name by which workers find the manager.
    password_file : Path or None
        The file with the secret; None for this user's.
    factory_settings : mapping
        Further settings of the factory.
    say : callable
        A function for each line to the user.
    """

    path: Path
    log: Path | None = None
    batch_type: str = "local"
    max_local: int | None = None
    max_remote: int | None = None
    retries: int = 0
    local_cores: int | None = None
    local_memory: int | None = None
    local_disk: int | None = None
    batch_options: str = ""
    shared_folders: tuple[str, ...] = ()
    port: int = 0
    port_file: Path | None = None
    project_name: str | None = None
    password_file: Path | None = None
    factory_settings: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = print

    @property
    def folder(self) -> str:
        """The folder of the rules."""
        return str(self.path.absolute().parent)

    @property
    def log_path(self) -> str:
        """The path of the log."""
        return str(self.log or Path(f"{self.path.absolute()}.vinelog"))

    def runs_here(self, rule: Rule) -> bool:
        """Return whether a rule runs on this machine.

        Parameters
        ----------
        rule : Rule
            The rule.

        Returns
        -------
        bool
            True for all rules without a batch system, and for rules that say LOCAL.
        """
        return rule.is_local or self.batch_type == "local"

    def job_options(self, rule: Rule) -> str:
        """Return the options of the jobs for a rule.

        Parameters
        ----------
        rule : Rule
            The rule.

        Returns
        -------
        str
            Lines of a submit file for HTCondor, which files of rules separate by a backslash and an n;
            words for others.
        """
        texts = [text.strip() for text in (self.batch_options, rule.batch_options)]
        separator = "\n" if self.batch_type == "condor" else " "
        return separator.join(text.replace("\\n", separator) for text in texts if text)


def read_rules(settings: MakeSettings) -> RuleSet:
    """Read and parse the file of rules.

    Parameters
    ----------
    settings : MakeSettings
        The settings.

    Returns
    -------
    RuleSet
        The rules.

    Raises
    ------
    RuleError
        The file is not understood.
    OSError
        It cannot be read.
    """
    text = settings.path.read_bytes().decode(errors="surrogateescape")
    return parse_rules(text, os.environ)


def check_rules(rules: RuleSet, settings: MakeSettings) -> list[Placement]:
    """Check that each rule could run, without running any.

    Parameters
    ----------
    rules : RuleSet
        The rules.
    settings : MakeSettings
        The settings.

    Returns
    -------
    list of Placement
        The places of the files of each rule.

    Raises
    ------
    RuleError
        A file has no place, or a source does not exist and no rule makes it.
    """
    for rule in rules.rules:
        for source in rule.sources:
            if source.path not in rules.makers and not os.path.exists(
                os.path.join(settings.folder, source.path)
            ):
                msg = f"{source.path} does not exist, and no rule makes it"
                raise RuleError(msg, rule.line)
    shared = [os.path.abspath(one) for one in settings.shared_folders]
    return [
        place_files(rule, settings.folder, shared, runs_here=settings.runs_here(rule)) for rule in rules.rules
    ]


def clean(rules: RuleSet, settings: MakeSettings, kind: str) -> list[str]:
    """Remove what rules have made.

    Parameters
    ----------
    rules : RuleSet
        The rules.
    settings : MakeSettings
        The settings.
    kind : {"all", "intermediates", "outputs"}
        Which targets; with "all" also the log.

    Returns
    -------
    list of str
        The paths that have been removed. Folders are removed only if the log says that a rule has
        made them.
    """
    intermediates = rules.intermediates()
    removed = []
    with RunLog(settings.log_path) as log:
        made = {path for record in log.records.values() for path in record.targets}
        chosen = {
            "all": set(rules.makers) | made,
            "intermediates": intermediates,
            "outputs": set(rules.makers) - intermediates,
        }[kind]
        for path in sorted(chosen):
            place = os.path.join(settings.folder, path)
            if os.path.lexists(place) and (not os.path.isdir(place) or path in made):
                remove_tree(place)
                removed.append(path)
        if kind == "all":
            os.unlink(settings.log_path)
    return removed


class Run:
    """One run of the rules that are not complete.

    Parameters
    ----------
    rules : RuleSet
        The rules.
    placements : list of Placement
        The places of their files.
    settings : MakeSettings
        The settings.
    log : RunLog
        The log.
    """

    def __init__(
        self, rules: RuleSet, placements: list[Placement], settings: MakeSettings, log: RunLog
    ) -> None:
        self._rules, self._placements, self._settings, self._log = rules, placements, settings, log
        self._stamp = stamps_in(settings.folder)
        self.incomplete = find_incomplete(rules, log.records, self._stamp)
        self._progress = Progress(
            rules, self.incomplete, settings.retries, lambda number: settings.runs_here(rules.rules[number])
        )
        self._finished: queue.SimpleQueue[FinishedRule] = queue.SimpleQueue()
        self._executors: dict[str, RuleExecutor] = {}
        self._source_stamps: dict[int, dict[str, str]] = {}

    def run(self) -> bool:
        """Run the rules; return whether all are complete.

        Returns
        -------
        bool
            False if a rule has failed, and with it those that need its targets.
        """
        progress, total = self._progress, len(self._rules.rules)
        done = total - len(self.incomplete)
        with contextlib.ExitStack() as stack:
            stack.callback(self._close)
            while True:
                for number in progress.start_ready(self._settings.max_local, self._settings.max_remote):
                    self._start(number)
                if progress.is_over:
                    break
                done += self._end(self._finished.get(), done + 1, total)
        left = progress.left
        for number, reason in progress.failed.items():
            self._settings.say(f"failed: {self._title(number)}: {reason}")
        if blocked := len(left) - len(progress.failed):
            self._settings.say(f"{blocked} rules have not run, because they need targets of failed ones")
        return not left

    def _title(self, number: int) -> str:
        rule = self._rules.rules[number]
        return f"{rule.name} (line {rule.line})"

    def _start(self, number: int) -> None:
        rule = self._rules.rules[number]
        self._source_stamps[number] = {source.path: self._stamp(source.path) for source in rule.sources}
        try:
            self._executor(rule).submit(number, rule, self._placements[number])
        except (OSError, ValueError, TypeError) as error:
            self._finished.put(FinishedRule(number, None, str(error)))

    def _end(self, ended: FinishedRule, count: int, total: int) -> bool:
        """Record a rule that has ended; return whether it is complete."""
        number, task, problem = ended
        if number < 0:
            raise RuntimeError(problem)
        rule = self._rules.rules[number]
        targets = {target.path: self._stamp(target.path) for target in rule.targets}
        if task is not None:
            self._show_output(task)
            problem = self._find_problem(rule, task, targets)
        if problem:
            if self._progress.fail(number, problem):
                self._settings.say(f"again: {self._title(number)}: {problem}")
            return False
        self._log.append(Record(rule.name, digest_rule(rule), self._source_stamps.pop(number), targets))
        self._progress.finish(number)
        self._settings.say(f"[{count}/{total}] {rule.name}")
        return True

    def _show_output(self, task: Task) -> None:
        text = task.std_output.rstrip("\n")
        if text:
            self._settings.say(text[-MAX_OUTPUT_SHOWN:])

    def _find_problem(self, rule: Rule, task: Task, targets: Mapping[str, str]) -> str:
        """Return why a rule is not complete; "" if it is."""
        if not task.completed():
            problem = str(task.error() or task.result)
        elif task.exit_code:
            problem = f"exit code {task.exit_code} of: {rule.command}"
        else:
            missing = [path for path, stamp in targets.items() if not stamp]
            if not missing:
                return ""
            problem = f"the command has not made {', '.join(missing)}: {rule.command}"
        return "\n  ".join([problem, *self._hints(rule)])

    def _hints(self, rule: Rule) -> list[str]:
        folder, hints = self._settings.folder, []
        there = [target.path for target in rule.targets if self._stamp(target.path)]
        if there and not self._settings.shared_folders:
            hints.append(
                f"{', '.join(there)} is in {folder}, so the command has written it there itself, and not in its sandbox: if workers see the same files, add --shared-fs {folder}"
            )
        undeclared = [
            word
            for word in find_undeclared(rule)
            if word in self._rules.makers
            or (os.path.isfile(os.path.join(folder, word)) and not word.startswith("/usr/"))
        ]
        if undeclared:
            hints.append(
                f"{', '.join(undeclared)} is no source of the rule, so its sandbox has no such file: add it after the colon in line {rule.line}"
            )
        return hints

    # ---- executors

    def _executor(self, rule: Rule) -> RuleExecutor:
        """Return the executor of a rule, which is started when it is first needed."""
        settings = self._settings
        options = settings.job_options(rule)
        if settings.runs_here(rule):
            key = "local"
        else:
            key = options if settings.batch_type in BATCH_TYPES else OWN_WORKERS
        if key not in self._executors:
            if key == "local" or settings.batch_type == OWN_WORKERS:
                self._executors[key] = self._local_executor() if key == "local" else self._open_executor()
            else:
                self._executors[key] = self._batch_executor(options)
        return self._executors[key]

    def _local_executor(self) -> RuleExecutor:
        settings = self._settings
        manager = Manager(0, address="127.0.0.1", password_file=settings.password_file)
        cores = settings.local_cores or os.cpu_count() or 1
        limits: dict[str, Any] = {
            "cores": cores,
            "memory": settings.local_memory,
            "disk": settings.local_disk,
        }
        return self._make(
            manager, lambda: Factory("local", manager, min_workers=1, max_workers=1, **limits), 1
        )

    def _open_executor(self) -> RuleExecutor:
        """Return the executor whose workers connect by themselves."""
        settings = self._settings
        manager = Manager(settings.port, settings.project_name, password_file=settings.password_file)
        if settings.port_file is not None:
            settings.port_file.write_text(f"{manager.port}\n")
        named = f", or vine_worker -M {settings.project_name}" if settings.project_name else ""
        settings.say(f"waiting for workers: vine_worker HOST {manager.port}{named}")
        return self._make(manager, None, 1)

    def _batch_executor(self, options: str) -> RuleExecutor:
        """Return an executor with pilots of its own, because a job is submitted with its options."""
        settings = self._settings
        manager = Manager(settings.port, password_file=settings.password_file)
        wanted = [
            rule
            for rule in (self._rules.rules[number] for number in self.incomplete)
            if not settings.runs_here(rule) and settings.job_options(rule) == options
        ]
        size: dict[str, Any] = {}
        for rule in wanted:
            for name in ("cores", "memory", "disk", "gpus"):
                if name in rule.resources:
                    size[name] = max(size.get(name, 0), int(rule.resources[name]))
        size = {**job_size(options), **size, **settings.factory_settings}
        # The jobs that a killed run has left have the same name, and are removed by the next run.
        mark = hashlib.sha256(f"{settings.path.absolute()}\0{options}".encode()).hexdigest()[:12]
        most = min(len(wanted), settings.max_remote or 100)
        return self._make(
            manager,
            lambda: Factory(
                settings.batch_type,
                manager,
                factory_name=f"vine_make-{mark}",
                min_workers=0,
                max_workers=max(1, most),
                batch_options=options,
                **size,
            ),
            None,
        )

    def _make(
        self, manager: Manager, make_factory: Callable[[], Factory] | None, cores: int | None
    ) -> RuleExecutor:
        manager.close_on_exit_signals()
        try:
            factory = None if make_factory is None else make_factory().start()
        except BaseException:
            manager.close()
            raise
        return RuleExecutor(self._settings.folder, manager, factory, self._finished, cores)

    def _close(self) -> None:
        for executor in self._executors.values():
            executor.close()


def run_rules(settings: MakeSettings) -> bool:
    """Run the rules that are not complete.

    Parameters
    ----------
    settings : MakeSettings
        The settings.

    Returns
    -------
    bool
        Whether all rules are complete.

    Raises
    ------
    RuleError
        The file is not understood, or a rule cannot run.
    BlockingIOError
        Another process runs the same file.
    OSError
        A file cannot be read or written.
    """
    rules = read_rules(settings)
    placements = check_rules(rules, settings)
    with RunLog(settings.log_path) as log:
        run = Run(rules, placements, settings, log)
        if not run.incomplete:
            settings.say("nothing left to do")
            return True
        settings.say(f"{len(run.incomplete)} of {len(rules.rules)} rules to run")
        sys.stdout.flush()
        return run.run()
