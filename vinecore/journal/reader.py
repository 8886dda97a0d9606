"""Finding and reading journals.

Examples
--------
>>> for record in read("vine-run-info"):  # doctest: +SKIP
...     if isinstance(record, TaskDone):
...         print(record.task, record.worker, record.wall_s)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Union

import msgspec

from vinecore.journal.records import FILE, MOST_RECENT, RECORDS, VERSION, Header, Record, record_kind

decode_record = msgspec.json.Decoder(Union[RECORDS]).decode  # noqa: UP007 - there is no other way to spell it


class InvalidJournalError(ValueError):
    """The file is not a journal, or a journal of another version."""


def find(path: str | Path) -> Path:
    """Return the path of a journal.

    Parameters
    ----------
    path
        The file, its folder, or a ``run_info_path``, which stands for the most recent run.

    Raises
    ------
    FileNotFoundError
        There is no journal.
    """
    path = Path(path)
    if path.is_file():
        return path
    for place in (path / FILE, path / MOST_RECENT / FILE):
        if place.is_file():
            return place
    why = "there is no journal in it" if path.is_dir() else "it does not exist"
    msg = f"{path}: {why}. A manager writes one if it is told where: DaskVine(run_info_path='vine-run-info')"
    raise FileNotFoundError(msg)


def read(
    path: str | Path, *kinds: type[Record], damaged: Callable[[int, str], None] | None = None
) -> Iterator[Record]:
    """Yield the records of a journal in their order, as far as they are written.

    The manager may still be writing, or have died while it did: half a line at the end is left out.

    Parameters
    ----------
    path
        As for `find`.
    *kinds
        The kinds of records to yield beside the first one; all if there are none. Skipping the
        others is fast.
    damaged
        Called with the number of each line that is not a record, and the reason; such lines are
        skipped. None makes them an error.

    Raises
    ------
    FileNotFoundError
        There is no journal.
    InvalidJournalError
        It is something else, or has another version, or a line is damaged and ``damaged`` is None.
    """
    path = find(path)
    wanted = tuple(b'{"kind":"%s"' % record_kind(kind.__name__).encode() for kind in kinds) or b""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            if number == 1:
                yield _parse_header(line, path)
                continue
            if not line.startswith(wanted):
                continue
            try:
                yield decode_record(line)
            except (ValueError, RecursionError) as error:
                what = f"line {number} is not a record of a journal ({error}): {line[:100]!r}"
                if damaged is None:
                    msg = f"{path}, {what}"
                    raise InvalidJournalError(msg) from None
                damaged(number, what)


def _parse_header(line: bytes, path: Path) -> Header:
    said: Any = None
    try:
        said = msgspec.json.decode(line)
        # the first record was of the kind "journal" before version 3
        version = said["version"] if said["kind"] in ("header", "journal") else None
        header = decode_record(line) if version == VERSION else None
    except (ValueError, LookupError, TypeError, RecursionError):
        version = header = None
    if isinstance(header, Header):
        return header
    if version is None or version == VERSION:
        msg = f"{path} is not a journal: its first line is {line[:100]!r}"
        raise InvalidJournalError(msg)
    msg = f"{path} is a journal of version {str(version)[:100]}, and this daskvine reads version {VERSION}: read it with the daskvine that wrote it ({str(said.get('daskvine', 'unknown'))[:100]})"
    raise InvalidJournalError(msg)
