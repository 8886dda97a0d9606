"""Which rules have to run: rules, the records of earlier runs and the state of files in, reasons out.

A rule is complete if its record has the same command and files, all of its targets are as they were
when it had made them, and its sources as they were when it began.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vinecore.make.rules import Rule, RuleSet

# Changing where a rule runs does not change what it makes.
VARIABLES_WITHOUT_EFFECT = ("BATCH_OPTIONS",)


@dataclass(frozen=True)
class Record:
    """The completion of a rule.

    Attributes
    ----------
    rule : str
        The first target.
    digest : str
        A digest of the command and of the names of its files.
    sources, targets : mapping of str to str
        The stamps of the files: of sources when the rule began, of targets when it had ended.
    """

    rule: str
    digest: str
    sources: Mapping[str, str]
    targets: Mapping[str, str]


def digest_rule(rule: Rule) -> str:
    """Return a digest of all that a rule says about its result.

    Parameters
    ----------
    rule : Rule
        The rule.

    Returns
    -------
    str
        Equal for rules with the same command, files and variables.
    """
    files = [[(file.path, file.remote_name) for file in some] for some in (rule.targets, rule.sources)]
    variables = {k: v for k, v in rule.variables.items() if k not in VARIABLES_WITHOUT_EFFECT}
    text = json.dumps([rule.command, files, variables], sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def encode_record(record: Record) -> str:
    """Return a record as one line of the log.

    Parameters
    ----------
    record : Record
        The record.

    Returns
    -------
    str
        A JSON object and a newline.
    """
    return json.dumps(asdict(record)) + "\n"


def decode_records(text: str) -> dict[str, Record]:
    """Read the records of a log.

    Parameters
    ----------
    text : str
        The content of the log. A last line without an end is that of a run that was killed.

    Returns
    -------
    dict of str to Record
        The last record of each rule, by its first target. Lines that are no records are skipped.
    """
    found: dict[str, Record] = {}
    for line in text.split("\n")[:-1]:
        record = _decode(line)
        if record is not None:
            found[record.rule] = record
    return found


def _decode(line: str) -> Record | None:
    try:
        fields: Any = json.loads(line)
        record = Record(**fields)
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (record.rule, record.digest)
    tables = (record.sources, record.targets)
    is_sound = all(isinstance(text, str) for text in texts) and all(
        isinstance(table, dict) and all(isinstance(stamp, str) for stamp in table.values())
        for table in tables
    )
    return record if is_sound else None


def find_incomplete(
    rules: RuleSet, records: Mapping[str, Record], stamp: Callable[[str], str]
) -> dict[int, str]:
    """Find the rules that have to run.

    Parameters
    ----------
    rules : RuleSet
        The rules.
    records : mapping of str to Record
        The records of earlier runs, by first target.
    stamp : callable
        A function that returns the stamp of a path, "" if nothing is there.

    Returns
    -------
    dict of int to str
        The reason for each rule, by number, each after those that make its sources.
    """
    found: dict[int, str] = {}
    for number in rules.order:
        rule = rules.rules[number]
        reason = _reason(rule, records.get(rule.name), stamp)
        if not reason:
            again = [
                rules.rules[other].name for other in sorted(rules.prerequisites(number)) if other in found
            ]
            reason = f"{again[0]} is made again" if again else ""
        if reason:
            found[number] = reason
    return found


def _reason(rule: Rule, record: Record | None, stamp: Callable[[str], str]) -> str:
    if record is None:
        return "it has not run"
    if record.digest != digest_rule(rule):
        return "its command or the names of its files have changed"
    for target in rule.targets:
        now = stamp(target.path)
        if not now:
            return f"{target.path} is not there"
        if now != record.targets.get(target.path):
            return f"{target.path} has changed since it was made"
    for source in rule.sources:
        if stamp(source.path) != record.sources.get(source.path):
            return f"{source.path} has changed"
    return ""
