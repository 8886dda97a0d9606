"""Create the folder of a task with its inputs, and take its outputs from it.

Inputs are copies, or, if they are large, read-only links to cached files. If the file system can
share the blocks of two files, large inputs are copies, too. A task may change its copies. A change
through a link is detected after the task (see `vineworker.storage.file_stamps`). All functions here
access the disk and run in a helper thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from typing import Any, NamedTuple, Optional, Union

from vinecore.protocol import messages, trees
from vinecore.protocol.transfer import digests
from vinecore.protocol.trees import remove_tree
from vineworker.machine.tmpdir import TMPDIR_NAME
from vineworker.storage.cache import Cache
from vineworker.storage.file_stamps import MIN_LINKED_BYTES, ObjectChanged
from vineworker.storage.files import tree_size

MAX_OUTPUT_BYTES = 1 << 20
"""Bytes of a task's output, its end, that are sent to the manager."""
THREAD_COUNT_VARIABLES = tuple(
    f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM")
)
FICLONE = 0x40049409
"""Request of `ioctl` by which two files share their blocks until one of them is written."""


def create_sandbox(folder: str, mounts: list[Any], cache: Cache, *, link: bool = True) -> dict[int, int]:
    """Create a sandbox; return its copies of inputs, as sizes by inode.

    Parameters
    ----------
    folder
        Must not exist yet.
    mounts
        ``[name, remote name, symlink]`` for each input, or ``[name, remote name, symlink, mode]``
        for a copy with these permission bits.
    cache
        Has the inputs.
    link
        Whether there may be hard links to inputs. If so, `Cache.check_sandbox` and `remove_sandbox`
        have to follow.

    Raises
    ------
    ObjectChanged
        An input has changed since it was stored.
    """
    os.mkdir(folder, mode=0o700)
    filling = _SandboxBuilder(folder, cache, link)
    try:
        for name, remote, symlink, *modes in mounts:
            target = resolve_in_sandbox(folder, remote)
            if os.path.dirname(target) != folder or os.path.lexists(target):
                _check_target_free(folder, remote, target)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            filling.put_input(name, target, symlink, modes[0] if modes else None)
    except BaseException:
        cache.release_sandbox(folder)
        raise
    return filling.copies


class _SandboxBuilder:
    """Puts inputs into a sandbox."""

    def __init__(self, folder: str, cache: Cache, link: bool) -> None:
        self._folder, self._cache, self._link = folder, cache, link
        self.copies: dict[int, int] = {}

    def put_input(self, name: str, target: str, symlink: bool, mode: Optional[int] = None) -> None:
        source = self._cache.checked_path(name)
        if symlink and mode is None:
            if self._link:
                self._cache.file_stamps.record_symlink(self._folder, name)
            else:
                self._cache.file_stamps.mark_linked(name)
            os.symlink(source, target)
        elif os.path.isdir(source):
            self._put_tree(name, source, target)
        else:
            self._put_file(name, "", source, os.stat(source), target, may_link=mode is None)
        if mode is not None:
            _set_mode(target, mode)
        if not self._cache.is_intact(name):  # while it was copied
            raise ObjectChanged([name], "has been changed on this worker's disk")

    def _put_tree(self, name: str, source: str, target: str) -> None:
        os.mkdir(target)
        folders = [(target, os.stat(source).st_mode)]
        for entry in trees.iterate_entries(source, follow=False):
            place = os.path.join(target, entry.name)
            if entry.link is not None:
                os.symlink(entry.link, place)
            elif stat.S_ISDIR(entry.about.st_mode):
                os.mkdir(place)
                folders.append((place, entry.about.st_mode))
            else:
                self._put_file(name, entry.name, entry.path, entry.about, place)
        # last, because nothing can be put into one that is read-only
        for place, mode in reversed(folders):
            os.utime(place, (trees.SINGLE_FILE_TIME_S, trees.SINGLE_FILE_TIME_S))
            _set_mode(place, trees.folder_mode(mode))

    def _put_file(
        self,
        name: str,
        inner: str,
        source: str,
        about: os.stat_result,
        target: str,
        *,
        may_link: bool = True,
    ) -> None:
        size, cache = about.st_size, self._cache
        large = size >= MIN_LINKED_BYTES
        if not (large and _clone_blocks(source, target)):
            # for root nothing is read-only
            wanted = large and os.geteuid() != 0
            may = may_link and self._link and cache.file_stamps.can_link(name)
            if (
                may
                and (wanted or not cache.reserve_copy_space(self._folder, size))
                and self._try_link(name, inner, target)
            ):
                return
            shutil.copyfile(source, target)
        os.utime(target, ns=(about.st_atime_ns, about.st_mtime_ns))
        _set_mode(target, trees.visible_mode(about.st_mode))
        self.copies[os.stat(target).st_ino] = size

    def _try_link(self, name: str, inner: str, target: str) -> bool:
        try:
            self._cache.file_stamps.link_into_sandbox(self._folder, name, inner, target)
        except ObjectChanged:
            raise
        except OSError:
            # there can be none on this file system, or not so many
            return False
        return True


