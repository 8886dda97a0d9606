"""Puts the folder that a task has made into a folder of the user.

Other files may be there: those of an earlier run, or the user's own. Nothing is removed, as with
`cp -r` and `tar -x`.
"""

from __future__ import annotations

import os
import shutil
import stat
import threading

from vinecore.protocol import trees


def merge_folder(source: str, target: str) -> None:
    """Put all that is in a folder into another one, where it replaces files of the same names.

    The source stays as it is. Each file is replaced at once, so a reader finds the old or the new
    one. Links in the target are replaced like files and never followed: a link that a task has made
    must not lead its next output to another place.

    Parameters
    ----------
    source
        A folder.
    target
        A folder, or a link to one.

    Raises
    ------
    FileExistsError
        A folder of one has the name of a file of the other; nothing has been changed.
    OSError
        A file cannot be written; those before it have been replaced.
    """
    entries = [
        (entry, os.path.join(target, entry.name)) for entry in trees.iterate_entries(source, follow=False)
    ]
    for entry, place in entries:
        _check_place(place, is_folder=_is_folder(entry))
    for entry, place in entries:
        if not _is_folder(entry):
            _replace_file(entry.path, place)
        elif not os.path.isdir(place):
            os.mkdir(place)
            os.chmod(place, stat.S_IMODE(entry.about.st_mode))


def _is_folder(entry: trees.TreeEntry) -> bool:
    return entry.link is None and stat.S_ISDIR(entry.about.st_mode)


def _check_place(place: str, *, is_folder: bool) -> None:
    try:
        is_there_folder = stat.S_ISDIR(os.lstat(place).st_mode)
    except FileNotFoundError:
        return
    if is_folder != is_there_folder:
        here, made = ("a file", "a directory") if is_folder else ("a directory", "a file")
        msg = f"{place} is {here}, and the task made {made} of that name: remove or rename it"
        raise FileExistsError(msg)


def _replace_file(source: str, place: str) -> None:
    # one thread replaces one file at a time
    part = os.path.join(os.path.dirname(place), f".vine-{os.getpid()}-{threading.get_ident()}.part")
    try:
        try:
            os.link(source, part, follow_symlinks=False)
        # another file system, or one without hard links
        except OSError:
            shutil.copy2(source, part, follow_symlinks=False)
        os.replace(part, place)
    except BaseException:
        trees.remove_tree(part)
        raise
