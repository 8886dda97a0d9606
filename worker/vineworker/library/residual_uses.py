"""Uses of earlier calls that later calls of the same process may depend on.

What a call has read may stay in global variables of a module, where a later call finds it. The uses
of a function of the user's own modules therefore count for all later calls that can reach that
module, and all other uses count for the calls that share an object with the one that read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Optional

from vinecore.protocol import used_resources, user_modules
from vineworker.slot_protocol import Call

MAX_USES = 1000
"""Uses kept for one module or object; with more, `UNSEEN` stands for the rest."""
MAX_CONTENTS = 1000
"""Contents of shared objects that are kept."""


class ResidualUses:
    """Uses that calls have left in this process."""

    def __init__(self) -> None:
        self._of_modules: dict[str, dict[str, None]] = {}
        self._of_objects: dict[str, dict[str, None]] = {}
        # shared objects that came as messages
        self._contents: dict[str, bytes] = {}

    def keep_shared_object(self, name: str, content: bytes) -> None:
        """Remember a shared object that came as a message."""
        self._contents[name] = content
        if len(self._contents) > MAX_CONTENTS:
            del self._contents[next(iter(self._contents))]

    def add_use(self, modules: Iterable[str], use: str) -> None:
        """Remember a use of these modules of the user."""
        for module in modules:
            _add_limited(self._of_modules.setdefault(module, {}), use)

    def add_call(self, call: Call, uses: Mapping[str, frozenset[str]]) -> None:
        """Remember the uses of a call, without files whose names its own arguments contain.

        Parameters
        ----------
        uses
            Each use, with the user's modules that were on the stack.
        """
        sources: Optional[dict[str, str]] = None
        for use, modules in uses.items():
            kind, _, rest = use.partition(used_resources.SEPARATOR)
            path = rest.partition(used_resources.SEPARATOR)[0]
            if not rest or (kind == "file" and os.fsencode(os.path.basename(path)) in call.payload):
                continue
            owners = modules
            if kind == "file" and path.endswith(".py"):
                # a later call finds an imported module loaded, and does not read its file again
                if sources is None:
                    sources = {
                        user_modules.source_path(module) or "": module.__name__
                        for module in user_modules.find_own_modules()
                    }
                if path in sources:
                    owners = owners | {sources[path]}
            self.add_use(owners, use)
            for name, _path in () if owners else _shared_objects(call):
                _add_limited(self._of_objects.setdefault(name, {}), use)

    def find_uses(self, call: Call, inputs: Mapping[str, bytes], modules: Iterable[str]) -> dict[str, None]:
        """Return the earlier uses that a call may depend on.

        Parameters
        ----------
        inputs
            Contents of those that came as messages.
        modules
            Modules of the user that the call has imported by a computed name.
        """
        found: dict[str, None] = {}
        for name, _path in _shared_objects(call):
            found.update(self._of_objects.get(name, {}))
        for name in modules:
            found.update(self._of_modules.get(name, {}))
        if self._of_modules:
            contents = list(self._contents_of(call, inputs))
            for module, uses in self._of_modules.items():
                if not found.keys() >= uses.keys() and _is_reached(module, contents):
                    found.update(uses)
        return found

    def _contents_of(self, call: Call, inputs: Mapping[str, bytes]) -> Iterator[Optional[bytes]]:
        """Generate the contents of a call that can name modules; None for an unavailable one."""
        yield call.payload
        for name, path in (*_shared_objects(call), *call.inputs):
            if path:
                try:
                    with open(path, "rb") as file:
                        yield file.read()
                except OSError:
                    yield None
            else:
                yield self._contents.get(name, inputs.get(name))


def _add_limited(uses: dict[str, None], use: str) -> None:
    uses[use if len(uses) < MAX_USES else used_resources.UNSEEN] = None


def _shared_objects(call: Call) -> list[tuple[str, str]]:
    """Return the shared objects of a call, without the program's folder and its plain settings.

    Calls that share an object may find in it what one of them has left. Plain settings keep
    nothing; where there are some, all calls of a graph share them.
    """
    first = 1 if "settings" in call.options else 0
    return call.shared[first : len(call.shared) - (1 if "program" in call.options else 0)]


def _is_reached(module: str, contents: Iterable[Optional[bytes]]) -> bool:
    """Return whether a call with these contents may use a module of the user, directly or not."""
    names = [name.rpartition(".")[2].encode() for name in _users_of(module)]
    return any(content is None or any(name in content for name in names) for content in contents)


_texts: dict[str, bytes] = {}
"""Texts of the user's modules, by name."""


def _users_of(module: str) -> set[str]:
    """Return the user's own modules whose texts name a module, directly or through others."""
    own = {one.__name__: user_modules.source_path(one) or "" for one in user_modules.find_own_modules()}
    found, waiting = {module}, [module]
    while waiting:
        name = waiting.pop().rpartition(".")[2].encode()
        for other in own.keys() - found:
            if other not in _texts:
                try:
                    with open(own[other], "rb") as file:
                        _texts[other] = file.read()
                except OSError:
                    _texts[other] = name
            if name in _texts[other]:
                found.add(other)
                waiting.append(other)
    return found