def _clone_blocks(source: str, target: str) -> bool:
    """Have a file share its blocks with another one; return whether the file system can."""
    with open(source, "rb") as file, open(target, "wb") as copy:
        try:
            fcntl.ioctl(copy.fileno(), FICLONE, file.fileno())
        except OSError:
            return False
    return True


def link_files(source: str, mounts: list[Any], folder: str) -> None:
    """Add symbolic links to inputs of another folder, where nothing else has their names."""
    for _name, remote, *_how in mounts:
        target = resolve_in_sandbox(folder, remote)
        with contextlib.suppress(OSError, ValueError):
            _check_target_free(folder, remote, target)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.symlink(os.path.join(source, remote), target)


def _set_mode(path: str, mode: int) -> None:
    # some file systems have no modes
    with contextlib.suppress(PermissionError):
        os.chmod(path, mode)


def resolve_in_sandbox(folder: str, remote: str) -> str:
    """Return the path of a name in a sandbox.

    Raises
    ------
    ValueError
        The name is outside of the sandbox.
    """
    path = os.path.normpath(os.path.join(folder, remote))
    if os.path.isabs(remote) or not path.startswith(folder + os.sep):
        msg = f"the name {remote!r} would be outside of the task's sandbox"
        raise ValueError(msg)
    return path


def _check_target_free(folder: str, remote: str, target: str) -> None:
    """Check that an input is not written through a link, or over a file, of another input."""
    way = os.path.dirname(target)
    if os.path.realpath(way) != os.path.join(
        os.path.realpath(folder), os.path.relpath(way, folder)
    ).removesuffix("/."):
        msg = f"the name {remote!r} leads through a link of another input"
        raise ValueError(msg)
    if os.path.lexists(target):
        msg = f"the name {remote!r} is taken: another input has something there"
        raise ValueError(msg)


class CollectedOutputs(NamedTuple):
    """The outputs of a task."""

    sizes: dict[str, int]  # bytes of each object
    # of those that are files
    digests: dict[str, str]
    # remote names of what should be there and is not
    missing: list[str]


class UnusableOutput(ValueError):
    """A file of a task cannot be an output; the text has its name in the sandbox."""


def collect_outputs(folder: str, outputs: list[Any], cache: Cache, *, failed: bool) -> CollectedOutputs:
    """Move a task's outputs into the cache.

    Parameters
    ----------
    folder
        The sandbox.
    outputs
        ``[remote name, object name, on]`` with ``on`` one of "always", "success", "failure".
    cache
        Stores the outputs.
    failed
        Whether the task has failed.

    Raises
    ------
    UnusableOutput
        There is a pipe, a socket or a device in a folder.
    """
    try:
        return _collect(folder, outputs, cache, failed=failed)
    except ValueError as error:
        raise UnusableOutput(str(error).replace(os.path.join(folder, ""), "")) from error


def _collect(folder: str, outputs: list[Any], cache: Cache, *, failed: bool) -> CollectedOutputs:
    wanted = [
        (remote, name) for remote, name, when in outputs if when != ("success" if failed else "failure")
    ]
    found: dict[str, str] = {}
    absent: list[str] = []
    odd: list[str] = []
    for remote, name in wanted:
        path = resolve_in_sandbox(folder, remote)
        _make_accessible(folder, path)
        # a pipe or a device has no end
        if os.path.isfile(path) or os.path.isdir(path):
            found[name] = path
        else:
            try:
                trees.check_kind(remote, os.stat(path).st_mode)
            except ValueError as error:
                odd.append(str(error))
            except OSError:
                pass
            if not any(text.startswith(f"{remote} is ") for text in odd):
                absent.append(remote)
    for number, (name, path) in enumerate(found.items()):
        found[name] = _make_self_contained(path, folder, number)
    cache.check_fits("what it has made", sum(map(tree_size, found.values())))
    sizes: dict[str, int] = {}
    sums: dict[str, str] = {}
    for name, path in found.items():
        if not os.path.isdir(path):
            sums[name] = digests.hash_file(path)
        cache.store(name, path, sums.get(name, ""))
        sizes[name] = cache.size(name)
    missing = [f"the task did not make {', '.join(absent)}"] if absent else []
    return CollectedOutputs(sizes, sums, [*missing, *odd])


