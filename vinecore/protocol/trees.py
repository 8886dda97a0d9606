"""Directory trees and single files as tasks see them: which modes and times they have, and what of a tree travels.

What a task can see of an input is part of its name, or it is the same everywhere. A single file has one of four modes, and one time; a
tree keeps the times of its files, which `make` compares.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple, Union

DEFAULT_FILE_MODE = 0o444
SINGLE_FILE_TIME_S = 946_684_800
"""When any single file was changed last, as tasks see it: the first of January 2000. Older ones do not fit into a zip archive."""
UNSUPPORTED_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def list_names(folder: str) -> list[str]:
    """Return the names in a folder; none if it cannot be listed."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


class TreeEntry(NamedTuple):
    """One part of a tree.

    Attributes
    ----------
    name : str
        Below the tree.
    path : str
        Where its content is.
    about : os.stat_result
        Of the content.
    link : str or None
        What it points to, if it is a link and travels as one.
    """

    name: str
    path: str
    about: os.stat_result
    link: str | None = None


def visible_mode(mode: int) -> int:
    """Give the mode that a task sees of a file: nobody may write to an input; all may read it, or its owner only; and run it, or not.

    Examples
    --------
    >>> [oct(shown_mode(mode)) for mode in (0o644, 0o600, 0o775, 0o4700)]
    ['0o444', '0o400', '0o555', '0o500']
    """
    own = 0o500 if mode & 0o111 else 0o400
    return own | own >> 3 | own >> 6 if mode & 0o044 else own


def folder_mode(mode: int) -> int:
    """Give the mode of a folder of a tree: its owner can always look into it."""
    return mode & 0o777 | 0o500


def check_kind(path: str, mode: int) -> None:
    """Make sure that something has a content that can travel.

    Raises
    ------
    ValueError
        It is a pipe, a socket or a device.
    """
    kind = UNSUPPORTED_KINDS.get(stat.S_IFMT(mode))
    if kind is not None:
        msg = f"{path} is {kind}: only files, folders and links in them can be inputs and outputs"
        raise ValueError(msg)


def iterate_entries(folder: str, *, follow: bool) -> Iterator[TreeEntry]:
    """Go through a tree, in an order that depends on its names only.

    Parameters
    ----------
    folder
        May be a link to one.
    follow
        Give for links that lead out of the tree, or would if the tree were elsewhere, what they point to. Those that point to nothing stay.

    Raises
    ------
    ValueError
        There is a pipe, a socket or a device in it, or a link that is to be followed leads to a folder that it is in.
    OSError
        A part of it cannot be read.
    """
    real = os.path.realpath(folder)
    return _iterate_folder(real, "", "", follow, (real,))


def _iterate_folder(
    folder: str, prefix: str, root: str, follow: bool, above: tuple[str, ...]
) -> Iterator[TreeEntry]:
    """As `entries`; ``root`` is the part of the names that links may not climb out of, ``above`` the folders on the way here."""
    with os.scandir(folder) as found:
        inner = sorted(found, key=lambda entry: entry.name)
    for entry in inner:
        name = prefix + entry.name
        about = entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(about.st_mode):
            link = os.readlink(entry.path)
            real = os.path.realpath(entry.path)
            if not follow or not os.path.exists(real) or _stays_inside(link, name[len(root) :]):
                yield TreeEntry(name, entry.path, about, link)
                continue
            about = os.stat(real)
            if stat.S_ISDIR(about.st_mode) and any(_is_below(one, real) for one in above):
                msg = f"{entry.path} is a link to {real}, a folder that it is in itself, so there would be no end to what is in it"
                raise ValueError(msg)
            yield from _iterate_entry(name, real, about, name + "/", follow, above)
        else:
            yield from _iterate_entry(name, entry.path, about, root, follow, above)


def _iterate_entry(
    name: str, path: str, about: os.stat_result, root: str, follow: bool, above: tuple[str, ...]
) -> Iterator[TreeEntry]:
    check_kind(path, about.st_mode)
    yield TreeEntry(name, path, about)
    if stat.S_ISDIR(about.st_mode):
        yield from _iterate_folder(path, name + "/", root, follow, (*above, os.path.realpath(path)))


