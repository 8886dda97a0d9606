"""Own modules are imported after the fork, from what was compiled before it, as long as that is what their files say."""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import os
import sys

import pytest
from vineworker.library import fresh_imports, use_recorder

NAME = "imported_after_the_fork"


@pytest.fixture
def path(monkeypatch, tmp_path):
    """Where the module is; what was written is taken for settled at once."""
    loader = importlib.machinery.SourceFileLoader
    for name in ("get_data", "get_code"):  # are put back
        monkeypatch.setattr(loader, name, getattr(loader, name))
    for name, value in (("_compiled", {}), ("_loaded", {}), ("MIN_AGE_NS", 0)):
        monkeypatch.setattr(fresh_imports, name, value)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    fresh_imports.wrap_loader()
    return tmp_path / f"{NAME}.py"


def write(path, value):
    path.write_text(f"import os\nMAKER = os.getpid()\nVALUE = {value!r}\n")


def compiled(path):
    return fresh_imports.compile_sources([str(path)])


def import_in_fork(*, recorded=False):
    """Import the module in a process of its own: what it is there, and what that process had to read, compile and load."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        seen = []

        def hear(event, arguments):
            if event in ("open", "compile") and str(arguments[event == "compile"]).endswith(f"{NAME}.py"):
                seen.append(event)

        try:
            if recorded:
                use_recorder.start_recording()
            sys.addaudithook(hear)
            try:
                module = importlib.import_module(NAME)
                found = {"value": module.VALUE, "own": os.getpid() == module.MAKER}
            except (SyntaxError, SyntaxWarning) as error:
                found = {"error": type(error).__name__}
            os.write(
                write,
                json.dumps({**found, "seen": seen, "loaded": fresh_imports.list_loaded_sources()}).encode(),
            )
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        found = json.load(answer)
    os.waitpid(pid, 0)
    return found


def test_module_is_compiled_before_fork_only(path):
    """A module is compiled before the fork and runs after it."""
    write(path, 1)
    first = import_in_fork()
    assert first == {"value": 1, "own": True, "seen": ["open", "compile"], "loaded": [str(path)]}
    assert fresh_imports.compile_sources(first["loaded"])
    assert import_in_fork() == {"value": 1, "own": True, "seen": [], "loaded": []}
    assert NAME not in sys.modules


def test_it_is_compiled_once(path):
    write(path, 1)
    assert compiled(path)
    assert not compiled(path)


def test_edit_of_equal_length_is_noticed(path):
    """An edit of the same length counts at once."""
    write(path, 1)
    assert compiled(path)
    write(path, 2)
    edited = import_in_fork()
    assert (edited["value"], edited["loaded"]) == (2, [str(path)])
    assert fresh_imports.compile_sources(edited["loaded"])
    assert import_in_fork() == {"value": 2, "own": True, "seen": [], "loaded": []}


def test_replaced_file_with_equal_times_is_noticed(path, tmp_path):
    """Another file in its place counts even with the same times."""
    write(path, 1)
    about = os.stat(path)
    assert compiled(path)
    other = tmp_path / "other"
    write(other, 2)
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    os.replace(other, path)
    assert import_in_fork()["value"] == 2


def test_freshly_written_file_is_not_trusted(path, monkeypatch):
    """A file that has just been written is not believed."""
    monkeypatch.setattr(fresh_imports, "MIN_AGE_NS", 3600 * 10**9)
    write(path, 1)
    assert not compiled(path)
    assert import_in_fork()["seen"] == ["open", "compile"]


@pytest.mark.parametrize("text", ["VALUE = (", "VALUE, MAKER = 1 is 1, 0\n"], ids=["error", "warning"])
def test_compiler_warnings_appear_at_import(path, text):
    """What the compiler says is said where the module is imported."""
    path.write_text(text)
    assert not compiled(path)
    assert "compile" in import_in_fork()["seen"]


def test_missing_file_is_left_to_importer(path):
    """A file that is gone is left to who imports it."""
    assert not compiled(path)


def test_recorded_call_imports_from_file(path):
    """What a recorded call imports is read from its file."""
    write(path, 1)
    assert compiled(path)
    assert import_in_fork(recorded=True)["seen"] == ["open", "compile"]


def test_what_is_compiled_is_bounded(path, monkeypatch, tmp_path):
    monkeypatch.setattr(fresh_imports, "MAX_COMPILED", 3)
    for number in range(10):
        one = tmp_path / f"one{number}.py"
        write(one, number)
        assert compiled(one)
        assert len(fresh_imports._compiled) <= 3
