"""Give the vertices the folder of the program, and report workers that do not see it.

In a vertex a relative path means the working folder of the program, and its modules are found as in the program.
`vinecore.protocol.program_folders` has the proofs by which a worker recognizes these folders. If workers on
other machines may come, the manager puts a small file into a hidden folder in each of them, locks it, and
removes both at its end. Files that a killed program has left are not locked any more: the next manager of the
same user removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from vinecore.errors import add_note
from vinecore.protocol import user_modules
from vinecore.protocol.program_folders import Folder, Program, describe_folder, running_kernel

TOKEN_PREFIX = ".daskvine-"  # noqa: S105 - the beginning of a folder's name
TOKEN_FILE, GITIGNORE_FILE = "token", ".gitignore"
"""In that folder: the file that proves it, and one for which git does not see it."""
MAX_TOKEN_AGE_S = 7 * 24 * 3600
"""What is as old as this, and not locked, belongs to a program that was killed on another machine."""


class FolderToken(NamedTuple):
    """A file that this process has put into a folder."""

    name: str
    content: str
    descriptor: int  # holds the lock
    identity: tuple[int, int]


class ProgramFolders:
    """Describes the folders of this program.

    Parameters
    ----------
    here_only
        Whether all workers are on this machine, where the kernel says enough, and nothing has to be written.
    """

    def __init__(self, here_only: bool = False) -> None:
        self.is_local_only = here_only
        self._tokens: dict[str, FolderToken] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def describe_program(self, *, has_files: bool = False) -> Program:
        """Describe where this program is now, and what it can import."""
        with self._lock:
            first, last = self._describe_import_folders()
            return Program(self._describe_folder(find_working_folder()), first, last, has_files)

    def describe_folder(self, path: str) -> Folder | None:
        """Describe a folder; None if there is no such folder."""
        with self._lock:
            return self._describe_folder(path)

    def close(self) -> None:
        """Take away what was put into the folders."""
        with self._lock:
            tokens, self._tokens = self._tokens, {}
        if os.getpid() != self._process:  # a child of this program must not take away what is its parent's
            return
        for path, token in tokens.items():
            _remove_token(os.path.join(path, token.name), token)

    def _describe_import_folders(self) -> tuple[tuple[Folder, ...], tuple[Folder, ...]]:
        own: tuple[list[Folder], list[Folder]] = ([], [])
        seen: set[str] = set()
        after = False
        for entry in sys.path:
            path = os.path.join(find_working_folder(), entry)
            if user_modules.is_package_file(os.path.join(path, "module.py")):
                after = True
            elif path not in seen and (folder := self._describe_folder(path)) is not None:
                seen.add(path)
                own[after].append(folder)
        return tuple(own[0]), tuple(own[1])

    def _describe_folder(self, path: str) -> Folder | None:
        if not path or not os.path.exists(path):
            return None
        path = os.path.abspath(path)
        try:
            if self.is_local_only and running_kernel():
                return describe_folder(path)
            token = self._ensure_token(path)
            if token is None:
                return describe_folder(path, listed=True)
            return describe_folder(path, token.name, token.content)
        except OSError:
            return None

    def _ensure_token(self, path: str) -> FolderToken | None:
        """Return the token in a folder, which is made if it is not there; None if nothing can be written there."""
        found = self._tokens.get(path)
        if found is not None:
            if _find_identity(os.path.join(path, found.name)) == found.identity:
                return found
            os.close(found.descriptor)  # the file was removed, or the folder is another one
            del self._tokens[path]
        if not os.path.isdir(path):
            return None
        _remove_stale_tokens(path)
        made = _make_token(path)
        if made is not None:
            self._tokens[path] = made
        return made


def find_working_folder() -> str:
    """Return the working folder of this program; "" if it has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


# ---- tokens


