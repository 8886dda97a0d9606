"""A folder is the same elsewhere if that is proved, and not because it has the same name."""

from __future__ import annotations

import os

import pytest

from vinecore.protocol import program_folders


def from_elsewhere(folder):
    """What another machine gets to know of it."""
    return folder._replace(kernel="another", identity=(0, 0))


@pytest.fixture
def token(tmp_path):
    (tmp_path / "token").write_text("word")
    return "token", "word"


def test_same_kernel_identifies_folder_by_inode(tmp_path):
    """Under the same kernel a folder is its inode."""
    (tmp_path / "here").mkdir()
    folder = program_folders.describe_folder(str(tmp_path / "here"))
    assert program_folders.is_visible(folder)
    (tmp_path / "here").rename(tmp_path / "there")
    assert not program_folders.is_visible(folder)
    (tmp_path / "here").mkdir()
    assert not program_folders.is_visible(folder)


def test_other_machine_compares_token(tmp_path, token):
    """On another machine the token is what counts."""
    folder = from_elsewhere(program_folders.describe_folder(str(tmp_path), *token))
    assert program_folders.is_visible(folder)
    (tmp_path / "token").write_text("words")
    assert not program_folders.is_visible(folder)
    (tmp_path / "token").write_bytes(b"\xff")
    assert not program_folders.is_visible(folder)
    (tmp_path / "token").unlink()
    assert not program_folders.is_visible(folder)


def test_the_name_alone_is_not_enough(tmp_path):
    (tmp_path / "data").write_text("1")
    assert not program_folders.is_visible(from_elsewhere(program_folders.describe_folder(str(tmp_path))))


def test_read_only_folder_compares_content(tmp_path):
    """Where nothing can be written the content counts."""
    (tmp_path / "data").write_text("1")
    (tmp_path / "below").mkdir()
    digest = program_folders.digest_folder(str(tmp_path))
    (tmp_path / "__pycache__").mkdir()
    assert program_folders.digest_folder(str(tmp_path)) == digest
    os.utime(tmp_path / "data", ns=(0, 1))
    assert program_folders.digest_folder(str(tmp_path)) not in ("", digest)


def test_copy_on_local_disk_proves_nothing(tmp_path):
    """A copy on a disk of its own proves nothing."""
    (tmp_path / "data").write_text("1")
    folder = program_folders.describe_folder(str(tmp_path), listed=True)
    assert not program_folders.is_visible(from_elsewhere(folder))


def test_an_empty_folder_proves_nothing(tmp_path):
    assert program_folders.digest_folder(str(tmp_path)) == ""


MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:40 / /home rw,nosuid shared:20 - nfs4 server:/export/home rw,vers=4.2
41 40 0:41 / /home/me/local rw - tmpfs tmpfs rw
42 22 0:42 /part /with\040space ro - fuse.cvmfs2 cvmfs2 ro
43 22 0:43 / /twice rw - nfs old:/x rw
44 43 0:44 / /twice rw - nfs new:/x rw
"""


@pytest.mark.parametrize(
    ("path", "system"),
    [
        ("/home", "nfs4 server:/export/home /"),
        ("/home/me/analysis", "nfs4 server:/export/home /"),
        ("/home/me/local/x", ""),
        ("/homes", ""),
        ("/etc", ""),
        ("/with space/x", "fuse.cvmfs2 cvmfs2 /part"),
        ("/twice", "nfs new:/x /"),
    ],
)
def test_network_file_systems_are_recognized(path, system):
    """File systems of networks are told from disks."""
    assert program_folders.find_file_system(path, MOUNTS) == system


def test_what_is_not_there_is_not_seen(tmp_path):
    folder = program_folders.describe_folder(str(tmp_path))._replace(path=str(tmp_path / "gone"))
    assert not program_folders.is_visible(folder)
