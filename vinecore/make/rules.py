"""Rules as a file states them, and the errors that name a line of it."""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


class RuleError(ValueError):
    """A file of rules is not understood, or its rules contradict each other.

    Parameters
    ----------
    text : str
        The reason, and the remedy.
    line : int
        The number of the line; 0 if no line is to blame.
    """

    def __init__(self, text: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {text}" if line else text)
        self.line = line


@dataclass(frozen=True)
class RuleFile:
    """A file that a rule reads or makes.

    Attributes
    ----------
    path : str
        The path, relative to the folder of the rules or absolute, without "." and double slashes.
    remote_name : str
        The name in the sandbox, if the rule states one with ``->``; otherwise "".
    """

    path: str
    remote_name: str = ""


@dataclass(frozen=True)
class Rule:
    """A command with its files.

    Attributes
    ----------
    line : int
        The number of the line that names the targets.
    targets, sources : tuple of RuleFile
        The files that the command makes and reads.
    command : str
        The command, with its variables substituted.
    is_local : bool
        Whether the command has to run on this machine.
    category : str
        The group of rules that need alike resources.
    resources : mapping of str to float
        Any of cores, memory (MB), disk (MB), gpus and wall_time (seconds).
    variables : mapping of str to str
        The exported variables.
    batch_options : str
        Options for the batch system.
    """

    line: int
    targets: tuple[RuleFile, ...]
    sources: tuple[RuleFile, ...]
    command: str
    is_local: bool = False
    category: str = "default"
    resources: Mapping[str, float] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    batch_options: str = ""

    @property
    def name(self) -> str:
        """The first target, which stands for the rule in texts."""
        return self.targets[0].path


@dataclass(frozen=True)
class RuleSet:
    """The rules of a file, in its order.

    Parameters
    ----------
    rules : tuple of Rule
        The rules.
    results : frozenset of str
        The paths that ``MAKEFLOW_OUTPUTS`` names; empty if it is not set.

    Raises
    ------
    RuleError
        Two rules make the same file, or rules need each other.
    """

    rules: tuple[Rule, ...]
    results: frozenset[str] = frozenset()
    makers: Mapping[str, int] = field(init=False)
    """The number of the rule that makes each target."""
    order: tuple[int, ...] = field(init=False)
    """The numbers of the rules, each after those that make its sources."""

    def __post_init__(self) -> None:
        makers: dict[str, int] = {}
        for number, rule in enumerate(self.rules):
            for target in rule.targets:
                if target.path in makers:
                    other = self.rules[makers[target.path]]
                    msg = f"{target.path!r} is also a target of line {other.line}: one rule makes a file"
                    raise RuleError(msg, rule.line)
                makers[target.path] = number
        object.__setattr__(self, "makers", makers)
        self._refuse_files_in_targets()
        object.__setattr__(self, "order", tuple(self._sort()))

    def prerequisites(self, number: int) -> set[int]:
        """Return the numbers of the rules that make the sources of a rule.

        Parameters
        ----------
        number : int
            The number of the rule.

        Returns
        -------
        set of int
            Without rules for files that are only read.
        """
        return {
            self.makers[source.path] for source in self.rules[number].sources if source.path in self.makers
        }

    def intermediates(self) -> set[str]:
        """Return the targets that are not results.

        Returns
        -------
        set of str
            The targets that other rules read, except those that ``MAKEFLOW_OUTPUTS`` names; if it
            is set, all targets that it does not name.
        """
        if self.results:
            return set(self.makers) - self.results
        read = {source.path for rule in self.rules for source in rule.sources}
        return read & set(self.makers)

    def _refuse_files_in_targets(self) -> None:
        """Refuse a file in a folder that a rule makes as a whole, and the folder of the rules itself."""
        for rule in self.rules:
            for file in (*rule.targets, *rule.sources):
                above = file.path
                while above and above != os.path.dirname(above):
                    above = os.path.dirname(above)
                    if above in self.makers:
                        msg = f"{file.path!r} is in {above!r}, which a rule makes as a whole: name {above!r} instead, or the files in it as targets"
                        raise RuleError(msg, rule.line)
            for target in rule.targets:
                if target.path in (".", "/") or target.path.split("/")[-1] == "..":
                    msg = f"the target {target.path!r} is no file of its own: name the files that the command makes"
                    raise RuleError(msg, rule.line)

    def _sort(self) -> Iterator[int]:
        """Follow the sources of each rule with a stack, because chains may have thousands of rules."""
        on_path, finished = 1, 2
        states: dict[int, int] = {}
        for start in range(len(self.rules)):
            stack = [(start, iter(sorted(self.prerequisites(start))))] if start not in states else []
            states.setdefault(start, on_path)
            while stack:
                number, others = stack[-1]
                following = next(others, None)
                if following is None:
                    states[number] = finished
                    stack.pop()
                    yield number
                elif states.get(following) == on_path:
                    cycle = [one for one, _ in stack]
                    names = [self.rules[one].name for one in [*cycle[cycle.index(following) :], following]]
                    msg = f"rules need each other: {' needs '.join(names)}"
                    raise RuleError(msg, self.rules[following].line)
                elif following not in states:
                    states[following] = on_path
                    stack.append((following, iter(sorted(self.prerequisites(following)))))
