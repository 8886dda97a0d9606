"""Imports of what is in a file now, also where it was edited twice within a second.

Python keeps what it has compiled beside the source, with the time of the source's change in whole seconds and its size, and believes it as long as both
are the same. An edit of a few characters within that second goes unnoticed. Here a compiled file is believed only if it was written some time after the
source was; else the source is compiled again, and the result kept in its place. Modules of the environment are not edited while programs run, so they
are left alone.
"""

from __future__ import annotations

import importlib.machinery
import os
from typing import Any

from vinecore.protocol.modules import is_package_file

SETTLED_NS = 2_000_000_000
"""By so much a compiled file is younger than its source, if it is to be believed: a second, and as long as it may take to compile it."""


def install() -> None:
    """Have all imports of this process, and of those that are forked from it, look twice."""
    loader: Any = importlib.machinery.SourceFileLoader
    usual = loader.get_data

    def get_data(self: Any, path: str) -> bytes:
        if path.endswith(".pyc") and is_doubtful(path, self.path):
            raise OSError(path)  # as if there were none
        data: bytes = usual(self, path)
        return data

    loader.get_data = get_data


def is_doubtful(compiled: str, source: str) -> bool:
    """Whether a compiled file may have been made from a text that its source had before."""
    if is_package_file(source):
        return False
    try:
        return os.stat(compiled).st_mtime_ns < os.stat(source).st_mtime_ns + SETTLED_NS
    except OSError:
        return True