def _make_accessible(folder: str, path: str) -> None:
    """Add permissions to a task's own folders above an output, so that it can be moved."""
    way = folder
    for part in os.path.relpath(os.path.dirname(path), folder).split(os.sep):
        way = os.path.normpath(os.path.join(way, part))
        try:
            about = os.lstat(way)
        except OSError:
            return
        if not stat.S_ISDIR(about.st_mode):
            return
        if about.st_mode & 0o700 != 0o700:
            os.chmod(way, about.st_mode & 0o777 | 0o700)


def _make_self_contained(path: str, folder: str, number: int) -> str:
    """Return the path of an output without links into the sandbox or to cached files.

    It is copied if it is such a link itself.
    """
    real = os.path.realpath(path)
    behind = real != os.path.join(os.path.realpath(folder), os.path.relpath(path, folder))
    # what it is stays where it is
    if behind or (os.path.isfile(path) and os.stat(path).st_nlink > 1):
        path = os.path.join(folder, f".vine-copy-{number}")
        trees.copy_tree(real, path)
    if os.path.isdir(path):
        trees.set_modes(path, lambda mode: mode | 0o400, lambda mode: mode | 0o500)
        trees.make_self_contained(path, os.path.dirname(folder))
    else:
        trees.set_modes(path, lambda mode: mode | 0o400)
    return path


def remove_sandbox(folder: str, cache: Cache) -> None:
    """Remove a sandbox; often only the empty folder for temporary files is left in it."""
    cache.release_sandbox(folder)
    try:
        os.rmdir(os.path.join(folder, TMPDIR_NAME))
        os.rmdir(folder)
    except OSError:
        remove_tree(folder)


def discard_task_files(folder: str, output: str, who: str, cache: Cache) -> None:
    """Remove the files of a task without outputs.

    Parameters
    ----------
    folder, output
        Its sandbox, and its output file.
    who
        The task, for the log.
    cache
        Has its inputs.
    """
    try:
        with contextlib.suppress(ObjectChanged):
            cache.check_sandbox(folder, who)
    finally:
        remove_sandbox(folder, cache)
        remove_tree(output)


def read_log_tail(path: str, limit: int = MAX_OUTPUT_BYTES) -> str:
    """Read the end of a log."""
    try:
        if not os.path.getsize(path):  # mostly
            return ""
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def task_environment(options: dict[str, Any], sandbox: str, short: str = "") -> dict[str, str]:
    """Return the environment variables of a task: resources, folders, and those of the user.

    The names are TaskVine's: CORES, MEMORY, DISK, GPUS, thread counts of numeric libraries, TMPDIR.

    Parameters
    ----------
    options
        Options of the task.
    sandbox
        Its folder.
    short
        A short path to that, or "". TMPDIR is below it, as the paths of sockets must be short.
    """
    variables: dict[str, str] = {"VINE_SANDBOX": sandbox}
    allocation = options.get("allocation")
    if allocation:
        cores = max(1, int(allocation[0]))
        variables.update(
            CORES=str(cores), MEMORY=str(allocation[1]), DISK=str(allocation[2]), GPUS=str(int(allocation[3]))
        )
        variables.update(dict.fromkeys(THREAD_COUNT_VARIABLES, str(cores)))
    temporary = os.path.join(sandbox, TMPDIR_NAME)
    os.makedirs(temporary, exist_ok=True)
    temporary = os.path.join(short or sandbox, TMPDIR_NAME)
    variables.update(TMPDIR=temporary, TMP=temporary, TEMP=temporary)
    variables.update(options.get("env", {}))
    return variables


def done_or_missing_output(
    run: messages.RunTask, sizes: dict[str, int], missing: list[str], done: messages.TaskDone
) -> Union[messages.TaskDone, messages.TaskFailed]:
    """Return the message of a finished task, or a failure if an output is missing.

    Parameters
    ----------
    run, sizes
        The task, and the sizes of its outputs.
    missing
        Reasons why outputs are missing.
    done
        The message without missing outputs.
    """
    if missing:
        reason = "; ".join(missing)
        return messages.TaskFailed(
            run.task, "output missing", {**done.info, "reason": reason, "outputs": sizes}, b""
        )
    return done
