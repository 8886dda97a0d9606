"""Conditions on the fields of records."""

from __future__ import annotations

import pytest

from vinecore.discovery.record_filter import RecordFilter

RECORD = {"workers": 4, "owner": "me", "ssl": True, "tags": ["a", "b"], "idle": 0}


@pytest.mark.parametrize(
    "text",
    [
        "workers == 4",
        "workers > 3 && owner == 'me'",
        'workers > 9 || owner == "me"',
        "!idle && ssl == true",
        "not (workers != 4)",
        "1 < workers <= 4",
        "workers * 2 - 1 == 7 and workers % 3 == 1 and -workers < 0",
        "'a' in tags and owner in ['me', 'you']",
        'owner != "a && b || !c"',
    ],
)
def test_record_meets_the_condition(text):
    assert RecordFilter(text).matches(RECORD)


@pytest.mark.parametrize(
    "text", ["workers < 4", "nothing > 1", "owner > 1", "workers / idle > 1", "nothing", "'x' * 9999 == 1"]
)
def test_record_does_not_meet_it(text):
    assert not RecordFilter(text).matches(RECORD)


@pytest.mark.parametrize(
    "text",
    ["", "workers ==", "__import__('os')", "owner.upper() == 'ME'", "tags[0] == 'a'", "(lambda: 1)()", "9 ** 9",
     "[x for x in tags]", "1 if workers else 2", "!" * 60 + "workers", "1 +" * 6000],
)  # fmt: skip
def test_other_expressions_are_refused(text):
    with pytest.raises(ValueError, match="is no condition"):
        RecordFilter(text)
