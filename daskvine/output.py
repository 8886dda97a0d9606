"""What vertices say beside their results, as it is shown to the user."""

from __future__ import annotations

import warnings
from typing import Any

from daskvine.graph import Key
from daskvine.program_folder import warn_of_files_left


class Output:
    """Shows what the vertices of one run say."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def show(self, key: Key, info: dict[str, Any]) -> None:
        """Show what a worker has told of a vertex that is over."""
        if "left" in info:
            self._warn(warn_of_files_left(info["left"], info.get("unseen", "")), key)

    def _warn(self, text: str, key: Key) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(f"vertex {key!r} {text}", stacklevel=2)
