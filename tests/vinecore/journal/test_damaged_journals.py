"""A journal that is damaged, in whatever way, costs time: what is sound is gone on with, and a report says what is not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.processes import wait_for_task
from vinecore import Task, journal
from vinecore.journal import records as j
from vinecore.journal.previous_session import find_previous_session
from vinecore.report.cli import main

HERE = socket.gethostname()
LARGE = 1 << 20
encode = msgspec.json.Encoder().encode_lines
DEEP = b"[" * 200_000
WRONG = [
    {"kind": "journal"}, {"kind": "task_done", "t": "x"}, {"kind": "task_done", "t": 1, "task": [], "worker": {}, "wall_s": None}, [], 5, None, "text",
    {"kind": "worker_joined", "t": 1e300, "worker": 10**40, "host": 5}, {"kind": "files_found", "t": 1, "worker": 1, "files": ["a"], "sizes": []},
    {"kind": "worker_joined", "t": 1, "worker": 9, "host": HERE, "address": "", "python": "", "cores": 1, "memory_mb": 1, "disk_mb": 1, "pid": 10**30},
    {"kind": "task_done", "t": 1, "task": 1, "worker": 1, "wall_s": 1e308, "size": 1 << 80}, {"kind": "task_submitted", "t": -1e308, "task": 1, "label": ""},
    {"kind": "closed", "t": "soon"}, {"t": 1}, {"kind": ["closed"], "t": 1},
]  # fmt: skip
LINES = [json.dumps(value).encode() for value in WRONG] + [
    DEEP,
    b'{"kind":"task_done","t":' + DEEP,
    b"\xff\xfe",
    b'"\\ud800"',
    b"9" * 5000,
    b"\0" * 50,
]


def header(pid, **about):
    known = {
        "time": 1.0,
        "host": HERE,
        "pid": pid,
        "manager": "m",
        "port": 0,
        "daskvine": "0",
        "python": "3",
        "packages": {},
        "session": "5e551234",
        **about,
    }
    return j.Header(0.0, journal.VERSION, **known)


def records():
    yield j.WorkerConnectedRecord(0.1, 1, "elsewhere", "127.0.0.1", "3.11", 4, 1000, 1000, pid=17)
    yield j.LibraryInstalledRecord(0.2, "lib", "lib", 4, 4.0)
    yield j.LibraryStartedRecord(0.2, "lib", 1, 4, 4.0)
    yield j.LibraryReadyRecord(0.5, "lib", 1, 0.3)
    yield j.GraphOpenedRecord(0.6, 1, "graph")
    for number in range(1, 9):
        yield j.TaskSubmittedRecord(
            0.7, number, f"t{number}", graph=1, library="lib", result=f"r{number}", cores=1.0
        )
        yield j.TaskDispatchedRecord(0.8, number, 1, cores=1.0)
        yield j.TaskDoneRecord(
            1.0 + number, number, 1, 0.5, LARGE, digest=f"{number}", outputs={f"o{number}": 5}
        )
    yield j.FileDeclaredRecord(2.0, "small", 5, at_manager=True)
    yield j.TransferStartedRecord(3.0, "large", "manager", 1)
    yield j.TransferEndedRecord(4.0, "large", "manager", 1, LARGE, 1.0, "56")
    yield j.TransferFailedRecord(5.0, "lost", 1, 2, 1.0, "it broke")
    yield j.FilesFoundRecord(6.0, 1, ("x",), (5,))
    yield j.GraphEndedRecord(12.0, 1, "success")
    yield j.StalledRecord(13.0, "no worker")
    yield j.WorkerDisconnectedRecord(20.0, 1, "it broke")


@pytest.fixture(scope="module")
def dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture(scope="module")
def sound(dead):
    """The lines of a journal."""
    return encode([header(dead), *records()]).splitlines(keepends=True)


def known_by(data):
    """What a manager goes on with that finds this journal, and what a report says of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run" / journal.FILE
        path.parent.mkdir()
        path.write_bytes(data)
        past = find_previous_session(Path(folder), "m")
        said = CliRunner().invoke(main, [str(path)])
        assert said.exception is None or isinstance(said.exception, SystemExit), said.exception
        return (set() if past is None else past.results), said.output


OPERATIONS = {
    "flip": lambda data, at, byte: data[:at] + bytes([data[at] ^ (byte or 1)]) + data[at + 1 :],
    "set": lambda data, at, byte: data[:at] + bytes([byte]) + data[at + 1 :],
    "remove": lambda data, at, _byte: data[:at] + data[at + 1 :],
    "insert": lambda data, at, byte: data[:at] + bytes([byte]) + data[at:],
    "cut": lambda data, at, _byte: data[:at],
    "lose the beginning": lambda data, at, _byte: data[at:],
    "zeros": lambda data, at, _byte: data[:at] + bytes(64) + data[at + 64 :],
}


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(OPERATIONS)),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 255) | st.sampled_from(list(b'\n"{}[],:\\09-e')),
)
def test_damaged_byte_costs_its_lines_only(sound, operation, where, byte):
    """Damage in any byte costs no more than its lines."""
    data = b"".join(sound)
    at = int(where * len(data))
    damaged = OPERATIONS[operation](data, at, byte)
    results, _said = known_by(damaged)
    if damaged.startswith(sound[0]) and operation in ("flip", "set", "remove", "insert"):
        whole = damaged.splitlines(keepends=True)
        for number in range(1, 9):
            own = [line for line in sound if b'"task":%d,' % number in line]
            if all(line in whole for line in own):
                assert (f"r{number}", LARGE, str(number)) in results


