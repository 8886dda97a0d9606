"""What a worker keeps beyond a manager and beyond itself, without a worker."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading

import pytest
from vineworker.storage.cache_directory import RECORD_FORMAT, open_cache_directory
from vineworker.storage.persistent_cache import PersistentCache

from tests.harness.processes import PATIENCE_S, wait_until
from vinecore.protocol.transfer import digests

SECRET = b"secret"
MB = 1 << 20


class Shelf:
    """A keeper of forever things over a folder, and what it has said."""

    def __init__(self, workspace, limit=10 * MB, secret=SECRET):
        self.keeper = PersistentCache(
            str(workspace / "worker"), limit, open_cache_directory(str(workspace), secret)
        )
        self.said = []
        self.is_all = False
        self.known, is_all = self.keeper.subscribe(self.hear)
        self.is_all = self.is_all or is_all

    def hear(self, what, kept):
        if kept is None:
            self.is_all = True
        else:
            self.said.append((what, kept.name))

    def keep(self, name, content, forever=True):
        self.keeper.persist(name, content, forever=forever)
        self.rest()

    def rest(self):
        """Wait until it has done all that it was asked for."""
        done = threading.Event()
        self.keeper.run_after_pending(done.set)
        assert done.wait(PATIENCE_S)

    def found(self, count):
        """Wait until so many old objects are found; give all names."""
        names = lambda: {kept.name for kept in self.known} | {n for what, n in self.said if what == "found"}  # noqa: E731
        return wait_until(lambda: len(names()) >= count and names(), f"{count} to be found")

    def close(self):
        self.keeper.close()
        self.keeper._thread.join(PATIENCE_S)


@pytest.fixture
def shelf(tmp_path):
    shelves = []

    def open_(**more):
        shelves.append(Shelf(tmp_path, **more))
        return shelves[-1]

    yield open_
    for one in shelves:
        if one.keeper._thread is not None:
            one.close()


def home(tmp_path, part):
    return sorted((tmp_path / "vine-kept").glob(f"*/{part}/*"))


def test_it_says_when_that_is_all(tmp_path, shelf):
    first = shelf()
    first.keep("one", b"1")
    first.keep("two", b"2")
    first.close()
    second = shelf()
    wait_until(lambda: second.is_all, "all to be told")
    assert {kept.name for kept in second.known} | {name for _what, name in second.said} == {"one", "two"}


def text_of(kept):
    with open(kept.path, "rb") as file:
        return file.read()


def test_persisted_object_is_found_by_next(tmp_path, shelf):
    """What is kept forever is found by the next one."""
    first = shelf()
    (tmp_path / "file").write_bytes(b"large")
    first.keep("small", b"small")
    first.keep("a/b", str(tmp_path / "file"))
    assert first.said == [("kept", "small"), ("kept", "a/b")]
    first.close()
    (tmp_path / "file").unlink()
    second = shelf()
    assert second.found(2) == {"small", "a/b"}
    assert [text_of(second.keeper.find_verified(name)) for name in ("small", "a/b")] == [b"small", b"large"]


def test_persisted_file_takes_no_extra_room(tmp_path, shelf):
    """A kept file takes no room beside the one in the cache."""
    (tmp_path / "file").write_bytes(b"x" * MB)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"x" * MB)
    keeping = shelf()
    keeping.keep("file", str(tmp_path / "file"))
    keeping.keep("tree", str(tmp_path / "tree"))
    objects = home(tmp_path, "objects")
    assert [(path / "file" if path.is_dir() else path).stat().st_nlink for path in objects] == [2, 2]


def test_directory_keeps_modes_links_and_empties(tmp_path, shelf):
    """A directory is found with its modes links and empty folders."""
    tree = tmp_path / "tree"
    (tree / "empty").mkdir(parents=True)
    (tree / "Grüße\nund mehr").write_text("odd name")
    (tree / "program").write_text("x")
    (tree / "program").chmod(0o755)
    (tree / "link").symlink_to("/nowhere/at/all")
    (tree / "locked").mkdir()
    (tree / "locked" / "inside").write_text("x")
    (tree / "locked").chmod(0o555)
    first = shelf()
    first.keep("tree", str(tree))
    first.close()
    (tree / "program").chmod(0o555)  # as a sandbox does
    second = shelf()
    second.found(1)
    place = second.keeper.find_verified("tree").path
    assert sorted(os.listdir(place)) == sorted(os.listdir(tree))
    assert os.readlink(f"{place}/link") == "/nowhere/at/all"
    assert [os.stat(f"{place}/{name}").st_mode & 0o777 for name in ("program", "locked")] == [0o555, 0o555]
    assert os.listdir(f"{place}/empty") == []
    second.keeper.drop("tree")
    wait_until(lambda: home(tmp_path, "incoming") == home(tmp_path, "objects") == [], "it to be removed")


def damage_content(path):
    path.chmod(0o644)
    path.write_bytes(b"DAMAGED")


def damage_size(path):
    path.chmod(0o644)
    path.write_bytes(b"")


def damage_mode(path):
    path.chmod(0o755)


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [damage_content, damage_size, damage_mode, replace_by_folder, os.unlink])
def test_altered_object_is_removed_silently(tmp_path, shelf, damage):
    """What is not as it was is removed and not told of."""
    first = shelf()
    first.keep("good", b"good")
    first.keep("bad", b"damaged")
    first.close()
    damage(next(path for path in home(tmp_path, "objects") if path.name == "bad"))
    second = shelf()
    assert second.found(1) == {"good"}
    assert second.keeper.find_verified("bad") is None
    assert [path.name for path in home(tmp_path, "records")] == ["good"]
    assert ("found", "bad") not in second.said


def test_leftovers_of_crash_are_removed(tmp_path, shelf):
    """What a crash leaves half done is removed."""
    first = shelf()
    first.keep("good", b"good")
    first.close()
    folder = home(tmp_path, "records")[0].parent.parent
    (folder / "objects" / "without-record").write_text("x")
    (folder / "incoming" / "7").write_text("x")
    (folder / "records" / "empty").write_text("")
    (folder / "records" / "list").write_text("[]")
    (folder / "records" / "other-name").write_text((folder / "records" / "good").read_text())
    second = shelf()
    second.found(1)
    wait_until(lambda: len(home(tmp_path, "objects")) == 1)
    assert second.keeper.find_verified("other-name") is None
    assert [p.name for p in (*home(tmp_path, "objects"), *home(tmp_path, "incoming"))] == ["good"]
    assert set(second.found(1)) == {"good"}


@pytest.mark.parametrize(
    "text",
    [b"[" * 200_000, b'{"name": ' * 100_000, b'{"name": "odd", "size": Infinity}', b'{"name": "odd", "size": ' + b"9" * 4000 + b"}", b'{"name": "odd", "size": 1e999}',
     b'{"name": "a\\u0000b", "size": 1}', b'{"name": "\\ud800", "size": 1}', b'{"name": ["odd"], "size": 1}', b'{"size": 1}', b"\xff\xfe", b" " * 200_000, b"NaN",
     b'{"name": "odd", "size": -5, "directory": "x"}'],
    ids=lambda text: repr(text[:30]),
)  # fmt: skip
def test_broken_record_costs_its_object_only(tmp_path, shelf, text):
    """A record that is none costs only its own object."""
    first = shelf()
    for name in ("one", "odd", "two"):
        first.keep(name, name.encode())
    first.close()
    next(path for path in home(tmp_path, "records") if path.name == "odd").write_bytes(text)
    second = shelf()
    wait_until(lambda: second.is_all, "all to be found")
    assert second.found(2) == {"one", "two"}
    assert second.keeper.find_verified("odd") is None
    assert {path.name for path in home(tmp_path, "records")} == {"one", "two"}
    second.keep("odd", b"again")
    assert second.keeper.find_verified("odd") is not None


def test_objects_of_other_version_are_removed(tmp_path, shelf, caplog):
    """The first format, whose names of files said nothing of their modes: what was executable was found where the same text is not."""
    first = shelf()
    for name in ("one", "two", "three"):
        first.keep(name, name.encode())
    first.close()
    for path in home(tmp_path, "records"):
        if path.name != "three":
            record = json.loads(path.read_text())
            del record["format"]
            path.write_text(json.dumps(record))
    second = shelf()
    wait_until(lambda: second.is_all, "all to be found")
    assert second.found(1) == {"three"}
    assert [path.name for path in home(tmp_path, "objects")] == ["three"]
    (line,) = caplog.messages
    assert line.startswith("2 objects in ") and line.endswith(
        "by another version of daskvine and are removed"
    )


def test_a_record_names_size_and_digest(tmp_path, shelf):
    shelf().keep("x", b"content")
    (record,) = home(tmp_path, "records")
    assert json.loads(record.read_text()) == {
        "format": RECORD_FORMAT,
        "name": "x",
        "size": 7,
        "directory": False,
        "mode": json.loads(record.read_text())["mode"],
        "digest": hashlib.sha256(b"content").hexdigest(),
        "transfer": digests.digest_bytes(b"content"),
    }


def test_object_not_matching_name_is_refused(tmp_path, shelf, caplog):
    """What is not what its name says is not kept."""
    digest = hashlib.sha256(b"right").hexdigest()[:40]
    keeping = shelf()
    keeping.keep(f"buffer-{digest}", b"wrong")
    keeping.keep(f"file-{digest}", b"right")
    assert keeping.said == [("kept", f"file-{digest}")]
    assert "not the one it is named after" in caplog.text


def test_object_altered_before_persisting_is_refused(tmp_path, shelf, caplog):
    """What was altered before it is kept is not kept."""
    keeping = shelf()
    keeping.keeper.persist("x", b"altered", forever=True, digest=digests.digest_bytes(b"right"))
    keeping.keep("y", b"y")
    assert [path.name for path in home(tmp_path, "objects")] == ["y"]
    assert "x is not kept: it has been altered" in caplog.text


def test_oldest_objects_go_first(tmp_path, shelf):
    """The oldest goes first when it is too much."""
    first = shelf(limit=300)
    for name in "abc":
        first.keep(name, bytes(100))
    first.keep("a", bytes(100))  # used again
    first.keep("d", bytes(100))
    assert first.said[-1] == ("full", "d")
    assert [kept.name for kept in first.keeper.excess_objects()] == ["b"]
    assert [kept.name for kept in first.keeper.excess_objects({"b"})] == ["c"]
    first.close()
    second = shelf(limit=200)
    assert second.found(2) == {"a", "d"}
    wait_until(lambda: len(home(tmp_path, "objects")) == 2)


def test_eviction_between_managers_asks_nobody(tmp_path, shelf):
    """Nobody is asked what may go between two managers."""
    keeping = shelf(limit=150)
    keeping.keep("a", bytes(100))
    keeping.keeper.unsubscribe()
    keeping.keep("b", bytes(100))
    wait_until(lambda: [path.name for path in home(tmp_path, "objects")] == ["b"])


def test_object_above_limit_is_not_persisted(tmp_path, shelf, caplog):
    """What is larger than the limit is not kept."""
    keeping = shelf(limit=100)
    keeping.keep("large", bytes(101))
    assert home(tmp_path, "objects") == home(tmp_path, "incoming") == []
    assert "large is not kept" in caplog.text


def test_object_dropped_early_is_not_persisted(tmp_path, shelf):
    """What is dropped before it is kept is not kept."""
    keeping = shelf()
    with keeping.keeper._checking:  # so that it cannot get on
        keeping.keeper.persist("x", b"x", forever=True)
        keeping.keeper.drop("x")
    keeping.keep("y", b"y")
    assert [path.name for path in home(tmp_path, "objects")] == ["y"]
    assert keeping.said == [("kept", "y")]


def test_object_vanishing_early_harms_nothing(tmp_path, shelf):
    """What vanishes before it is kept harms nobody."""
    keeping = shelf()
    keeping.keep("gone", str(tmp_path / "gone"))
    keeping.keep("y", b"y")
    assert keeping.said == [("kept", "y")]


def test_own_object_can_be_persisted_later(tmp_path, shelf):
    """What a worker keeps for itself can be kept forever later."""
    keeping = shelf()
    keeping.keep("x", b"x", forever=False)
    assert home(tmp_path, "objects") == []
    held = keeping.keeper.find_verified("x")
    keeping.keep("x", held.path)
    keeping.keep("x", b"x", forever=False)
    assert [path.name for path in home(tmp_path, "objects")] == ["x"]
    assert keeping.keeper.find_verified("x").forever


def test_without_home_folder_is_beside_worker(tmp_path):
    """Without a home things are kept beside the worker."""
    keeper = PersistentCache(str(tmp_path / "kept"), MB)
    try:
        keeper.persist("x", b"x", forever=True)
        wait_until(lambda: not keeper.has_pending)
        kept = keeper.find_verified("x")
        assert kept.path.startswith(str(tmp_path / "kept"))
        assert not kept.forever
    finally:
        keeper.close()


def test_workers_and_secrets_have_own_folders(tmp_path, shelf):
    """Two workers have folders of their own and another secret has others."""
    first, second = shelf(), shelf()
    first.keep("x", b"first")
    second.keep("x", b"second")
    second.keep("y", b"second")
    shelf(secret=b"other").keep("x", b"other")
    assert len({path.parent.parent for path in home(tmp_path, "objects")}) == 3
    first.close()
    third = shelf()  # where the first one was
    assert third.found(1) == {"x"}
    assert text_of(third.keeper.find_verified("x")) == b"first"


def test_lock_of_killed_worker_is_free(tmp_path):
    """The lock of a killed worker is free."""
    script = f"import sys\nfrom vineworker.storage.cache_directory import open_cache_directory\nhome = open_cache_directory({str(tmp_path)!r}, b'x')\nprint(home.folder, flush=True)\nsys.stdin.read()"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    with process:
        folder = process.stdout.readline().strip()
        beside = open_cache_directory(str(tmp_path), b"x")
        assert beside.folder != folder
        process.kill()
        process.wait()
        home = open_cache_directory(str(tmp_path), b"x")
        assert home.folder == folder
    home.close()
    beside.close()


def test_foreign_folder_is_not_used(tmp_path, caplog):
    """A folder that is not ours is not used."""
    caplog.set_level(logging.INFO)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "vine-kept").symlink_to("elsewhere")
    assert open_cache_directory(str(tmp_path), SECRET) is None
    assert "nothing will be kept" in caplog.text
    assert os.listdir(tmp_path / "elsewhere") == []


def test_the_folder_is_for_its_user_only(tmp_path):
    home = open_cache_directory(str(tmp_path), SECRET)
    home.close()
    assert (tmp_path / "vine-kept").stat().st_mode & 0o777 == 0o700
    assert SECRET.decode() not in home.folder
