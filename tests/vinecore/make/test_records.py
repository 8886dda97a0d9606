"""The rules that have to run again, by what has changed."""

from __future__ import annotations

import dataclasses
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vinecore.make.parser import parse_rules
from vinecore.make.records import Record, decode_records, digest_rule, encode_record, find_incomplete
from vinecore.make.stamps import RunLog, stamp_path

TEXT = "a: in\n\tmake a\nb: a\n\tmake b\nc d: b in2\n\tmake c\nx: in2\n\tmake x\n"
STAMPS = {name: f"stamp of {name}" for name in ("in", "in2", "a", "b", "c", "d", "x")}


def complete(rules, stamps):
    return {
        rule.name: Record(
            rule.name,
            digest_rule(rule),
            {file.path: stamps[file.path] for file in rule.sources},
            {file.path: stamps[file.path] for file in rule.targets},
        )
        for rule in rules.rules
    }


def names_to_run(text=TEXT, stamps=STAMPS, records=None, **environment):
    before = complete(parse_rules(TEXT, environment), STAMPS) if records is None else records
    rules = parse_rules(text, environment)
    return {
        rules.rules[n].name: why
        for n, why in find_incomplete(rules, before, lambda p: stamps.get(p, "")).items()
    }


def test_complete_rules_do_not_run():
    assert names_to_run() == {}


def test_rules_without_record_run():
    assert set(names_to_run(records={})) == {"a", "b", "c", "x"}


@pytest.mark.parametrize(
    ("changed", "run"),
    [
        ({"in": "new"}, {"a": "in has changed", "b": "a is made again", "c": "b is made again"}),
        ({"in2": "new"}, {"c": "in2 has changed", "x": "in2 has changed"}),
        ({"d": ""}, {"c": "d is not there"}),
        ({"b": "new"}, {"b": "b has changed since it was made", "c": "b has changed"}),
    ],
)
def test_changed_files_are_seen(changed, run):
    assert names_to_run(stamps={**STAMPS, **changed}).items() >= run.items()
    assert names_to_run(stamps={**STAMPS, **changed}).keys() == run.keys()


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("make b", "make B"),
        TEXT.replace("b: a\n", "b: a in\n"),
        TEXT.replace("b: a\n", "b->y: a\n"),
        TEXT.replace("b: a\n", "export Q=1\nb: a\n").replace("c d:", "\nc d:"),
    ],
)
def test_changed_rule_runs_with_those_behind(text):
    assert set(names_to_run(text)) >= {"b", "c"}
    assert "a" not in names_to_run(text)


def test_batch_options_do_not_count():
    assert names_to_run(f"export BATCH_OPTIONS = -p other\n{TEXT}") == {}


RECORDS = st.builds(
    Record, st.text(), st.text(), st.dictionaries(st.text(), st.text()), st.dictionaries(st.text(), st.text())
)


@given(st.lists(RECORDS, max_size=5), st.data())
def test_cut_log_keeps_whole_lines(records, data):
    """A killed process leaves the beginning of what it has written."""
    lines = [encode_record(record) for record in records]
    cut = data.draw(st.integers(0, sum(map(len, lines))))
    whole = sum(len("".join(lines[: n + 1])) <= cut for n in range(len(lines)))
    assert decode_records("".join(lines)[:cut]) == {record.rule: record for record in records[:whole]}


@given(st.text())
def test_other_text_has_no_records(text):
    assert decode_records(f"{text}\n[1]\n{{}}\nnull\n") == {}


def test_log_continues_after_torn_line(tmp_path):
    path, record = str(tmp_path / "log"), Record("a", "1", {}, {"a": "2"})
    with RunLog(path) as log:
        log.append(record)
    with open(path, "a") as file:
        file.write('{"rule": "b", "dig')
    other = dataclasses.replace(record, rule="c")
    with RunLog(path) as log:
        assert log.records == {"a": record}
        log.append(other)
        with pytest.raises(BlockingIOError):
            RunLog(path)
    with RunLog(path) as log:
        assert log.records == {"a": record, "c": other}


def test_stamp_changes_with_files_in_folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/file").write_text("1")
    before = stamp_path(str(folder))
    assert stamp_path(str(folder)) == before
    os.utime(folder / "sub/file", ns=(1, 1))
    assert stamp_path(str(folder)) != before
    assert stamp_path(str(tmp_path / "none")) == ""
