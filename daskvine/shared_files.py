"""What is said of a file that cannot be read, where it may have been opened before the fork, in a module of the user's own that was named to be imported there."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Sequence

from vinecore.errors import add_note
from vinecore.protocol.user_modules import is_package_module

DAMAGED_FILE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, struct.error)
"""What readers raise that do not find what they have left."""


def explain_shared_files(error: BaseException, named: Sequence[str]) -> None:
    """Add to an exception of a vertex that its file may be shared by all slots.

    Parameters
    ----------
    named
        The modules that are imported before the fork because ``import_modules`` names them; only the user's own are suspect.
    """
    own = [name for name in named if not is_package_module(name)]
    if not own or not isinstance(error, DAMAGED_FILE_ERRORS):
        return
    modules = ", ".join(own)
    add_note(
        error,
        f"import_modules names {modules}: imported once, before the slots are forked, so a file that is opened there has one position for all slots, and they "
        "read at each other's places; leave out of import_modules what opens files when it is imported (each slot imports it for itself then), or open the file in the function",
    )