def _make_token(path: str) -> FolderToken | None:
    name = TOKEN_PREFIX + secrets.token_hex(8)
    content = f"{secrets.token_hex(16)} of {socket.gethostname()}\n"
    place = os.path.join(path, name)
    try:
        os.mkdir(place, 0o700)
    except OSError:
        return None
    try:
        with open(os.path.join(place, GITIGNORE_FILE), "w") as ignored:
            ignored.write("*\n")
        descriptor = os.open(os.path.join(place, TOKEN_FILE), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with contextlib.suppress(OSError):  # not all file systems have locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, content.encode())
        os.fsync(descriptor)
    except OSError:  # such as a disk that is full
        _remove_token_files(place)
        return None
    found = os.fstat(descriptor)
    return FolderToken(os.path.join(name, TOKEN_FILE), content, descriptor, (found.st_dev, found.st_ino))


def _remove_token(path: str, token: FolderToken) -> None:
    if _find_identity(path) == token.identity:
        _remove_token_files(os.path.dirname(path))
    os.close(token.descriptor)


def _remove_token_files(place: str) -> None:
    with contextlib.suppress(OSError):
        for name in (GITIGNORE_FILE, TOKEN_FILE):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(place, name))
        os.rmdir(place)


def _find_identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _remove_stale_tokens(path: str) -> None:
    """Remove the tokens of programs of this user that were killed."""
    try:
        with os.scandir(path) as entries:
            places = [entry.path for entry in entries if entry.name.startswith(TOKEN_PREFIX)]
    except OSError:
        return
    for place in places:
        with contextlib.suppress(OSError):
            if _is_stale(place):
                _remove_token_files(place)


def _is_stale(place: str) -> bool:
    if os.lstat(place).st_uid != os.getuid():
        return False
    descriptor = os.open(os.path.join(place, TOKEN_FILE), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # a running manager holds the lock
        content = os.read(descriptor, 1000).decode(errors="replace")
        ours = content.endswith(f" of {socket.gethostname()}\n")
        return ours or time.time() - found.st_mtime > MAX_TOKEN_AGE_S
    finally:
        os.close(descriptor)


# ---- what is said where a worker does not see it


def explain_unseen_folder(error: BaseException, unseen: str | None, worker: str) -> None:
    """Add to an exception of a vertex that its worker does not see the program's folder, if that may be why.

    Parameters
    ----------
    unseen
        The folder, "" if it has been removed, or None if the worker sees it.
    """
    if unseen is None:
        return
    for one in _iterate_causes(error):
        if isinstance(one, FileNotFoundError) and not os.path.isabs(str(one.filename or "")):
            add_note(error, _explain_missing_file(unseen, worker))
            return
        if isinstance(one, ModuleNotFoundError) and _is_own(one.name):
            add_note(error, _explain_missing_module(str(one.name).partition(".")[0], unseen, worker))
            return


def _iterate_causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__context__, one.__cause__]


def _is_own(name: str | None) -> bool:
    if not name:
        return False
    try:
        return name.partition(".")[0] in sys.modules and not user_modules.is_package_module(name)
    except (ImportError, ValueError):
        return False


def _explain_reason(unseen: str, worker: str) -> str:
    if not unseen:
        return "the folder of this program has been removed, so the vertex ran in a folder of its process"
    return f"{worker or 'the worker'} does not see that folder, so the vertex ran in a folder of its process"


def _explain_missing_file(unseen: str, worker: str) -> str:
    return (
        f"a relative path means the folder of this program{f', {unseen}' if unseen else ''}; {_explain_reason(unseen, worker)}. "
        "Use an absolute path on a file system that the workers share, or an XRootD URL (root://...); or have the file beside each "
        "vertex with extra_files={m.declare_file('nano.root'): 'nano.root'}"
    )


def _explain_missing_module(name: str, unseen: str, worker: str) -> str:
    return (
        f"{name} is a module of this program's own, and {_explain_reason(unseen, worker)}. Send it by value with "
        f"cloudpickle.register_pickle_by_value({name}), or as a file with extra_files={{m.declare_file({name}.__file__): '{name}.py'}}, or "
        "in an environment with environment='my-env.tar.gz'"
    )


def describe_lost_files(names: list[str], unseen: str) -> str:
    """Describe files that a vertex has written under relative names where the program's folder is not seen."""
    listed = ", ".join(names)
    return (
        f"wrote {listed} under a relative name, and its worker does not see {unseen or 'the folder of this program'}: these "
        "files are removed with the folder of its process. Use an absolute path on a file system that the workers share, or return "
        "what was written"
    )
