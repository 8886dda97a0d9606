"""Show a program's folder with additional files, as a private folder of links for one process.

The view has a link for each entry of the program's folder and for each file that was sent along. If
both have a name, the latter comes first. The view has the parent folders, too, so that ``../data``
leads to the right place. A write to an existing entry goes through its link. Entries that a call
creates, replaces, renames or deletes in the view itself are changed in the program's folder, too,
after the call.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from typing import Optional

from vinecore.protocol.trees import list_names, remove_tree

RESERVED_PREFIX = ".vine"
"""Prefix of the names that the worker itself uses in folders."""
MIN_AGE_NS = 2_000_000_000
"""A folder that changed less than this ago may change again with the same modification time."""

MAX_TRUSTED_CALL_S = 24 * 3600
"""After a longer call, entries that are missing count as removed by a clean-up of old files."""


class FolderView:
    """A view of one folder.

    Parameters
    ----------
    folder
        The program's folder.
    beside
        Folder with the files that were sent along.
    root
        Path of the new view.

    Attributes
    ----------
    path
        The view of the folder.
    """

    def __init__(self, folder: str, beside: str, root: str) -> None:
        self._root, self._began = root, time.monotonic()
        # folder -> its time of change, if it had settled when it was listed
        self._listed_ns: dict[str, int] = {}
        # folder of the view -> name -> target, None for a folder
        self._placed: dict[str, dict[str, Optional[str]]] = {}
        # folder of the view -> what it shows; the program's own is the last
        self._sources: dict[str, list[str]] = {}
        self.path = _link_parents(folder, root)
        self._fill_view(self.path, [beside, folder])

    def refresh(self) -> None:
        """Show entries that other processes have created, and remove those they have deleted."""
        self._began = time.monotonic()
        for view, sources in list(self._sources.items()):
            if not os.path.isdir(view):
                continue
            if any(self._listed_ns.get(s) != os.stat(s).st_mtime_ns for s in sources):
                self._fill_view(view, sources)
            self._restore_links(view)

    def _restore_links(self, view: str) -> None:
        """Create missing links again, which a clean-up has removed between two calls."""
        there = set(os.listdir(view))
        for name, target in self._placed[view].items():
            if target is not None and name not in there:
                os.symlink(target, os.path.join(view, name))

    def close(self) -> None:
        """Remove the view, and nothing to which its links point."""
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
        """Change the program's folder as a call has changed the view of it."""
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
            # a link that was renamed stands for what it leads to
            if target is not None and target in gone:
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
    """Create the parents of a folder in the view, with links to their other entries.

    Return the path of the folder in the view.
    """
    view, real = root, os.sep
    os.mkdir(view, mode=0o700)
    for part in folder.strip(os.sep).split(os.sep):
        # a path may lead through a folder that cannot be listed
        for name in list_names(real):
            if name != part:
                os.symlink(os.path.join(real, name), os.path.join(view, name))
        view, real = os.path.join(view, part), os.path.join(real, part)
        os.mkdir(view, mode=0o700)
    return view


def _remove_link(path: str) -> None:
    if os.path.islink(path):
        os.unlink(path)


def _delete_entry(path: str) -> None:
    """Delete a file, a link, or an empty folder that a call has deleted."""
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
    """Move an entry that a call has made to the program's folder; merge folders."""
    mode = os.lstat(source).st_mode
    if stat.S_ISDIR(mode):
        os.makedirs(target, exist_ok=True)
        for name in os.listdir(source):
            _move_into(os.path.join(source, name), os.path.join(target, name))
        os.rmdir(source)
        return
    # a socket or a pipe is of no use without its process
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
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
