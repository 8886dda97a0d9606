"""Run programs and libraries that were written for TaskVine, unchanged.

After `install`, `import ndcctools.taskvine` and its submodules lead to this project. The command
``vine_compat`` is python with that already done.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import MutableMapping

from vinecore.protocol import taskvine_modules

BOOTSTRAP_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bootstrap")
"""Modules that do the same in further Python processes, which find them through PYTHONPATH."""


def install() -> None:
    """Have imports of TaskVine's modules lead to this project, in this process and its children.

    A TaskVine that is installed, too, is not used. Commands such as ``vine_worker`` that this
    program or its children start are this project's. A second call does nothing.

    Raises
    ------
    RuntimeError
        TaskVine's own modules have been imported already.

    Examples
    --------
    >>> import vinecore.compat
    >>> vinecore.compat.install()
    >>> import ndcctools.taskvine as vine
    """
    taskvine_modules.install_finder()
    # after the folder of the script: a process that multiprocessing spawns gets this list
    if BOOTSTRAP_FOLDER not in sys.path:
        sys.path.insert(1, BOOTSTRAP_FOLDER)
    export_to_children(os.environ)


def export_to_children(variables: MutableMapping[str, str]) -> None:
    """Change environment variables so that processes find TaskVine's modules and commands here.

    Parameters
    ----------
    variables : mapping
        The environment variables, which are changed in place.
    """
    _put_first(variables, "PYTHONPATH", BOOTSTRAP_FOLDER)
    commands = _commands_folder()
    if commands:
        _put_first(variables, "PATH", commands)


def _put_first(variables: MutableMapping[str, str], name: str, folder: str) -> None:
    others = variables.get(name)
    if others and others.split(os.pathsep)[0] == folder:
        return
    variables[name] = f"{folder}{os.pathsep}{others}" if others else folder


def _commands_folder() -> str:
    """Return the folder that this project's commands are installed in; "" if they are not."""
    folders = [
        sysconfig.get_path("scripts"),
        sysconfig.get_path("scripts", f"{os.name}_user"),
        os.path.dirname(os.path.abspath(sys.argv[0] if sys.argv else "")),
    ]
    return next((folder for folder in folders if os.access(os.path.join(folder, "vine_worker"), os.X_OK)), "")
