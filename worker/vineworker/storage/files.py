"""Names, sizes and moves of the files of a worker, and the error of a full disk."""

from __future__ import annotations

import errno
import hashlib
import os
from urllib.parse import quote

from vinecore.protocol import MB, trees

MAX_NAME_CHARACTERS = 160


class DiskFull(OSError):
    """There is no space for an object within the worker's limit."""

    def __init__(self, what: str, size: int, room: int) -> None:
        mb = -(-size // MB)
        super().__init__(
            errno.ENOSPC, f"{what} takes {mb} MB, and {max(room, 0) // MB} MB of this worker's disk are left"
        )
        self.size = size


def is_disk_full(error: object) -> bool:
    """Return whether an error means that the disk is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def tree_size(path: str) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if not os.path.isdir(path):
        return os.path.getsize(path)
    files = (os.path.join(folder, name) for folder, _folders, names in os.walk(path) for name in names)
    return sum(os.lstat(file).st_size for file in files)


def write_file(path: str, data: bytes) -> None:
    """Write a file that all users may read, whatever the umask is."""
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, trees.DEFAULT_FILE_MODE)


def move_path(path: str, target: str) -> None:
    """Rename a file or a folder, also a read-only folder.

    A folder needs write permission for that, because its entry ``..`` changes.
    """
    try:
        os.rename(path, target)
    except PermissionError:
        mode = os.stat(path).st_mode
        os.chmod(path, mode & 0o777 | 0o700)
        os.rename(path, target)
        os.chmod(target, mode & 0o777)


def object_file_name(name: str) -> str:
    """Return the file name of an object.

    It stays inside its folder, and no two objects share one.
    """
    plain = quote(name, safe="")
    # two long names that begin alike must stay two
    if len(plain) > MAX_NAME_CHARACTERS:
        plain = f"{plain[:MAX_NAME_CHARACTERS]}%{hashlib.sha256(name.encode()).hexdigest()}"
    return "%2E" + plain[1:] if plain.startswith(".") else plain or "%"
