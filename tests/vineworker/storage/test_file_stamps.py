"""What of the cache a task can reach, and that no later one reads what it has done to that. The same for root and for others."""

from __future__ import annotations

import os
import stat
import subprocess

import pytest
from vineworker.storage import file_stamps
from vineworker.storage.cache import Cache
from vineworker.storage.file_stamps import ObjectChanged
from vineworker.tasks import sandbox

from vinecore.protocol.transfer import digests

SMALL, LARGE = 10, 1 << 17


@pytest.fixture
def lost():
    return []


@pytest.fixture
def cache(tmp_path, lost, monkeypatch):
    """A cache where large files get links, also for root and where files could share their blocks."""
    monkeypatch.setattr(sandbox, "_clone_blocks", lambda _source, _target: False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for module in (file_stamps, sandbox):
        monkeypatch.setattr(module, "MIN_LINKED_BYTES", LARGE)
    return Cache(str(tmp_path), lost=lost.extend)


def stored(cache, name, data, digest=True):
    path = cache.temporary(name)
    with open(path, "wb") as file:
        file.write(data)
    cache.store(name, path, digests.digest_bytes(data) if digest else "")


def made(cache, tmp_path, number, *mounts):
    folder = str(tmp_path / f"sandbox-{number}")
    sandbox.create_sandbox(
        folder, [[*mount, False] if len(mount) == 2 else list(mount) for mount in mounts], cache
    )
    return folder


def end(cache, folder):
    try:
        cache.check_sandbox(folder, "task 1")
    finally:
        sandbox.remove_sandbox(folder, cache)
    assert not os.path.exists(folder)


def shell(folder, command):
    subprocess.run(command, shell=True, cwd=folder, check=True)


DAMAGE = {
    "written to": "chmod u+w in; printf x | dd of=in conv=notrunc status=none",
    "written to, and given its time again": "chmod u+w in; touch -r in t; printf x | dd of=in conv=notrunc status=none; touch -r t in",
    "cut": "chmod u+w in; truncate -s 5 in",
    "longer": "chmod u+w in; echo more >> in",
    "moved and written to": "mv in other; chmod u+w other; printf x | dd of=other conv=notrunc status=none",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("symlink", [False, True])
def test_damage_by_task_is_not_read_later(cache, tmp_path, lost, damage, size, symlink):
    """What a task has damaged no later one reads."""
    stored(cache, "data", bytes(size))
    folder = made(cache, tmp_path, 1, ("data", "in", symlink))
    shell(folder, damage)
    end(cache, folder)
    hit = size == LARGE or symlink
    assert lost == (["data"] if hit else [])
    assert cache.find_object("data") == (None if hit else cache.path_for("data"))
    assert hit or digests.hash_file(cache.path_for("data")) == digests.digest_bytes(bytes(size))
    stored(cache, "data", bytes(size))
    folder = made(cache, tmp_path, 2, ("data", "in"))
    assert os.stat(os.path.join(folder, "in")).st_nlink == 1, "what was damaged once is copied"
    end(cache, folder)


HARMLESS = ["rm in", "mv in other", "ln in other", "chmod 700 in", "cp in other; rm in; mv other in"]


@pytest.mark.parametrize("command", HARMLESS)
def test_change_of_own_link_is_harmless(cache, tmp_path, lost, command):
    """What a task does to its own link is no damage."""
    stored(cache, "data", bytes(LARGE))
    for number in (1, 2):
        folder = made(cache, tmp_path, number, ("data", "in"))
        assert os.stat(os.path.join(folder, "in")).st_nlink == 2
        shell(folder, command)
        end(cache, folder)
    assert cache.find_object("data") == cache.path_for("data")
    assert lost == []


def test_reader_of_damaged_file_reruns(cache, tmp_path, lost):
    """Who has read what another task damaged meanwhile has to run again."""
    stored(cache, "data", bytes(LARGE))
    first, second, third = (made(cache, tmp_path, number, ("data", "in")) for number in (1, 2, 3))
    end(cache, third)
    shell(first, DAMAGE["written to"])
    for folder in (second, first):  # which of them did it cannot be known
        with pytest.raises(ObjectChanged, match="data"):
            end(cache, folder)
    assert lost == ["data"]


def test_alteration_on_disk_is_noticed_before_use(cache, tmp_path, lost):
    """What was altered on the disk is noticed before it is used."""
    for number, size in enumerate((SMALL, LARGE)):
        name = f"data-{number}"
        stored(cache, name, bytes(size))
        os.chmod(cache.path(name), 0o600)
        with open(cache.path(name), "r+b") as file:
            file.write(b"x")
        with pytest.raises(ObjectChanged, match=name):
            made(cache, tmp_path, number, (name, "in"))
    assert lost == ["data-0", "data-1"]


@pytest.mark.parametrize("large", [False, True])
def test_damaged_directory_file_is_noticed(cache, tmp_path, lost, large):
    """A file of a directory that was damaged is noticed."""
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(bytes(LARGE if large else SMALL))
    cache.store("tree", str(tree))
    for number in (1, 2):
        end(cache, made(cache, tmp_path, number, ("tree", "in")))
    folder = made(cache, tmp_path, 3, ("tree", "in", not large))
    shell(folder, "chmod u+w in/sub/file; echo x >> in/sub/file")
    end(cache, folder)
    assert lost == ["tree"]


def test_compiled_modules_are_no_damage(cache, tmp_path, lost):
    """Compiled modules in a directory are no damage."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "module.py").write_text("x = 1\n")
    cache.store("tree", str(tree))
    folder = made(cache, tmp_path, 1, ("tree", "in", True))
    shell(folder, "mkdir in/__pycache__; touch in/__pycache__/module.pyc")
    end(cache, folder)
    end(cache, made(cache, tmp_path, 2, ("tree", "in")))
    assert lost == []


def test_input_moved_to_output_is_another(cache, tmp_path, lost):
    """An input that is moved to be an output is another file."""
    stored(cache, "data", bytes(LARGE))
    folder = made(cache, tmp_path, 1, ("data", "in"))
    shell(folder, "mkdir d; ln in d/same; mv in out")
    cache.check_sandbox(folder, "task 1")
    sandbox.collect_outputs(
        folder, [["out", "moved", "success"], ["d", "folder", "success"]], cache, failed=False
    )
    sandbox.remove_sandbox(folder, cache)
    numbers = {
        os.stat(path).st_ino
        for path in (
            cache.find_object("data"),
            cache.find_object("moved"),
            os.path.join(cache.find_object("folder"), "same"),
        )
    }
    assert len(numbers) == 3
    assert lost == []


def test_sandbox_copies_take_bounded_disk(tmp_path, monkeypatch):
    """Copies in sandboxes take no more than a part of the disk."""
    monkeypatch.setattr(sandbox, "_clone_blocks", lambda _source, _target: False)
    cache = Cache(str(tmp_path), disk_limit=8 * SMALL)
    stored(cache, "data", bytes(SMALL))
    links = []
    for number in range(3):
        folder = made(cache, tmp_path, number, ("data", "in"))
        links.append(os.stat(os.path.join(folder, "in")).st_nlink)
    assert links == [1, 2, 3]
    end(cache, str(tmp_path / "sandbox-0"))
    assert os.stat(os.path.join(made(cache, tmp_path, 4, ("data", "in")), "in")).st_nlink == 1


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_task_view_is_independent_of_umask(cache, tmp_path, umask):
    """What a task sees does not depend on the umask."""
    before = os.umask(umask)
    try:
        cache.put_bytes("memory", b"x")
        stored(cache, "usual", b"x")
        folder = made(cache, tmp_path, 1, ("memory", "a"), ("usual", "deep/b"))
    finally:
        os.umask(before)
    about = os.stat(os.path.join(folder, "a"))
    assert stat.S_IMODE(about.st_mode) == 0o444
    assert about.st_mtime == 946_684_800
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def test_a_look_costs_no_reading(cache, tmp_path, monkeypatch):
    stored(cache, "data", bytes(LARGE))
    monkeypatch.setattr(file_stamps.digests, "hash_file", lambda _path: pytest.fail("it was read"))
    for number in range(3):
        end(cache, made(cache, tmp_path, number, ("data", "in"), ("data", "again")))
        assert cache.find_object("data")
