"""The folders of a program, and how a process elsewhere knows that it sees the same ones.

A relative path in a vertex means the folder of the program, and the user's own modules are in folders of the program's. A worker may see
these folders, on the same machine or through a shared file system, and it may see others of the same name. So a name proves nothing. These do:

token
    a small file with a random name and content, which the manager's side has put there;
kernel and identity
    the same running kernel, and the same device and inode;
listing
    where nothing can be written: the same file system of a network, with the same inode, names, sizes and times of change of all that is in it. On a
    disk of its own another machine may have a copy of all that, which says nothing.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
import subprocess
import sys
from typing import NamedTuple, Optional

MAX_LISTED_ENTRIES = 4096
"""Entries of a folder that are compared, in the order of their names."""
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "lustre", "gpfs", "ceph", "afs", "cifs", "smb3", "beegfs", "glusterfs", "orangefs", "pvfs2", "9p", "virtiofs", "wekafs",
                       "panfs", "fuse.glusterfs", "fuse.ceph", "fuse.juicefs", "fuse.sshfs", "fuse.eos", "fuse.eosxd", "fuse.cvmfs2", "fuse.daos"})  # fmt: skip
"""File systems, as Linux calls them, that several machines may have."""
MOUNTS = "/proc/self/mountinfo"
IGNORED_PREFIXES = ("__pycache__", ".daskvine-")
"""Beginnings of names that come and go, and say nothing of a folder."""

_OCTAL = re.compile(r"\\(\d{3})")  # how that table writes spaces


class Folder(NamedTuple):
    """A folder, or an archive that modules are imported from, with what proves that it is the same elsewhere."""

    path: str
    kernel: str  # "" where there is no telling
    identity: tuple[int, int]  # device and inode under that kernel
    token: str = ""  # name of a file in it
    content: str = ""  # of that file
    listing: str = ""


class Program(NamedTuple):
    """What the vertices of one computation take from the program that they belong to.

    Attributes
    ----------
    folder
        Where it runs; None if that folder has been removed.
    first, last
        What its path of imports has before the standard library, and after it, without what the environment brings.
    has_files
        Whether there are files that every vertex finds beside those of the folder.
    """

    folder: Optional[Folder]
    first: tuple[Folder, ...] = ()
    last: tuple[Folder, ...] = ()
    has_files: bool = False


@functools.lru_cache(maxsize=1)
def running_kernel() -> str:
    """Name the kernel that this process runs under, since its last start; "" where there is no telling."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        pass
    if sys.platform != "darwin":
        return ""
    try:
        asked = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(asked, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def describe_folder(path: str, token: str = "", content: str = "", *, listed: bool = False) -> Folder:
    """Describe a folder with what proves it.

    Parameters
    ----------
    token, content
        Of a file that has been put there for that.
    listed
        Compare what is in it, too: where nothing could be put there.

    Raises
    ------
    OSError
        There is no such folder.
    """
    found = os.stat(path)
    listing = describe_listing(path) if listed else ""
    return Folder(path, running_kernel(), (found.st_dev, found.st_ino), token, content, listing)


def is_visible(folder: Folder) -> bool:
    """Whether this process sees that folder, and not only one of the same name."""
    try:
        if folder.token and _has_token(folder):
            return True
        if folder.kernel and folder.kernel == running_kernel():
            found = os.stat(folder.path)
            if (found.st_dev, found.st_ino) == folder.identity:
                return True
        return bool(folder.listing) and describe_listing(folder.path) == folder.listing
    except OSError:
        return False


def _has_token(folder: Folder) -> bool:
    try:
        with open(os.path.join(folder.path, folder.token)) as file:
            return file.read(len(folder.content) + 1) == folder.content
    except (OSError, UnicodeDecodeError):
        return False


def describe_listing(path: str) -> str:
    """Digest of what is in a folder, or of what a file is, and of the file system of a network that it is on.

    Returns
    -------
    str
        "" if there is nothing in it, it may not be read, or it is on no such file system.
    """
    try:
        system = find_file_system(os.path.realpath(path), _read_mounts())
        return (
            f"{system} {os.stat(path).st_ino} {digest}" if system and (digest := digest_folder(path)) else ""
        )
    except OSError:
        return ""


def _read_mounts() -> str:
    try:
        with open(MOUNTS, errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def find_file_system(path: str, mounts: str) -> str:
    """Say what a path is on, in a table as Linux gives it, if that is a file system of a network; else ""."""
    found = (-1, "")
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, about = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(about) < 2:
            continue
        point = _OCTAL.sub(lambda code: chr(int(code[1], 8)), fields[4])
        # of those at one point the last is on top
        if path == point or path.startswith(point.rstrip("/") + "/"):
            networked = about[0] in NETWORK_FILE_SYSTEMS
            if len(point) >= found[0]:
                found = len(point), f"{about[0]} {about[1]} {fields[3]}" if networked else ""
    return found[1]


def digest_folder(path: str) -> str:
    """Digest of the names, sizes and times of change of what is in a folder, or of a file; "" if there is nothing."""
    try:
        found = os.stat(path)
        if not stat.S_ISDIR(found.st_mode):
            return hashlib.sha256(f"{found.st_size} {found.st_mtime_ns}".encode()).hexdigest()
        with os.scandir(path) as entries:
            kept = sorted(
                (entry for entry in entries if not entry.name.startswith(IGNORED_PREFIXES)), key=_entry_name
            )
        lines = [str(len(kept)), *map(_describe_entry, kept[:MAX_LISTED_ENTRIES])]
    except OSError:
        return ""
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest() if kept else ""


def _entry_name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _describe_entry(entry: os.DirEntry[str]) -> str:
    found = entry.stat(follow_symlinks=False)
    # sizes and times of others differ between file systems and their clients
    if not stat.S_ISREG(found.st_mode):
        return f"{entry.name} {stat.S_IFMT(found.st_mode)}"
    return f"{entry.name} {found.st_size} {found.st_mtime_ns}"
