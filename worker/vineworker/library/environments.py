"""Commands and variables with which processes start in an environment."""

from __future__ import annotations

import os
import shlex
import shutil
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
INIT_SCRIPT = """
_vine_code=$1 _vine_python=$2 _vine_fd=$3
_vine_found=$(command -v python3)
eval "$0" || exit
_vine_now=$(command -v python3)
[ "$_vine_found" = "$_vine_now" ] || _vine_python=$_vine_now
export VINE_PYTHONPATH="$PYTHONPATH" PYTHONPATH="$_vine_code${PYTHONPATH:+:$PYTHONPATH}"
exec "$_vine_python" -m vineworker.library.fork_server "$_vine_fd"
"""
"""Run a shell command, then a fork server in the Python that is then on the search path.

The command may set PYTHONPATH, so the shell starts with the user's own.
"""
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


def fork_server_command(
    environment: str, cache: Cache, folder: str, fd: int, options: dict[str, Any]
) -> list[str]:
    """Return the command line of a fork server.

    Parameters
    ----------
    environment
        Cache name of the environment, or "".
    cache
        Holds the environment.
    folder
        Where the fork server runs.
    fd
        The descriptor of its socket.
    options
        Options of the library.
    """
    if "library_program" in options:
        # only the program runs in the environment
        environment = ""
    prefix, init = shlex.split(options.get("command", "")), options.get("init_command")
    python = python_command(environment, cache)
    if not init:
        return [*prefix, *python, "-m", "vineworker.library.fork_server", str(fd)]
    shell = shutil.which("bash") or "/bin/sh"
    inside = shell_prefix(environment, cache)
    return [*prefix, *inside, shell, "-c", INIT_SCRIPT, init, code_folder(folder), python[-1], str(fd)]


def code_folder(folder: str) -> str:
    """Return where the copies of this code are for a fork server that runs in a folder."""
    return folder + ".lib"


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
    if "library_program" in options:
        environment = ""
    variables = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    os.makedirs(os.path.join(folder, TMPDIR_NAME), exist_ok=True)
    variables.update(dict.fromkeys(tmpdir.VARIABLES, os.path.join(short_path, TMPDIR_NAME)))
    if options.get("init_command"):
        zipapp_builder.copy_sources(code_folder(folder))
    else:
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
    if "PYTHONPATH" in chosen and not options.get("init_command"):
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
    library = code_folder(folder)
    zipapp_builder.copy_sources(library)
    others = [] if environment else [p for p in sys.path if p and p != zipapp]
    return os.pathsep.join([library, *others])
