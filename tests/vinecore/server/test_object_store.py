"""What the manager holds, without a manager."""

from __future__ import annotations

import os

import pytest

from vinecore.protocol import INLINE_LIMIT
from vinecore.server.object_store import ObjectStore


@pytest.fixture
def news():
    return []


@pytest.fixture
def store(tmp_path, monkeypatch, news):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = ObjectStore(lambda *what: news.append(what))
    yield store
    store.close()
    assert not [name for name in os.listdir(tmp_path) if name.startswith("vine-manager-")]


def brought(store, name, data=b"data"):
    """Have a worker bring an object."""
    path = store.temporary(name)
    with open(path, "wb") as file:
        file.write(data)
    store.store(name, path, "digest")
    return path


def test_uploaded_object_is_found_and_reported(store, news):
    """What a worker brings is found and told."""
    path = brought(store, "result")
    assert store.find_object("result") == path
    assert news == [("result", 4, "digest")]
    store.remove("result")
    assert store.find_object("result") is None
    assert not os.path.exists(path)


def test_declared_object_goes_with_last_declaration(store):
    """What the user has declared is forgotten only when all declarations are taken back."""
    assert store.declare("buffer", b"x")
    assert not store.declare("buffer", b"x")
    store.release("buffer")
    store.remove("buffer")
    assert store.find_object("buffer") == b"x"
    store.release("buffer")
    store.remove("buffer")
    assert store.find_object("buffer") is None


def test_late_removal_spares_new_declaration(store):
    """A late order to forget does not take what was declared anew."""
    store.declare("buffer", b"x")
    store.release("buffer")  # the engine is told, and takes its time
    assert store.declare("buffer", b"x")
    store.remove("buffer")
    assert store.find_object("buffer") == b"x"


def test_the_users_own_files_are_never_removed(store, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(INLINE_LIMIT + 1))
    store.declare("file", str(path))
    store.release("file")
    store.remove("file")
    assert path.exists()


def test_changed_large_file_is_withheld(store, tmp_path, caplog):
    """A large file that has changed is not given away."""
    path = tmp_path / "file"
    path.write_bytes(bytes(INLINE_LIMIT + 1))
    store.declare("file", str(path))
    assert store.find_object("file") == str(path)
    path.write_bytes(bytes(INLINE_LIMIT + 2))
    assert store.find_object("file") is None
    path.unlink()
    assert store.find_object("file") is None
    assert "has been changed or removed" in caplog.text


def test_output_is_placed_where_wanted(store, tmp_path, news):
    """An output is put where the user wants it."""
    place = tmp_path / "new" / "place"
    store.set_destination("out", str(place))
    brought(store, "out")
    assert place.read_bytes() == b"data"
    assert [path.name for path in place.parent.iterdir()] == ["place"]
    store.remove("out")
    assert place.exists()
    assert store.undelivered == {}


def test_unplaceable_output_is_kept_and_reported(store, tmp_path):
    """An output that cannot be put there is kept and said so."""
    (tmp_path / "file").touch()
    store.set_destination("out", str(tmp_path / "file" / "below"))
    path = brought(store, "out")
    assert store.find_object("out") == path
    assert "cannot be written" in store.undelivered["out"]


def test_program_travels_as_file(store, news):
    """The size of a program is not told so that it travels as a file."""
    path = store.temporary("program")
    with open(path, "wb") as file:
        file.write(b"#!/bin/sh\n")
    os.chmod(path, 0o755)
    store.store("program", path, "digest")
    assert news == [("program", -1, "digest")]


def test_what_comes_after_the_end_is_dropped(store, news):
    path = brought(store, "before")
    store.close()
    assert not os.path.exists(path)
    assert store.find_object("before") is None
    late = store.folder + "-late"
    with open(late, "wb"):
        pass
    store.store("late", late, "digest")
    assert not os.path.exists(late)
    assert [name for name, _size, _digest in news] == ["before"]