@pytest.mark.parametrize("line", LINES, ids=lambda line: repr(line[:30]))
@pytest.mark.parametrize("place", [0, 1, 9, -1])
def test_odd_line_is_skipped_and_named(sound, line, place):
    """A line of whatever kind is passed over and named."""
    lines = list(sound)
    lines.insert(place if place >= 0 else len(lines), line + b"\n")
    results, said = known_by(b"".join(lines))
    if place == 0:
        assert not results
        assert "is not a journal" in said
    else:
        assert {name for name, _size, _digest in results} >= {f"r{number}" for number in range(2, 9)}
        if line not in (LINES[8], LINES[11]):  # which are records, of something odd
            assert "of the journal are damaged, and left out: 1" in said
            assert f"line {place + 1 if place > 0 else len(lines)}" in said


@pytest.mark.parametrize(
    "about",
    [{"resumes": "\0"}, {"resumes": "x" * 10_000}, {"resumes": "/"}, {"resumes": "/dev/zero"}, {"session": "*"}, {"session": "../.."}, {"host": ""},
     {"time": 1e11}, {"port": 65535}],
    ids=repr,
)  # fmt: skip
def test_odd_first_line_is_still_read(sound, dead, about):
    """A first line with odd things in it is taken for what it is."""
    results, _said = known_by(encode([header(dead, **about)]) + b"".join(sound[1:]))
    assert len(results) == 18


@pytest.mark.parametrize(
    "about",
    [{"pid": 10**30}, {"pid": -5}, {"port": 70_000}, {"time": 1e300}, {"time": -1.0}, {"version": [1]}],
    ids=repr,
)
def test_impossible_first_line_is_no_journal(sound, about):
    """A first line that cannot be is none."""
    said = {**msgspec.json.decode(sound[0]), **about}
    results, text = known_by(json.dumps(said).encode() + b"\n" + b"".join(sound[1:]))
    assert not results
    assert "journal" in text


def test_damaged_field_name_gets_no_default(sound):
    """A field whose name is damaged does not silently have its default."""
    made = (
        j.TaskSubmittedRecord(0.7, 9, "t9", result="r9"),
        j.TaskDoneRecord(1.0, 9, 1, 0.5, 10, single_use=True),
    )
    line = encode(made)
    assert line.count(b"single_use") == 1
    for damaged in (line, line.replace(b"single_use", b"singlf_use"), line.replace(b"single_use", b"")):
        results, _said = known_by(b"".join(sound) + damaged)
        assert "r9" not in {name for name, _size, _digest in results}


def test_tasks_with_same_number_have_no_results(sound):
    """Two tasks with one number have no results."""
    odd = encode([j.TaskSubmittedRecord(0.6, 3, "t33", result="r33")])
    for place in (1, 10):
        lines = [*sound[:place], odd, *sound[place:]]
        names = {name for name, _size, _digest in known_by(b"".join(lines))[0]}
        assert not names & {"r3", "r33"}
        assert "r4" in names


def test_circular_continuations_are_read_once(tmp_path, sound, dead):
    """Journals that go on from each other in a circle are read once."""
    paths = [tmp_path / name / journal.FILE for name in ("one", "two")]
    for path, other in (paths, paths[::-1]):
        path.parent.mkdir()
        path.write_bytes(encode([header(dead, resumes=str(other))]) + b"".join(sound[1:]))
    assert len(find_previous_session(tmp_path, "m").sessions) == 2


def test_foreign_objects_are_skipped(tmp_path, sound):
    """What is in the place of a journal is passed over."""
    for name, make in {
        "folder": lambda path: path.mkdir(), "pipe": os.mkfifo, "circle": lambda path: path.symlink_to(path.name), "nowhere": lambda path: path.symlink_to("x"),
        "empty": lambda path: path.touch(),
    }.items():  # fmt: skip
        (tmp_path / name).mkdir()
        make(tmp_path / name / journal.FILE)
    assert find_previous_session(tmp_path, None) is None
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound" / journal.FILE).write_bytes(b"".join(sound))
    assert len(find_previous_session(tmp_path, None).results) == 18


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2] + b"\xff" + data[len(data) // 2 :], lambda data: b"\0" + data, lambda _data: b"",
                                    lambda data: data + DEEP + b"\n"], ids=["middle", "beginning", "empty", "deep"])  # fmt: skip
def test_manager_starts_with_damaged_journal(local_cluster, sound, damage):
    """A manager begins whatever has become of the journal."""
    info = local_cluster.path("info")
    path = info / "run" / journal.FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(damage(b"".join(sound)))
    m = local_cluster.start_manager(name="m", run_info_path=info, resume=True)
    local_cluster.start_worker(m)
    m.submit(Task("echo on"))
    assert wait_for_task(m).output == "on\n"


@pytest.mark.parametrize("name", ["x" * 5000, "file/below", "pipe"])
def test_manager_starts_without_possible_journal(local_cluster, name):
    """A manager begins where there can be no journals."""
    local_cluster.path("file").touch()
    os.mkfifo(local_cluster.path("pipe"))
    m = local_cluster.start_manager(name="m", run_info_path=local_cluster.path(name), resume=True)
    assert (m.resumed_from, m.journal) == (None, None)
