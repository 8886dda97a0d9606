"""Folders for temporary files: of slots, and of calls that have a process of their own."""

from __future__ import annotations

import os
import sys
from typing import Any

from vinecore.protocol.trees import remove_tree

VARIABLES = ("TMPDIR", "TEMP", "TMP")
TMPDIR_NAME = ".vine"
"""Name, in the folder of a task or a library, of the folder that takes its temporary files."""


def use_folder(path: str) -> None:
    """Have this process, and what it starts, put temporary files into a folder.

    Where that cannot be made they go where they went before.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError:
        # the disk is full: calls may need none
        return
    os.environ.update(dict.fromkeys(VARIABLES, path))
    reset_tempfile()


def remove_folder(path: str) -> None:
    """Remove a folder for temporary files; mostly it is empty, or was never made."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError:
        remove_tree(path)


def reset_tempfile() -> None:
    """Have `tempfile` determine its folder again.

    The process that this one was forked from may have asked for it under other variables.
    """
    tempfile: Any = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile.tempdir = None
