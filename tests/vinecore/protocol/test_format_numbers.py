"""What two versions of daskvine would understand differently has another number."""

from __future__ import annotations

import hashlib
import typing

import msgspec

from vinecore.journal import records
from vinecore.protocol import VERSION, messages

PROTOCOL = {8: "caf4ac0f6f03beb3"}
"""The digest of the kinds of messages and their fields, by the number of the protocol."""
JOURNAL = {3: "edad283962f86f80"}
"""The digest of the kinds of records and their fields, by the version of the journal."""
REMEDY = "what is said or written has changed: raise the number, which has old ends refused and old files set aside, and enter it here"


def digest(kinds):
    text = "\n".join(sorted(f"{kind} {fields}" for kind, fields in kinds))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_other_messages_are_another_protocol():
    kinds = typing.get_args(messages.Message)
    assert set(kinds) == {*messages.FROM_MANAGER, *messages.FROM_WORKER}
    found = digest((kind.__name__, list(kind._fields)) for kind in kinds)
    assert {VERSION: found} == PROTOCOL, REMEDY


def test_changed_records_need_new_version():
    """Other records are another version of the journal."""
    kinds = [
        (kind.__struct_config__.tag, [field.encode_name for field in msgspec.structs.fields(kind)])
        for kind in vars(records).values()
        if isinstance(kind, type) and issubclass(kind, records.Record)
    ]
    assert {records.VERSION: digest(kinds)} == JOURNAL, REMEDY
