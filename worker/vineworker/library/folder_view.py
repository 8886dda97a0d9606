"""A program's folder with more files in it: a private folder of links, in which one process runs calls.

The view has a link for each entry of the program's folder and for each file that came along, which goes first where both have a name. The folders
above are there in the same way, so that ``../data`` leads where it should. What a call writes to an entry that exists goes through the link;
what it creates, replaces, renames or deletes in the view itself is carried over to the program's folder when the call is over.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from typing import Optional

from vinecore.protocol.trees import remove_tree

RESERVED_PREFIX = ".vine"
"""Beginning of the names of what the worker itself puts into a folder."""
MIN_AGE_NS = 2_000_000_000
"""A folder that has been changed so lately may be changed again without another time of change."""

MAX_TRUSTED_CALL_S = 24 * 3600
"""What has vanished during a call of so many seconds may have been removed by who cleans up old links."""


class FolderView:
    """A view of one folder.

    Parameters
    ----------
    folder
        The program's.
    beside
        Where the files are that came along.
    root
        Where the view is made; must not exist yet.

    Attributes
    ----------
    path
        The view of the folder.
    """

    def __init__(self, folder: str, beside: str, root: str) -> None:
        self._root, self._began = root, time.monotonic()
        self._listed_ns: dict[
            str, int
        ] = {}  # folder -> its time of change, if it had settled when it was listed
        self._placed: dict[
            str, dict[str, Optional[str]]
        ] = {}  # folder of the view -> name -> target, None for a folder
        self._sources: dict[
            str, list[str]
        ] = {}  # folder of the view -> what it shows; the program's own is the last
        self.path = _link_parents(folder, root)
        self._fill_view(self.path, [beside, folder])

    def refresh(self) -> None:
        """Show what others have created meanwhile, and no longer what they have deleted."""
        self._began = time.monotonic()
        for view, sources in list(self._sources.items()):
            if not os.path.isdir(view):
                continue
            if any(self._listed_ns.get(s) != os.stat(s).st_mtime_ns for s in sources):
                self._fill_view(view, sources)
            self._restore_links(view)

    def _restore_links(self, view: str) -> None:
        """Put back what somebody has cleaned up between two calls: only what a call deletes is deleted."""
        there = set(os.listdir(view))
        for name, target in self._placed[view].items():
            if target is not None and name not in there:
                os.symlink(target, os.path.join(view, name))

    def close(self) -> None:
        """Remove the view, and nothing that its links lead to."""
        remove_tree(self._root)

    def _list_names(self, folder: str) -> list[str]:
        self._listed_ns.pop(folder, None)
        changed = os.stat(folder).st_mtime_ns
        if time.time_ns() - changed > MIN_AGE_NS:
            self._listed_ns[folder] = changed
        return [name for name in os.listdir(folder) if not name.startswith(RESERVED_PREFIX)]

    def _fill_view(self, view: str, sources: list[str]) -> None:
        wanted: dict[str, list[str]] = {}
        for source in sources:
            for name in self._list_names(source):
                wanted.setdefault(name, []).append(os.path.join(source, name))
        self._sources[view] = sources
        placed = self._placed.setdefault(view, {})
        for name in set(placed) - set(wanted):
            if placed.pop(name) is not None:
                _remove_link(os.path.join(view, name))
        for name, paths in wanted.items():
            shown = os.path.join(view, name)
            if len(paths) > 1 and all(map(os.path.isdir, paths)):
                os.makedirs(shown, exist_ok=True)
                placed[name] = None
                self._fill_view(shown, paths)
            elif placed.get(name) != paths[0]:
                _remove_link(shown)
                os.symlink(paths[0], shown)
                placed[name] = paths[0]

    # ---- after a call

    def apply_changes(self) -> None:
        """Do in the program's folder what a call has done in the view of it."""
        for view, sources in list(self._sources.items()):
            if os.path.isdir(view):
                self._apply_view_changes(view, sources[-1])

    def _apply_view_changes(self, view: str, folder: str) -> None:
        placed = self._placed[view]
        with os.scandir(view) as entries:
            found = {entry.name: os.readlink(entry.path) if entry.is_symlink() else None for entry in entries}
        new = [name for name in found if name not in placed or found[name] != placed[name]]
        gone = {
            target: name
            for name, target in placed.items()
            if target is not None and found.get(name) != target and os.path.dirname(target) == folder
        }
        for name in new:
            target = found[name]
            shown, real = os.path.join(view, name), os.path.join(folder, name)
            if target is not None and target in gone:  # a link that was renamed stands for what it leads to
                del placed[gone.pop(target)]
                os.replace(target, real)
                os.unlink(shown)
            else:
                _move_into(shown, real)
                gone.pop(real, None)
            placed.pop(name, None)
        for target, name in gone.items():
            del placed[name]
            if time.monotonic() - self._began < MAX_TRUSTED_CALL_S:
                _delete_entry(target)
        if new or gone:
            self._listed_ns.clear()


def _link_parents(folder: str, root: str) -> str:
    """Make the way down to a folder, with links to all that is beside it; give the end of the way."""
    view, real = root, os.sep
    os.mkdir(view, mode=0o700)
    for part in folder.strip(os.sep).split(os.sep):
        for name in _readable(real):
            if name != part:
                os.symlink(os.path.join(real, name), os.path.join(view, name))
        view, real = os.path.join(view, part), os.path.join(real, part)
        os.mkdir(view, mode=0o700)
    return view


def _readable(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # one may pass through a folder without being allowed to list it
        return []


def _remove_link(path: str) -> None:
    if os.path.islink(path):
        os.unlink(path)


def _delete_entry(path: str) -> None:
    """Delete what a call has deleted: a file, a link, or an empty folder."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        else:
            os.unlink(path)
    except FileNotFoundError:  # another call was faster
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _move_into(source: str, target: str) -> None:
    """Move what a call has made to where it belongs; a folder into the one that may be there."""
    mode = os.lstat(source).st_mode
    if stat.S_ISDIR(mode):
        os.makedirs(target, exist_ok=True)
        for name in os.listdir(source):
            _move_into(os.path.join(source, name), os.path.join(target, name))
        os.rmdir(source)
        return
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):  # a socket or a pipe is of no use without its process
        return
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        part = f"{target}.{os.urandom(4).hex()}.part"
        shutil.copy2(source, part, follow_symlinks=False)
        os.replace(part, target)
        os.unlink(source)
