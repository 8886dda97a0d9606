"""Pilots as jobs of Univa, Sun or Altair Grid Engine, by its command ``qsub``.

No filesystem is shared with the nodes: the worker and the secret are in the job script, which qsub
reads from its standard input.
"""

from __future__ import annotations

import base64
import secrets
import shlex

from vinecore.factory.batch_system import PilotSpec, worker_command_line
from vinecore.factory.pilot_script import FIND_PYTHON, UNPACK_PYTHON, environment_exports
from vinecore.factory.slurm import find_archive

SCRIPT = """\
#!/bin/sh
# Starts a worker of {factory}.
umask 077
archive={archive}
here=$(mktemp -d "${{TMPDIR:-/tmp}}/vine-pilot-XXXXXXXX") || exit 125
cd "$here" || exit 125
trap 'cd /; rm -rf "$here"' EXIT
trap : TERM INT HUP
base64 -d > vine_worker.pyz <<'{mark}'
{worker}{mark}
base64 -d > vine_secret <<'{mark}'
{secret}{mark}
{env}
{find}
{wrapper} "$python" "$here/vine_worker.pyz" --password "$here/vine_secret" --workspace "$here" {words}
"""


def make_script(order: PilotSpec, worker: str) -> str:
    """Return the script of a pilot.

    Parameters
    ----------
    order
        Its settings, and its manager.
    worker
        The worker, as base64.
    """
    settings, archive, find = order.settings, find_archive(order), FIND_PYTHON
    if archive:
        find = "unset PYTHONPATH PYTHONHOME\n" + UNPACK_PYTHON.format(archive='"$archive"')
    return SCRIPT.format(
        factory=order.factory,
        archive=shlex.quote(archive),
        mark=f"end-{secrets.token_hex(8)}",
        worker=worker,
        secret=base64.encodebytes(order.password_file.read_bytes()).decode(),
        env=environment_exports(settings),
        find=find,
        wrapper=settings.wrapper,
        words=shlex.join(worker_command_line(order)),
    )


def make_command(order: PilotSpec) -> list[str]:
    """Return the command that submits one pilot, or an array of them with ``-t 1-N``."""
    command = ["qsub", "-terse", "-N", order.factory, "-S", "/bin/sh", "-o", "/dev/null", "-e", "/dev/null"]
    return command + shlex.split(order.settings.batch_options)
