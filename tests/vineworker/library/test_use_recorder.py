"""Each use of a resource beside the arguments of a call is recorded, and nothing else."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback

import numpy as np
import pytest
from vineworker.library import use_recorder
from vineworker.machine.tmpdir import TMPDIR_NAME
from vineworker.slot_protocol import Call

from vinecore.protocol import used_resources
from vinecore.protocol.serialization import values

NAMED = "the result names a temporary file"
SPACE = {"__name__": "vineworker.library.slot"}
exec(compile("def run(function): return function()", "<slot>", "exec"), SPACE)
RUN = SPACE["run"]
"""Calls a function as a slot does, so that modules of this test do not count as callers."""


def record(*functions, payload=b"", shared=(), prepare=lambda: None):
    """Call functions one after another in a process that records; return the uses of each."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        answer = {}
        try:
            prepare()
            found = []
            for number, function in enumerate(functions):
                call = Call(number, "function", list(shared), [], "", "", {}, payload)
                recorder = use_recorder.begin_call(call)
                result = RUN(function)
                uses = recorder.end_call(call, {})
                found.append([*uses, *(NAMED for _ in recorder.find_temporary_name(values.dump(result)))])
            answer = {"found": found}
        except BaseException:  # noqa: BLE001 - the parent shows it
            answer = {"error": traceback.format_exc()}
        finally:
            os.write(write, json.dumps(answer).encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = json.load(pipe)
    os.waitpid(pid, 0)
    assert "error" not in answer, answer["error"]
    return [set(uses) for uses in answer["found"]]


def uses_of(function):
    return record(function)[0]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data"
    path.write_text("one")
    return path


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return the name of a module of the user that reads a file when it is imported."""
    (tmp_path / "cuts.json").write_text("1")
    path = tmp_path / "module_with_a_read.py"
    path.write_text(f"CUT = open({str(tmp_path / 'cuts.json')!r}).read()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return path.stem


def test_a_pure_function_uses_nothing():
    assert uses_of(lambda: sum(range(100))) == set()


# ---- files are recorded


@pytest.mark.parametrize(
    "read",
    [
        lambda path: path.read_text(),
        lambda path: os.read(os.open(path, os.O_RDONLY), 10),
        os.path.getsize,
        lambda path: path.exists(),
    ],
    ids=["opened by Python", "opened by a descriptor", "size", "existence"],
)
def test_a_file_is_recorded_with_its_state(file, read):
    assert uses_of(lambda: read(file)) == {used_resources.describe_file(str(file))}


def test_a_missing_file_is_recorded_as_missing(file):
    place = str(file) + ".missing"
    assert uses_of(lambda: os.path.exists(place)) == {
        used_resources.SEPARATOR.join(("file", place, used_resources.MISSING))
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("two"),
        lambda path: os.open(path, os.O_WRONLY | os.O_APPEND),
        lambda path: path.unlink(),
        lambda path: path.rename(path.with_name("other")),
        lambda path: path.with_name("folder").mkdir(),
    ],
    ids=["written", "opened to append", "removed", "renamed", "folder made"],
)
def test_a_change_of_a_file_is_recorded(file, change):
    assert used_resources.WRITTEN in uses_of(lambda: change(file))


def test_a_database_is_recorded_with_its_state(file):
    place = str(file.with_name("base"))
    sqlite3.connect(place).close()
    assert used_resources.describe_file(place) in uses_of(lambda: sqlite3.connect(place).close())


def test_standard_library_files_are_not_recorded():
    """Files of the standard library are not recorded."""
    assert uses_of(lambda: open(os.__file__, "rb").close()) == set()


@pytest.mark.parametrize("path", ["/proc/self/stat", "/dev/urandom"])
def test_a_read_of_the_kernel_is_unseen(path):
    assert used_resources.UNSEEN in uses_of(lambda: os.read(os.open(path, os.O_RDONLY), 4))


def test_a_read_behind_python_is_unseen(file):
    descriptor = os.open(file, os.O_RDONLY)
    assert uses_of(lambda: os.read(descriptor, 3)) == {used_resources.UNSEEN}


@pytest.mark.parametrize(
    "names", [os.listdir, lambda path: len(list(os.scandir(path)))], ids=["listdir", "scandir"]
)
def test_a_listing_is_recorded_with_its_names(file, names):
    folder = str(file.parent)
    assert uses_of(lambda: names(folder)) == {used_resources.describe_listing(folder)}


# ---- imports are recorded


def test_imported_user_module_is_recorded(module, tmp_path):
    """An imported user module is recorded with its reads."""
    uses = uses_of(lambda: importlib.import_module(module))
    assert {
        used_resources.describe_file(str(tmp_path / name)) for name in (f"{module}.py", "cuts.json")
    } <= uses


def test_an_imported_package_is_not_recorded():
    """A module of the environment is no use, though its import reads a file."""

    def import_package():
        sys.modules.pop("colorsys", None)
        importlib.import_module("colorsys")

    assert uses_of(import_package) == set()


def test_reimport_in_later_call_adds_reads(module, tmp_path):
    """A later call that imports the module again uses its reads."""
    cuts = used_resources.describe_file(str(tmp_path / "cuts.json"))
    _first, again, other = record(
        lambda: importlib.import_module(module), lambda: importlib.import_module(module), lambda: None
    )
    assert cuts in again
    assert cuts not in other


def test_naming_module_in_later_call_adds_reads(module, tmp_path):
    """A later call that names the module uses its reads."""
    cuts = used_resources.describe_file(str(tmp_path / "cuts.json"))
    _first, later = record(lambda: importlib.import_module(module), lambda: None, payload=module.encode())
    assert cuts in later


def test_same_shared_object_adds_reads(file):
    """A function of the script has no module that may keep its reads; an object that it shares may."""
    shared = file.parent / "objects" / "shared"
    shared.parent.mkdir()
    shared.write_text("shared")
    space = {"__name__": "__main__", "path": str(file)}
    exec(compile("def read(): open(path).close()\ndef other(): pass", "<cell>", "exec"), space)
    read = used_resources.describe_file(str(file))
    calls = [space["read"], space["other"]]
    assert [read in uses for uses in record(*calls, shared=[("shared", str(shared))])] == [True, True]
    assert [read in uses for uses in record(*calls)] == [True, False]


# ---- environment are recorded


def test_a_variable_is_recorded_with_its_value(monkeypatch):
    monkeypatch.setenv("ERA", "2018")
    assert uses_of(lambda: os.environ["ERA"]) == {used_resources.describe_variable("ERA", "2018")}


def test_an_unset_variable_is_recorded_as_unset(monkeypatch):
    monkeypatch.delenv("ERA", raising=False)
    assert uses_of(lambda: os.environ.get("ERA")) == {used_resources.describe_variable("ERA", None)}


def test_variable_of_process_is_not_recorded():
    """A variable of the process is not recorded."""
    assert uses_of(lambda: (os.environ.get("PATH"), os.environ.get("PYTHONPATH"))) == set()


def test_listing_variables_records_environment():
    """The names of all variables are the environment."""
    assert uses_of(lambda: list(os.environ)) == {used_resources.ENVIRONMENT}


# ---- time, process, entropy


@pytest.mark.parametrize(
    "ask",
    [
        lambda: time.time(),  # noqa: PLW0108 - looked up when it is replaced
        lambda: time.monotonic_ns(),  # noqa: PLW0108 - looked up when it is replaced
        lambda: os.getpid(),  # noqa: PLW0108 - looked up when it is replaced
        lambda: os.uname(),  # noqa: PLW0108 - looked up when it is replaced
        lambda: os.urandom(8),
        random.Random,
        random.random,
    ],
    ids=["time", "clock", "process", "machine", "entropy", "unseeded generator", "shared generator"],
)
def test_a_question_with_changing_answers_is_random(ask):
    assert uses_of(ask) == {used_resources.RANDOM}


def test_a_seeded_generator_is_not_recorded():
    assert uses_of(lambda: random.Random(1).random()) == set()


def test_package_reading_clock_is_not_recorded():
    """A package that asks for the time is not recorded."""
    import logging

    assert uses_of(lambda: logging.LogRecord("name", 10, "file", 1, "text", (), None)) == set()


def test_a_started_process_is_recorded():
    assert used_resources.PROCESS in uses_of(lambda: subprocess.run(["true"], check=True))


def test_cancelled_call_leaves_reads_to_later(module, tmp_path):
    """A cancelled call leaves its reads to later ones."""
    cuts = used_resources.describe_file(str(tmp_path / "cuts.json"))

    def fail():
        call = Call(0, "function", [], [], "", "", {}, b"")
        use_recorder.begin_call(call)
        importlib.import_module(module)
        use_recorder.cancel_call(call)

    assert cuts in record(lambda: importlib.import_module(module), prepare=fail)[0]


# ---- temporary files


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Have this process use a temporary folder like that of a slot."""
    folder = tmp_path / TMPDIR_NAME / "0"
    folder.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def write_and_read(path):
    with open(path, "w") as file:
        file.write("x")
    with open(path) as file:
        return file.read()


def use_folder():
    with tempfile.TemporaryDirectory() as folder:
        return write_and_read(f"{folder}/new")


@pytest.mark.parametrize(
    "scratch",
    [
        lambda: tempfile.NamedTemporaryFile().close(),
        lambda: tempfile.TemporaryFile().close(),
        use_folder,
        lambda: write_and_read(tempfile.mkstemp()[1]),
        lambda: write_and_read(tempfile.mktemp()),
    ],
    ids=["file", "unnamed file", "folder", "file that stays", "file by its name"],
)
def test_a_temporary_file_is_not_recorded(temporary, scratch):
    assert record(scratch, scratch) == [set(), set()]


@pytest.mark.parametrize("place", ["there", "elsewhere"])
@pytest.mark.parametrize("form", [str, os.path.basename, pathlib.Path, np.array])
@pytest.mark.parametrize(
    "make",
    [
        lambda folder: tempfile.mktemp(dir=folder),
        lambda folder: tempfile.mkdtemp(dir=folder),
        lambda folder: tempfile.mkstemp(dir=folder)[1],
        lambda folder: tempfile.NamedTemporaryFile(dir=folder).name,
    ],
    ids=["mktemp", "mkdtemp", "mkstemp", "NamedTemporaryFile"],
)
def test_result_naming_temporary_file_is_found(temporary, tmp_path, make, form, place):
    """A result that names a temporary file is found."""
    folder = None if place == "there" else str(tmp_path)
    for uses in record(lambda: form(make(folder)), lambda: {"in": [form(make(folder))]}):
        assert uses == {NAMED}


def test_result_naming_temporary_folder_is_found(temporary):
    """A result that names the temporary folder is found."""
    assert uses_of(lambda: os.path.join(tempfile.gettempdir(), "new")) == {NAMED}
    assert record(tempfile.gettempdir, lambda: f"{temporary}/new")[1] == {NAMED}


def test_user_temporary_folder_may_be_named(tmp_path, monkeypatch):
    """A temporary folder of the user may be named."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert uses_of(tempfile.gettempdir) == set()
