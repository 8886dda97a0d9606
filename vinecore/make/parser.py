"""Reads files of rules in Makeflow's plain form: text in, rules out, without I/O.

The language: ``TARGETS : SOURCES`` with one command in the next, indented line; ``FILE->NAME`` for
a file that has another name in the sandbox; ``NAME=value``, ``NAME+=value`` and ``export``;
``@NAME=value`` between the files and the command for one rule; ``CATEGORY`` and resources, also as
``.MAKEFLOW``; ``LOCAL`` before a command. All other parts of Makeflow are refused by their names.
"""

from __future__ import annotations

import os.path
import re
import shlex
from collections.abc import Iterator, Mapping

from vinecore.make.rules import Rule, RuleError, RuleFile, RuleSet
from vinecore.protocol.amounts import parse_megabytes

ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)\s*(\+?=)(.*)", re.DOTALL)
REFERENCE = re.compile(r"\$(?:(\$)|\(([A-Za-z_]\w*)\)|\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
# In quotes they are those of a shell function or script.
AUTOMATIC_VARIABLE = re.compile(r"(?<!\$)(?:\$\$)*(\$[@<^]|\$\([@<^]\))(?![\"'])")
RESOURCES = {"CORES": "cores", "MEMORY": "memory", "DISK": "disk", "GPUS": "gpus", "WALL_TIME": "wall_time"}
# Directives that have no effect here: a hint of a size, and modes that learn resources.
IGNORED_DIRECTIVES = ("SIZE", "MODE")
WITHOUT_NESTING = (
    "nested files of rules do not exist here: put its rules into this file, or run vine_make on it before"
)
WITHOUT_JX = "this is a file in JX or JSON, and vine_make reads plain rules only: run it with makeflow --jx, or let a script write the rules"


def parse_rules(text: str, environment: Mapping[str, str]) -> RuleSet:
    """Parse a file of rules.

    Parameters
    ----------
    text : str
        The content of the file.
    environment : mapping of str to str
        The environment variables that the file may refer to.

    Returns
    -------
    RuleSet
        The rules, in the order of the file.

    Raises
    ------
    RuleError
        The text is not understood; the error names the line.
    """
    if text.lstrip()[:1] in ("{", "["):
        raise RuleError(WITHOUT_JX, 1)
    return _Parser(environment).parse(text)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield lines with their numbers, where a backslash at the end continues a line."""
    parts: list[str] = []
    start = 1
    for number, line in enumerate(text.split("\n"), 1):
        start = start if parts else number
        line = line.removesuffix("\r")  # noqa: PLW2901 - files of Windows
        backslashes = len(line) - len(line.rstrip("\\"))
        if backslashes % 2:
            parts.append(line[:-1])
            continue
        yield start, "".join([*parts, line])
        parts = []
    if parts:
        yield start, "".join(parts)


def _without_comment(line: str) -> str:
    """Remove a comment that begins outside of quotes, at the beginning or after a space."""
    quote = ""
    for position, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (position == 0 or line[position - 1].isspace()):
            return line[:position]
    return line


def _colon(line: str) -> int:
    """Return where targets end: the first colon before a space, or else the first one; -1 if there is none."""
    quote, first = "", -1
    for position, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == ":":
            if line[position + 1 : position + 2].strip() == "":
                return position
            first = position if first < 0 else first
    return first


class _Parser:
    """The state while a file is read from its beginning to its end."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._variables: dict[str, str] = {}
        self._exported: dict[str, None] = {}
        self._category = "default"
        self._resources: dict[str, dict[str, float]] = {}
        self._rules: list[Rule] = []
        # The rule whose command is still to come: line, targets, sources and its own variables.
        self._open: tuple[int, tuple[RuleFile, ...], tuple[RuleFile, ...], dict[str, str]] | None = None

    def parse(self, text: str) -> RuleSet:
        for number, line in _logical_lines(text):
            if "\0" in line:
                msg = "the line has a zero byte: this is no text"
                raise RuleError(msg, number)
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            if line[0].isspace():
                self._read_indented(number, line.strip())
            else:
                self._require_command(number)
                self._read_statement(number, _without_comment(line).strip())
        self._require_command(0)
        outputs = self._variables.get("MAKEFLOW_OUTPUTS", "").split()
        return RuleSet(tuple(self._rules), frozenset(map(os.path.normpath, outputs)))

    def _require_command(self, number: int) -> None:
        if self._open is not None:
            line, targets, _, _ = self._open
            msg = f"the rule for {targets[0].path!r} has no command: write it into the next line, after a tab"
            raise RuleError(msg, line)

    # ---- lines at the margin

    def _read_statement(self, number: int, line: str) -> None:
        word = line.split(maxsplit=1)[0]
        if word == "export":
            self._read_export(number, line[len(word) :].strip())
        elif word == ".MAKEFLOW":
            self._read_directive(number, line[len(word) :].split())
        elif line.startswith(".UMBRELLA"):
            msg = ".UMBRELLA does not exist here: give workers an environment (vine_worker, or --python-env of vine_factory)"
            raise RuleError(msg, number)
        elif (found := ASSIGNMENT.fullmatch(line)) is not None:
            self._assign(number, found[1], found[2], found[3], None)
        elif line.startswith("@"):
            msg = f"{word!r} is a variable of one rule: it belongs between the files of a rule and its command, indented"
            raise RuleError(msg, number)
        else:
            self._read_files(number, line)

    def _read_export(self, number: int, text: str) -> None:
        found = ASSIGNMENT.fullmatch(text)
        names = [found[1]] if found is not None else text.split()
        if not names or not all(name.isidentifier() for name in names):
            msg = f"export {text}: write export NAME, or export NAME=value"
            raise RuleError(msg, number)
        if found is not None:
            self._assign(number, found[1], found[2], found[3], None)
        self._exported.update(dict.fromkeys(names))

    def _read_directive(self, number: int, words: list[str]) -> None:
        name = words[0] if words else ""
        if name in IGNORED_DIRECTIVES:
            return
        if name not in RESOURCES and name != "CATEGORY":
            msg = f".MAKEFLOW {name}: there are CATEGORY, {', '.join(RESOURCES)}"
            raise RuleError(msg, number)
        if len(words) != 2:
            msg = f".MAKEFLOW {name} needs one value, such as .MAKEFLOW {name} {'fits' if name == 'CATEGORY' else '4'}"
            raise RuleError(msg, number)
        self._assign(number, name, "=", words[1], None)

    def _assign(self, number: int, name: str, how: str, text: str, own: dict[str, str] | None) -> None:
        """Set a variable: of all rules that follow, or of one rule."""
        value = text.strip()
        literal = len(value) > 1 and value[0] == value[-1] == "'" and "'" not in value[1:-1]
        if literal or (len(value) > 1 and value[0] == value[-1] == '"' and '"' not in value[1:-1]):
            value = value[1:-1]
        if not literal:
            value = self._substitute(value, number, own)
        table = self._variables if own is None else own
        if how == "+=":
            before = table.get(name, self._variables.get(name, ""))
            value = f"{before} {value}" if before else value
        table[name] = value
        if name in RESOURCES:
            amount = _amount(name, value, number)
            if own is None:
                self._resources.setdefault(self._category, {})[name] = amount
        elif name == "CATEGORY" and own is None:
            self._category = value or "default"

    def _read_files(self, number: int, line: str) -> None:
        colon = _colon(line)
        if colon < 0:
            msg = f"{line!r} is neither a rule (TARGETS: SOURCES), nor a variable (NAME=value), nor an indented command"
            raise RuleError(msg, number)
        targets = tuple(self._files(line[:colon], number))
        sources = tuple(dict.fromkeys(self._files(line[colon + 1 :], number)))
        if not targets:
            msg = "the rule has no target before the colon: name the files that the command makes"
            raise RuleError(msg, number)
        _refuse_repeated([file.path for file in targets], number)
        for files in (targets, sources):
            _refuse_repeated([file.remote_name or file.path for file in files], number)
        self._open = number, targets, sources, {}

    def _files(self, text: str, number: int) -> Iterator[RuleFile]:
        try:
            words = shlex.split(self._substitute(text, number, None), posix=True)
        except ValueError as error:
            msg = f"the names of files are not understood: {error}"
            raise RuleError(msg, number) from None
        for word in words:
            path, arrow, remote_name = word.partition("->")
            if not path or (arrow and not remote_name):
                msg = f"{word!r}: write FILE->NAME without spaces, for a file that is called NAME in the sandbox"
                raise RuleError(msg, number)
            if any(letter in "*?%" for letter in path):
                msg = f"{path!r}: patterns do not exist here: name each file, or let a script write the rules"
                raise RuleError(msg, number)
            if "://" in path:
                msg = f"{path!r} is an address: add a rule that downloads it, such as NAME: with LOCAL curl -o NAME {path}"
                raise RuleError(msg, number)
            yield RuleFile(os.path.normpath(path), os.path.normpath(remote_name) if arrow else "")

    # ---- indented lines

    def _read_indented(self, number: int, line: str) -> None:
        if self._open is None:
            msg = "an indented line is the command of a rule, and each rule has one: join commands with ;" if self._rules else "an indented line is the command of a rule, and there is no rule above"  # fmt: skip
            raise RuleError(msg, number)
        start, targets, sources, own = self._open
        if line.startswith("@"):
            found = ASSIGNMENT.fullmatch(line[1:])
            if found is None:
                msg = f"{line!r}: a variable of one rule is written @NAME=value"
                raise RuleError(msg, number)
            self._assign(number, found[1], found[2], _without_comment(found[3]), own)
            return
        self._open = None
        self._rules.append(self._make_rule(number, start, targets, sources, own, line))

    def _make_rule(
        self,
        number: int,
        start: int,
        targets: tuple[RuleFile, ...],
        sources: tuple[RuleFile, ...],
        own: dict[str, str],
        line: str,
    ) -> Rule:
        first, _, rest = line.partition(" ")
        if first == "MAKEFLOW":
            raise RuleError(f"MAKEFLOW {rest.strip()}: {WITHOUT_NESTING}", number)  # noqa: EM102
        if (automatic := AUTOMATIC_VARIABLE.search(line)) is not None:
            name = automatic[1]
            msg = f"{name} has no value here: write the names of the files; for the shell's own {name} write ${name}"
            raise RuleError(msg, number)
        is_local = first == "LOCAL"
        command = self._substitute(rest.strip() if is_local else line, number, own, is_command=True)
        if not command.strip():
            msg = "the command is empty"
            raise RuleError(msg, number)
        category = own.get("CATEGORY", self._category)
        lookup = {**self._variables, **own}
        return Rule(
            line=start,
            targets=targets,
            sources=sources,
            command=command,
            is_local=is_local,
            category=category,
            resources=self._rule_resources(category, own, number),
            variables=self._exported_values(lookup),
            batch_options=lookup.get("BATCH_OPTIONS", self._environment.get("BATCH_OPTIONS", "")),
        )

    def _rule_resources(self, category: str, own: Mapping[str, str], number: int) -> dict[str, float]:
        """Return the resources: of the rule itself, of its category, or else of the environment."""
        of_category = self._resources.get(category, {})
        found: dict[str, float] = {}
        for name, resource in RESOURCES.items():
            if name in own:
                found[resource] = _amount(name, own[name], number)
            elif name in of_category:
                found[resource] = of_category[name]
            elif self._environment.get(name, "").strip() and name != "WALL_TIME":
                found[resource] = _amount(name, self._environment[name], number)
        return found

    def _exported_values(self, lookup: Mapping[str, str]) -> dict[str, str]:
        values = {name: lookup.get(name, self._environment.get(name)) for name in self._exported}
        return {name: value for name, value in values.items() if value is not None}

    # ---- variables

    def _substitute(
        self, text: str, number: int, own: Mapping[str, str] | None, *, is_command: bool = False
    ) -> str:
        """Substitute variables; those that only the task's shell knows stay in commands."""

        def value(found: re.Match[str]) -> str:
            name = found[2] or found[3] or found[4]
            if found[1]:
                return "$"
            if own is not None and name in own:
                return own[name]
            if name in self._variables:
                return self._variables[name]
            if is_command and found[2] is None:
                return found[0]
            if name in self._environment:
                return self._environment[name]
            if is_command:
                return found[0]
            msg = f"the variable {name!r} is not defined above, and not in the environment"
            raise RuleError(msg, number)

        return REFERENCE.sub(value, text)


def _amount(name: str, text: str, number: int) -> float:
    try:
        amount = float(parse_megabytes(text)) if name in ("MEMORY", "DISK") else float(text)
    except ValueError:
        amount = -1.0
    if not 0 <= amount < 10**15:
        unit = {"MEMORY": "megabytes, such as 2000 or 2GB", "DISK": "megabytes, such as 2000 or 2GB", "WALL_TIME": "seconds"}.get(name, "a number")  # fmt: skip
        msg = f"{name}={text}: write {unit}"
        raise RuleError(msg, number)
    return amount


def _refuse_repeated(names: list[str], number: int) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            msg = f"{name!r} is named twice: two files cannot have one name"
            raise RuleError(msg, number)
        seen.add(name)
