"""The objects of a worker, without a worker."""

from __future__ import annotations

import os
import threading

import pytest
from vineworker.storage.cache import Cache

from vinecore.protocol import INLINE_LIMIT


@pytest.fixture
def cache(tmp_path):
    return Cache(str(tmp_path))


def stored(cache, name, data):
    path = cache.temporary(name)
    with open(path, "wb") as file:
        file.write(data)
    cache.store(name, path)


def test_small_objects_stay_in_memory(cache):
    """Small objects are kept in memory and large ones are files."""
    cache.put_bytes("small", b"x" * INLINE_LIMIT)
    cache.put_bytes("large", b"x" * (INLINE_LIMIT + 1))
    assert cache.find_object("small") == b"x" * INLINE_LIMIT
    assert os.path.getsize(cache.find_object("large")) == INLINE_LIMIT + 1
    assert cache.find_object("missing") is None
    assert ("small" in cache, "missing" in cache, cache.size("large")) == (True, False, INLINE_LIMIT + 1)


def test_memory_is_bounded(tmp_path):
    cache = Cache(str(tmp_path), memory_limit=100)
    cache.put_bytes("first", b"x" * 60)
    cache.put_bytes("second", b"x" * 60)
    assert isinstance(cache.find_object("first"), bytes)
    assert isinstance(cache.find_object("second"), str)
    cache.remove("first")
    cache.put_bytes("third", b"x" * 60)
    assert isinstance(cache.find_object("third"), bytes)


NAMES = ["..", ".", "", "/etc/passwd", "a/b", "../../x", "~", "a b", "Grüße", "a\nb", "%2E", ".hidden", "%"]
LONG = ["x" * 300, "x" * 299 + "y", "x" * 160, "ü" * 200, "ü" * 199 + "a"]


def test_any_name_has_its_own_file(cache, tmp_path):
    """Any names have files of their own in the folder."""
    paths = {cache.path_for(name) for name in NAMES + LONG}
    assert len(paths) == len(NAMES + LONG)
    for name in NAMES + LONG:
        stored(cache, name, name.encode())
    for name in NAMES + LONG:
        path = cache.find_object(name)
        assert os.path.dirname(path) == str(tmp_path / "cache")
        with open(path, "rb") as file:
            assert file.read() == name.encode()


def test_object_becomes_file_once(cache):
    """Its file may be linked into sandboxes: writing it again would change what tasks are reading."""
    cache.put_bytes("object", b"x" * 1000)
    first = os.stat(cache.path("object"))
    assert os.stat(cache.path("object")) == first
    assert cache.find_object("object") == b"x" * 1000


