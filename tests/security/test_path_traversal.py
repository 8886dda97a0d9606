"""Archives, links and odd files that would lead out of the folder of a task."""

from __future__ import annotations

import io
import os
import tarfile

import pytest

from tests.harness.processes import list_recursively, used_below, wait_for_task
from tests.security.resource_monitor import unharmed
from vinecore import Task


def archive(path, *members):
    """An archive of links ``(name, target)`` and files ``(name, bytes)``."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    "members",
    [
        [("../../../evil", b"x")],
        [("/{outside}/evil", b"x")],
        [("way", "/{outside}"), ("way/evil", b"x")],
        [("a", "/{outside}"), ("b", "a"), ("b/evil", b"x")],
        [("evil", "/{outside}/evil"), ("evil", b"x")],
    ],
    ids=["climbs", "is absolute", "through a link", "through two links", "over a link"],
)
def test_archive_writes_nothing_outside_its_folder(local_cluster, members):
    """Nothing of an archive is written outside of its folder."""
    outside = local_cluster.path("outside")
    outside.mkdir()
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    named = [
        tuple(part.format(outside=str(outside)[1:]) if isinstance(part, str) else part for part in member)
        for member in members
    ]
    with unharmed(m, local_cluster):
        file = m.declare_untar(m.declare_file(str(archive(local_cluster.path("bad.txt"), *named))))
        task = Task("cat in/evil; true")
        task.add_input(file, "in")
        m.submit(task)
        result = wait_for_task(m)
        assert not list(outside.iterdir())
        evil = [path for path in list_recursively(local_cluster.folder) if os.path.basename(path) == "evil"]
        assert all("vine-worker" in path for path in evil)
        if result.successful():  # a link that was replaced by a file
            assert members[0][0] == "evil"


@pytest.mark.parametrize(
    ("name", "words"),
    [("in/way/evil", "leads through a link"), ("in/mine", "is taken"), ("in/copied/evil", "")],
)
def test_input_follows_no_link_of_other(local_cluster, name, words):
    """A link that leads out of a directory is none any more when it arrives."""
    outside = local_cluster.path("outside")
    outside.mkdir()
    (outside / "mine").write_text("as it was")
    tree = local_cluster.path("tree")
    (tree / "inside").mkdir(parents=True)
    (tree / "way").symlink_to("inside")
    (tree / "copied").symlink_to(outside)
    (tree / "mine").symlink_to(outside / "mine")
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    with unharmed(m, local_cluster):
        task = Task("cat in/copied/mine")
        task.add_input(m.declare_file(str(tree)), "in")
        task.add_input(m.declare_buffer("evil"), name)
        m.submit(task)
        result = wait_for_task(m)
        if words:
            assert not result.successful()
            assert words in str(result.error())
        else:
            assert result.output == "as it was"
    assert sorted(path.name for path in outside.iterdir()) == ["mine"]
    assert (outside / "mine").read_text() == "as it was"


@pytest.mark.parametrize("command", ["mkfifo out", "ln -s /dev/zero out", "ln -s /dev/stdin out"])
def test_endless_output_is_refused(local_cluster, command):
    """An output that has no end is no output and keeps no task waiting."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    with unharmed(m, local_cluster):
        task = Task(command)
        task.add_output(m.declare_temp(), "out")
        m.submit(task)
        assert wait_for_task(m).result == "output missing"


def test_oversized_archive_is_not_unpacked(local_cluster):
    """An archive that is larger than the disk is not unpacked."""
    data = local_cluster.path("bomb.txt")
    with tarfile.open(data, "w:gz", compresslevel=1) as tar:
        info = tarfile.TarInfo("zeros")
        info.size = 60 << 20
        with open("/dev/zero", "rb") as zeros:
            tar.addfile(info, zeros)
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1, "--disk", "20")
    seen = [0]
    task = Task("true")
    task.add_input(m.declare_untar(m.declare_file(str(data))), "in")
    m.submit(task)
    while (done := m.wait(0.05)) is None:
        seen.append(used_below(local_cluster.workspace))
    assert max(seen) < 40 << 20
    assert done is task
    assert not done.successful()