def _stays_inside(link: str, name: str) -> bool:
    """Whether a link leads to something of its tree, wherever that is; a path that goes down before it climbs may pass another link."""
    parts = link.split("/")
    climbs = next((number for number, part in enumerate(parts) if part not in ("..", ".", "")), len(parts))
    return (
        not os.path.isabs(link)
        and ".." not in parts[climbs:]
        and parts[:climbs].count("..") <= name.count("/")
    )


def make_self_contained(tree: str, surrounding: str) -> None:
    """Have what a tree shares with the folder around it, which will go, in the tree: what its links point to, and files that are linked elsewhere."""
    top, around = os.path.realpath(tree), os.path.realpath(surrounding)
    for entry in list(iterate_entries(tree, follow=False)):
        if entry.link is None:
            if stat.S_ISREG(entry.about.st_mode) and entry.about.st_nlink > 1:
                shutil.copy2(entry.path, entry.path + ".vine-copy")
                os.replace(entry.path + ".vine-copy", entry.path)
            continue
        real = os.path.realpath(entry.path)
        if not _is_below(real, around) or not os.path.exists(real):
            continue
        if _is_below(real, top) and not os.path.isabs(entry.link):
            continue
        if _is_below(entry.path, real):
            msg = f"{entry.name} is a link to a folder that it is in itself"
            raise ValueError(msg)
        os.unlink(entry.path)
        copy_tree(real, entry.path)


def _is_below(path: str, folder: str) -> bool:
    return (path + os.sep).startswith(folder.rstrip(os.sep) + os.sep)


def copy_tree(source: str, target: str) -> None:
    """Copy a file or a tree, whose links are followed only where they lead out of it."""
    if not os.path.isdir(source):
        shutil.copy2(source, target)
        return
    os.mkdir(target)
    for entry in iterate_entries(source, follow=True):
        place = os.path.join(target, entry.name)
        if entry.link is not None:
            os.symlink(entry.link, place)
        elif stat.S_ISDIR(entry.about.st_mode):
            os.mkdir(place)
        else:
            shutil.copy2(entry.path, place)


def stamp_tree(folder: str) -> tuple[Any, ...]:
    """Give what changes when a part of a tree does: names, sizes and times, without reading any content."""
    return tuple(
        (
            entry.name,
            entry.link or "",
            entry.about.st_mode,
            entry.about.st_size,
            entry.about.st_mtime_ns,
            entry.about.st_ino,
        )
        for entry in iterate_entries(folder, follow=True)
        if not stat.S_ISDIR(entry.about.st_mode)
    )


def set_modes(
    path: str, of_file: Callable[[int], int], of_folder: Union[Callable[[int], int], None] = None
) -> None:
    """Change the permissions of a file, or of all files and folders of a tree, to what is wanted for those they have; of a folder first, then of what is in it."""
    about = os.stat(path)
    of_folder = of_folder or of_file
    if not stat.S_ISDIR(about.st_mode):
        _set_mode(path, about, of_file)
        return
    _set_mode(path, about, of_folder)
    for entry in iterate_entries(path, follow=False):
        if entry.link is None:
            _set_mode(entry.path, entry.about, of_folder if stat.S_ISDIR(entry.about.st_mode) else of_file)


def _set_mode(path: str, about: os.stat_result, wanted: Callable[[int], int]) -> None:
    mode = wanted(about.st_mode & 0o777)
    if mode != about.st_mode & 0o777:
        with contextlib.suppress(PermissionError):  # some file systems have no modes
            os.chmod(path, mode | about.st_mode & stat.S_ISGID)


def remove_tree(path: str) -> None:
    """Remove a file or a tree, if it exists, even if a task has made parts of it unreadable."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
        if os.path.isdir(path):
            _make_folders_accessible(path)
            shutil.rmtree(path, ignore_errors=True)
    else:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass


def _make_folders_accessible(path: str) -> None:
    """Make all folders of a tree readable and writable, from the top down."""
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        try:
            os.chmod(folder, 0o700)
            with os.scandir(folder) as inner:
                waiting += [entry.path for entry in inner if entry.is_dir(follow_symlinks=False)]
        except OSError:
            # another user's folder, or removed meanwhile
            pass
