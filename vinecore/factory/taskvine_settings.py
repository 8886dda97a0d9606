"""Attributes of TaskVine's factory that are not settings of this one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from vinecore.factory.settings import IGNORED_SETTINGS, WORKER_OPTIONS, worker_options

log = logging.getLogger("vinecore.factory")

LOG_FILES = ("debug_file", "log_file")
WORKER_SETTINGS = tuple(name.replace("-", "_") for name in WORKER_OPTIONS)
WITHOUT_EFFECT = {
    **{name.replace("-", "_"): reason for name, reason in IGNORED_SETTINGS.items()},
    "factory_binary": "a factory is a thread of the program",
    "debug": "set the level of the logger vinecore",
    "debug_file_size": "rotate the file with another program",
    "runos": "name the image in batch_options or wrapper",
}
TASKVINE_SETTINGS = {*LOG_FILES, *WORKER_SETTINGS, *WITHOUT_EFFECT, "python_package"}
"""All of them."""


def take_taskvine_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of TaskVine's that have another name here; say which have no effect."""
    found = dict(settings)
    for name, reason in WITHOUT_EFFECT.items():
        if found.pop(name, None) is not None:
            log.warning("%s has no effect: %s", name, reason)
    if "python_package" in found:
        found["python_env"] = found.pop("python_package")
    given = {name: found.pop(name.replace("-", "_"), None) for name in WORKER_OPTIONS}
    if words := worker_options(given):
        found["extra_options"] = f"{words} {found.get('extra_options', '')}".strip()
    return found