def test_concurrent_threads_see_whole_file(cache):
    """Threads that want the same file never see a part of it."""
    data = os.urandom(INLINE_LIMIT)
    wrong, barrier = [], threading.Barrier(8)

    def read(name):
        barrier.wait()
        with open(cache.path(name), "rb") as file:
            if file.read() != data:
                wrong.append(name)

    for n in range(20):
        cache.put_bytes(f"object-{n}", data)
        threads = [threading.Thread(target=read, args=(f"object-{n}",)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert os.listdir(os.path.dirname(cache.temporary(""))) == []


def test_stored_again_object_is_replaced(cache):
    """An object that is stored again is the new one."""
    cache.put_bytes("object", b"first")
    cache.path("object")
    stored(cache, "object", b"second")
    with open(cache.find_object("object"), "rb") as file:
        assert file.read() == b"second"
    cache.put_bytes("object", b"third")
    with open(cache.path("object"), "rb") as file:
        assert (cache.find_object("object"), file.read()) == (b"third", b"third")


def test_directory_and_file_replace_another(cache):
    """A directory replaces a file and a file a directory."""
    for _ in range(2):
        folder = cache.temporary("object")
        os.makedirs(os.path.join(folder, "inner"))
        cache.store("object", folder)
        assert os.listdir(cache.find_object("object")) == ["inner"]
        stored(cache, "object", b"file")
        assert os.path.isfile(cache.find_object("object"))


def test_removed_object_leaves_memory_and_disk(cache):
    """What is removed is gone from memory and disk."""
    cache.put_bytes("object", b"x")
    path = cache.path("object")
    cache.remove("object")
    cache.remove("object")
    assert not os.path.exists(path)
    assert cache.find_object("object") is None
    with pytest.raises(FileNotFoundError, match="not on this worker"):
        cache.path("object")


def came(cache, data):
    """A file that has just come."""
    path = cache.temporary("object")
    with open(path, "wb") as file:
        file.write(data)
    return path


def read(path):
    with open(path, "rb") as file:
        return file.read()


def test_offered_object_is_shared_until_accepted(cache):
    """What is offered is for others until it is accepted."""
    path = came(cache, b"new")
    assert cache.add_unverified("object", path)
    assert read(cache.find_object("object")) == b"new"
    assert cache.get("object") is None
    assert "object" not in cache
    with pytest.raises(FileNotFoundError):
        cache.path("object")
    cache.mark_verified("object", path)
    assert read(cache.path("object")) == b"new"
    assert (cache.get("object"), cache.total_disk_bytes) == (cache.path("object"), 3)


def test_what_is_refused_is_gone(cache):
    path = came(cache, b"wrong")
    assert cache.add_unverified("object", path)
    place = cache.find_object("object")
    cache.discard_unverified("object", path)
    assert cache.find_object("object") is None
    assert not os.path.exists(place)


def test_present_object_is_not_offered_over(cache):
    """Nothing is offered in place of what is there."""
    first, second = came(cache, b"first"), came(cache, b"second")
    assert cache.add_unverified("object", first)
    assert not cache.add_unverified("object", second)
    cache.mark_verified("object", first)
    assert not cache.add_unverified("object", second)
    assert read(cache.path("object")) == b"first"


@pytest.mark.parametrize("how", ["stored", "kept", "adopted", "removed", "offered again"])
@pytest.mark.parametrize("right", [False, True])
def test_verification_counts_for_offered_only(cache, tmp_path, how, right):
    """What is found out later counts only for what was offered."""
    path = came(cache, b"offered")
    assert cache.add_unverified("object", path)
    if how == "stored":
        stored(cache, "object", b"new")
    elif how == "kept":
        cache.put_bytes("object", b"new")
    elif how == "adopted":
        (tmp_path / "outside").write_bytes(b"new")
        cache.add_external("object", str(tmp_path / "outside"), 3)
    else:
        cache.remove("object")
        assert cache.find_object("object") is None
    if how == "offered again":
        assert cache.add_unverified("object", came(cache, b"new"))
    (cache.mark_verified if right else cache.discard_unverified)("object", path)
    if how == "offered again":
        assert cache.get("object") is None
        assert read(cache.find_object("object")) == b"new"
    elif how == "removed":
        assert cache.find_object("object") is None
    else:
        assert read(cache.path("object")) == b"new"
        assert cache.size("object") == 3


def test_cache_passes_objects_to_next(tmp_path):
    """A cache gives its objects to the next one."""
    first, second = (Cache(str(tmp_path / name)) for name in ("first", "second"))
    first.put_bytes("small", b"x")
    stored(first, "large", b"y" * (INLINE_LIMIT + 1))
    tree = first.temporary("tree")
    os.mkdir(tree)
    with open(os.path.join(tree, "file"), "w") as file:
        file.write("z")
    first.store("tree", tree)
    stored(first, "other", b"y")
    (tmp_path / "kept").write_text("kept")
    first.add_external("kept", str(tmp_path / "kept"), 4)
    (tmp_path / "estate").mkdir()
    about = (["small", "large", "tree", "kept", "gone"], [1, INLINE_LIMIT + 1, -1, 4, 1], [""] * 5)
    estate = first.detach_objects(about, str(tmp_path / "estate"))
    assert second.attach_objects(estate) == ["small", "large", "tree"]
    assert second.find_object("small") == b"x"
    assert [second.size(name) for name in about[0]] == [1, INLINE_LIMIT + 1, -1, 0, 0]
    assert second.total_disk_bytes == INLINE_LIMIT + 2
    assert os.listdir(second.find_object("tree")) == ["file"]
    assert not (tmp_path / "estate").exists()
    assert (tmp_path / "kept").exists()
