"""The folder a task runs in: its inputs are linked in, its outputs are taken out.

Inputs are links to cached files with the write permission taken away, so that a task that damages its input cannot damage the cache;
where links do not work, copies. Everything here touches the disk and runs in a helper thread.
"""

from __future__ import annotations

import os
import shutil
import stat
from typing import Any, NamedTuple, Union

from vinecore.protocol import bulk, digests, messages
from vineworker.cache import Cache, tree_size

TEMPORARY = ".vine"
OUTPUT_LIMIT = 1 << 20
"""Bytes of a task's output (its end) that are sent to the manager."""


class MissingOutput(Exception):
    """A task has ended without making what it said it would."""


def make(folder: str, mounts: list[Any], cache: Cache) -> None:
    """Make a sandbox.

    Parameters
    ----------
    folder
        Must not exist yet.
    mounts
        ``[name, remote name, symlink]`` for each input.
    """
    os.mkdir(folder, mode=0o700)
    for name, remote, symlink in mounts:
        target = inside(folder, remote)
        if os.path.dirname(target) != folder or os.path.lexists(target):
            _refuse_links(folder, remote, target)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        source = cache.path(name)
        if symlink:
            if not os.path.isdir(source):
                _protect(source)
            os.symlink(source, target)
        elif os.path.isdir(source):
            shutil.copytree(source, target, symlinks=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(source, target)


def inside(folder: str, remote: str) -> str:
    """Give the path of a name in a sandbox.

    Raises
    ------
    ValueError
        The name would climb out of the sandbox.
    """
    path = os.path.normpath(os.path.join(folder, remote))
    if os.path.isabs(remote) or not path.startswith(folder + os.sep):
        msg = f"the name {remote!r} would be outside of the task's sandbox"
        raise ValueError(msg)
    return path


def _refuse_links(folder: str, remote: str, target: str) -> None:
    """Make sure that nothing is written through a link, or over something, that an input has brought."""
    way = os.path.dirname(target)
    if os.path.realpath(way) != os.path.join(
        os.path.realpath(folder), os.path.relpath(way, folder)
    ).removesuffix("/."):
        msg = f"the name {remote!r} leads through a link of another input"
        raise ValueError(msg)
    if os.path.lexists(target):
        msg = f"the name {remote!r} is taken: another input has something there"
        raise ValueError(msg)


def _protect(source: str) -> None:
    mode = os.stat(source).st_mode
    if mode & 0o222:
        os.chmod(source, stat.S_IMODE(mode) & ~0o222)


def _link_or_copy(source: str, target: str, **_options: Any) -> str:
    _protect(source)
    if os.geteuid() == 0:  # nothing is read-only for root: only a copy protects the cache
        shutil.copy2(source, target)
        return target
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


class Collected(NamedTuple):
    """What a task has left."""

    sizes: dict[str, int]  # bytes of each object
    digests: dict[str, str]  # of those that are files
    missing: list[str]  # remote names of what should be there and is not


def collect(folder: str, outputs: list[Any], cache: Cache, *, failed: bool) -> Collected:
    """Move a task's outputs into the cache.

    Parameters
    ----------
    outputs
        ``[remote name, object name, on]`` with ``on`` one of "always", "success", "failure".
    """
    left = [
        inside(folder, remote)
        for remote, _name, when in outputs
        if when != ("success" if failed else "failure")
    ]
    cache.check("what it has made", sum(tree_size(path) for path in left if os.path.exists(path)))
    sizes: dict[str, int] = {}
    sums: dict[str, str] = {}
    missing: list[str] = []
    for remote, name, when in outputs:
        if when == ("success" if failed else "failure"):
            continue
        path = inside(folder, remote)
        if not (os.path.isfile(path) or os.path.isdir(path)):  # a pipe or a device has no end
            missing.append(remote)
            continue
        real = os.path.realpath(path)
        if real != os.path.join(
            os.path.realpath(folder), os.path.relpath(path, folder)
        ):  # a link, or behind one: what it points to stays there
            path = _copied(real, os.path.join(folder, f".vine-copy-{len(sizes)}"))
        if not os.path.isdir(path):
            sums[name] = digests.of_file(path)
        cache.store(name, path)
        sizes[name] = cache.size(name)
    return Collected(sizes, sums, missing)


def clear(folder: str) -> None:
    """Remove a sandbox; mostly nothing is left in it but the empty folder for temporary files."""
    try:
        os.rmdir(os.path.join(folder, TEMPORARY))
        os.rmdir(folder)
    except OSError:
        bulk.remove(folder)


def _copied(source: str, target: str) -> str:
    if os.path.isdir(source):
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target)
    return target


def read_end(path: str, limit: int = OUTPUT_LIMIT) -> str:
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


def environment(options: dict[str, Any], sandbox: str, short: str = "") -> dict[str, str]:
    """Variables for a task: what it may use, where it may write, and what the user set.

    Names as TaskVine's: CORES, MEMORY, DISK, GPUS, thread limits of the numeric libraries, TMPDIR. This one begins with a short path to the sandbox,
    if there is one: sockets that are made there must not have long paths.
    """
    variables: dict[str, str] = {"VINE_SANDBOX": sandbox}
    allocation = options.get("allocation")
    if allocation:
        cores = max(1, int(allocation[0]))
        variables.update(
            CORES=str(cores), MEMORY=str(allocation[1]), DISK=str(allocation[2]), GPUS=str(int(allocation[3]))
        )
        for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM"):
            variables[f"{name}_NUM_THREADS"] = str(cores)
    temporary = os.path.join(sandbox, TEMPORARY)
    os.makedirs(temporary, exist_ok=True)
    temporary = os.path.join(short or sandbox, TEMPORARY)
    variables.update(TMPDIR=temporary, TMP=temporary, TEMP=temporary)
    variables.update(options.get("env", {}))
    return variables


def verdict(
    run: messages.Run, sizes: dict[str, int], missing: list[str], done: messages.Done
) -> Union[messages.Done, messages.Failed]:
    """Done, unless an output is missing."""
    if missing:
        reason = f"the task did not make {', '.join(missing)}"
        return messages.Failed(
            run.task, "output missing", {**done.info, "reason": reason, "outputs": sizes}, b""
        )
    return done
