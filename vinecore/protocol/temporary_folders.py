"""Temporary folders that are removed also after a process that could not: by the next one of the same user that looks in the same place.

Each has a file that its process holds a lock on. The kernel lets the lock go when that process, and what it has forked, has ended, however it has. So who gets
the lock may remove the folder. A folder without that file, of another user, or of another machine is left alone, and a link is never followed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import tempfile
import threading
from typing import Optional

from vinecore.protocol.trees import remove_tree

OWNER_FILE = ".vine-owner"
"""The file with the lock; in it is the name of the machine."""
PREFIXES = ("vine-", "daskvine-")
LINK_FOLDERS = ("/tmp", "/var/tmp")  # noqa: S108 - what is made there is a link with a name that nobody has

_locks: dict[str, int] = {}


def create_folder(prefix: str, parent: Optional[str] = None) -> str:
    """Make a folder that this process holds until `remove`."""
    folder = tempfile.mkdtemp(prefix=prefix, dir=parent)
    path = os.path.join(folder, OWNER_FILE)
    lock = os.open(path + ".new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(lock, socket.gethostname().encode())
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(path + ".new", path)  # with its lock, so nobody sees it without
    except OSError:  # a file system without locks: then nobody but this process removes it
        os.close(lock)
        remove_tree(path + ".new")
    else:
        _locks[folder] = lock
    return folder


def remove_folder(folder: str) -> None:
    """Remove a folder that was made here."""
    remove_tree(folder)
    lock = _locks.pop(folder, None)
    if lock is not None:
        os.close(lock)


def remove_abandoned(parent: Optional[str] = None) -> None:
    """Remove what processes of this user have left in a place, that have ended and could not."""
    try:
        with os.scandir(parent or tempfile.gettempdir()) as entries:
            found = [entry.path for entry in entries if entry.name.startswith(PREFIXES)]
    except OSError:
        return
    for path in found:
        try:
            _remove_if_abandoned(path)
        except OSError:  # somebody else removes it
            pass


def start_removing_abandoned(*parents: Optional[str]) -> threading.Thread:
    """Remove what is left in some places, in a thread: it may be much."""

    def work() -> None:
        for parent in dict.fromkeys((*parents, *LINK_FOLDERS)):
            remove_abandoned(parent)

    thread = threading.Thread(target=work, name="vine-folders", daemon=True)
    thread.start()
    return thread


def _remove_if_abandoned(path: str) -> None:
    about = os.lstat(path)
    if about.st_uid != os.geteuid():
        return
    if os.path.islink(path):
        if not os.path.exists(path) and len(os.path.basename(path)) == len(_link_name()):
            os.unlink(path)
        return
    lock = _lock_folder(path)
    if lock is None:
        return
    try:
        inner = [os.path.join(path, name) for name in os.listdir(path)]
        if any(_is_held(one) for one in inner if one.rpartition("/")[2].startswith(PREFIXES)):
            return  # its worker is about to end, too
        for one in inner:  # what says whose it is last: if this ends in the middle, the next one goes on
            if os.path.basename(one) != OWNER_FILE:
                remove_tree(one)
        remove_tree(path)
    finally:
        os.close(lock)


def _lock_folder(folder: str) -> Optional[int]:
    """Take the lock of a folder whose process has ended; else None."""
    try:
        lock = os.open(os.path.join(folder, OWNER_FILE), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if os.read(lock, 1024) == socket.gethostname().encode():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _is_held(folder: str) -> bool:
    if not os.path.exists(os.path.join(folder, OWNER_FILE)):
        return False
    lock = _lock_folder(folder)
    if lock is not None:
        os.close(lock)
    return lock is None


def _link_name() -> str:
    return f"vine-{secrets.token_hex(3)}"


def update_link(link: str, folder: str) -> str:
    """Have a link lead to another folder; give the link, or the folder itself where there is no link."""
    if not link:
        return folder
    try:
        remove_tree(link)
        os.symlink(folder, link)
    except OSError:
        return folder
    return link


def create_link(folder: str) -> str:
    """Make a link with a short path to a folder; "" where that cannot be.

    The path of a socket has room for 107 bytes, and what is made in a temporary folder by Python alone takes 32 of them.
    """
    for place in LINK_FOLDERS:
        for _ in range(10):
            link = os.path.join(place, _link_name())
            try:
                os.symlink(folder, link)
            except FileExistsError:
                continue
            except OSError:
                break
            return link
    return ""
