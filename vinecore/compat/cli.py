"""The command ``vine_compat``: python, with TaskVine's modules and commands being this project's."""

from __future__ import annotations

import os
import sys

from vinecore import compat

USAGE = """\
usage: vine_compat [options of python] script.py [arguments] | -m module | -c code

Run a Python program that was written for TaskVine: it imports ndcctools.taskvine, and gets this
project. All arguments are python's. Commands such as vine_worker and vine_factory that the program
starts are this project's, too."""


def main() -> None:
    """Replace this process by Python, with the environment variables of `vinecore.compat`."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(USAGE)
        return
    variables = dict(os.environ)
    compat.export_to_children(variables)
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], variables)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
