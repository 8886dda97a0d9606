"""Commands and variables with which processes start in an environment."""

from __future__ import annotations

import os
import sys
from typing import Any

from vinecore.protocol import import_paths
from vineworker import zipapp_builder
from vineworker.machine import tmpdir
from vineworker.machine.tmpdir import TMPDIR_NAME
from vineworker.storage.cache import Cache
from vineworker.tasks.sandbox import THREAD_COUNT_VARIABLES

STARCH_WRAPPER = """
for script in "$0"/env/*; do if [ -e "$script" ]; then . "$script"; fi; done
export PATH="$0/bin:$PATH" LD_LIBRARY_PATH="$0/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$@"
"""
"""Run a command as a package made by starch runs its own."""
GLIBC_MALLOC_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    "MALLOC_TOP_PAD_": str(32 << 20),
}
"""Have glibc keep freed memory, so that new arrays need no zeroed pages from the kernel."""


def python_command(environment: str, cache: Cache) -> list[str]:
    """Return the command that starts the Python of an environment, or the worker's own.

    Raises
    ------
    OSError
        If the environment has no Python that runs here.
    """
    if not environment:
        return [sys.executable]
    folder = cache.path(environment)
    # the wrapper of poncho's packages
    for name in ("run_in_env", "bin/run_in_env"):
        wrapper = os.path.join(folder, name)
        if os.access(wrapper, os.X_OK):
            return [wrapper, "python"]
    python = os.path.join(folder, "bin", "python")
    if not os.access(python, os.X_OK):
        msg = (
            f"the environment {environment} has no bin/python that runs here: pack one with "
            "conda-pack, venv-pack or poncho_package_create"
        )
        raise OSError(msg)
    return [python]


def shell_prefix(environment: str, cache: Cache) -> list[str]:
    """Return the command that runs a shell command inside an environment.

    This is poncho's wrapper, or a shell that puts the environment's programs first.
    """
    if not environment:
        return []
    folder = cache.path(environment)
    if os.access(os.path.join(folder, "run.sh"), os.X_OK):
        return ["/bin/sh", "-c", STARCH_WRAPPER, folder]
    python = python_command(environment, cache)
    if len(python) > 1:
        return python[:1]
    return [
        "/usr/bin/env",
        f"PATH={os.path.join(folder, 'bin')}{os.pathsep}{os.environ.get('PATH', '')}",
        f"VIRTUAL_ENV={folder}",
    ]


def fork_server_variables(
    environment: str, folder: str, short_path: str, options: dict[str, Any]
) -> dict[str, str]:
    """Return the environment variables of a fork server, and make its folder for temporary files.

    Parameters
    ----------
    environment
        Cache name of the environment, or "".
    folder
        Where the fork server runs.
    short_path
        A short path to that folder.
    options
        Options of the library.
    """
    variables = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    os.makedirs(os.path.join(folder, TMPDIR_NAME), exist_ok=True)
    variables.update(dict.fromkeys(tmpdir.VARIABLES, os.path.join(short_path, TMPDIR_NAME)))
    variables = import_paths.lend_python_path(_import_path(environment, folder), variables)
    variables["VINE_SANDBOX"] = folder
    if options.get("cores"):
        # slots share the library's cores; each call has one thread unless the user sets a number
        for name in THREAD_COUNT_VARIABLES:
            variables.setdefault(name, "1")
        variables["CORES"] = str(max(1, int(options["cores"])))
    for name, value in GLIBC_MALLOC_SETTINGS.items():
        variables.setdefault(name, value)
    chosen = options.get("env", {})
    variables.update(chosen)
    if "PYTHONPATH" in chosen:
        variables[import_paths.USER_PYTHONPATH] = chosen["PYTHONPATH"]
    return variables


def _import_path(environment: str, folder: str) -> str:
    """Return the path on which a fork server finds this code.

    That is the worker's own path. An environment has other packages, so copies of this code beside
    the folder come instead.
    """
    zipapp = zipapp_builder.zipapp_path()
    if not environment and not zipapp:
        return os.pathsep.join(p for p in sys.path if p)
    library = folder + ".lib"
    zipapp_builder.copy_sources(library)
    others = [] if environment else [p for p in sys.path if p and p != zipapp]
    return os.pathsep.join([library, *others])
