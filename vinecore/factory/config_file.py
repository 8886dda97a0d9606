"""The configuration file of a factory, which is read again when it changes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from vinecore.factory.settings import IGNORED_SETTINGS, FactorySettings, fixed_settings, from_json

log = logging.getLogger("vinecore")


class ConfigFile:
    """A JSON file with settings.

    Parameters
    ----------
    path : str or Path
        The file, which may be missing until `read_changed` is called first.

    Attributes
    ----------
    fixed_settings : dict of str to str
        The names of manager and factory that the file had at the start, which stay; empty if it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).expanduser()
        self._last_state: tuple[int, ...] = ()
        self.fixed_settings = self._read_fixed_settings()

    def _read_fixed_settings(self) -> dict[str, str]:
        # An error in the file is raised by the first read_changed.
        try:
            return fixed_settings(self._read())
        except (OSError, ValueError):
            return {}

    def _read(self) -> Any:
        try:
            return json.loads(self._path.read_text())
        except RecursionError:
            msg = "it is nested too deep"
            raise ValueError(msg) from None

    def read_changed(
        self, base: FactorySettings, batch_type: str, ignored: tuple[str, ...], *, first: bool = False
    ) -> FactorySettings | None:
        """Return the settings of the file on top of others, or None if it has not changed or has an error.

        Parameters
        ----------
        base
            The settings that hold where the file says nothing.
        batch_type, ignored
            The batch system, and the settings that have no effect there.
        first
            Whether the factory is being made: an error in the file is raised then, and logged later.

        Raises
        ------
        ValueError
            The file cannot be read, or has a setting that is unknown or makes no sense.
        """
        try:
            stat = self._path.stat()
            state = stat.st_mtime_ns, stat.st_size, stat.st_ino
            if state == self._last_state:
                return None
            self._last_state = state
            content = self._read()
            values = from_json(content)
            # a file may serve several batch systems
            useless = [name for name in ignored if values.pop(name, None)]
            settings = base.changed(**values)
            for name in useless:
                log.warning(
                    "%s: %s has no effect on workers of type %r",
                    self._path,
                    name.replace("_", "-"),
                    batch_type,
                )
            for key in [key for key in content if key in IGNORED_SETTINGS]:
                log.warning("%s: %s has no effect: %s", self._path, key, IGNORED_SETTINGS[key])
            if fixed_settings(content) != self.fixed_settings:
                log.warning(
                    "%s: a change of manager-name or factory-name takes effect when the factory is started again",
                    self._path,
                )
            return settings
        except (OSError, ValueError) as error:
            if first:
                msg = f"{self._path}: {error}"
                raise ValueError(msg) from None
            if self._last_state or not isinstance(error, OSError):
                log.warning("%s: %s; the settings stay as they were", self._path, error)
            if isinstance(error, OSError):
                self._last_state = ()
            return None
