"""The folders for temporary files of slots, and of calls that have a process of their own."""

from __future__ import annotations

import os

from vinecore.protocol.trees import remove_tree
from vineworker.library import fork_state

NAMES = ("TMPDIR", "TEMP", "TMP")


def enter(path: str) -> None:
    """Have this process and what it starts put temporary files into a folder; where that cannot be made they go where they went before."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError:  # the disk is full: calls may need none
        return
    os.environ.update(dict.fromkeys(NAMES, path))
    fork_state.forget_temporary_folder()


def remove(path: str) -> None:
    """Remove such a folder; mostly it is empty, or was never made."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError:
        remove_tree(path)
