"""Digest the code that every vertex may reach: packages, and the program's own modules.

Editable installs are own modules.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vinecore.manager.installed_packages import digest_packages
from vinecore.protocol import used_resources, user_modules


class ProgramState(NamedTuple):
    """The code that all vertices of a program may reach.

    Attributes
    ----------
    digest
        Of all of it.
    things
        Files and variables whose states that covers; see `vinecore.protocol.used_resources`.
    """

    digest: str
    resources: frozenset[str]


def collect_program_state(variables: Mapping[str, str]) -> ProgramState:
    """Look at packages and own modules, at the files beside those that they name, and at the variables that they name.

    Parameters
    ----------
    variables
        The environment that vertices will have.
    """
    sources = {
        source for module in user_modules.find_own_modules() if (source := user_modules.source_path(module))
    }
    named: set[str] = set()
    for source in sources:
        files, names = _find_names_in_source(source)
        named.update(used_resources.describe_file(path) for path in files)
        named.update(used_resources.describe_variable(name, variables.get(name)) for name in names)
    text = "\n".join((digest_packages(), user_modules.digest_own_modules(), *sorted(named)))
    found = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
    return ProgramState(found, frozenset(named.union(map(used_resources.describe_file, sources))))


def _find_names_in_source(source: str) -> tuple[list[str], set[str]]:
    """Return files beside a module, and variables, that are named in its text."""
    digest = user_modules.digest_source_file(source)
    known = _names_by_source.get(source)
    if known is None or known[0] != digest:
        try:
            text = (
                Path(source).read_text(encoding="utf-8", errors="replace") if source.endswith(".py") else ""
            )
        except OSError:
            text = ""
        words = list(dict.fromkeys(_WORD.findall(text)))[:MAX_NAMED_FILES]
        known = _names_by_source[source] = digest, words, set(_VARIABLE.findall(text))
    _digest, words, names = known
    home = os.path.dirname(source)
    folders = [home, *(path for word in words if os.path.isdir(path := os.path.join(home, word)))]
    files = [
        os.path.join(folder, word) for folder in folders[:MAX_NAMED_FOLDERS] for word in words if "." in word
    ]
    return [path for path in files if os.path.isfile(path)], names


_names_by_source: dict[str, tuple[str, list[str], set[str]]] = {}
_WORD = re.compile(r"""["']([\w.+-][\w./+ -]{0,200})["']""")
_VARIABLE = re.compile(r"""(?:environ(?:\.get\(|\[)|getenv\()\s*["'](\w+)["']""")
MAX_NAMED_FILES = 2000
MAX_NAMED_FOLDERS = 10
