"""The scripts of pilots, and running the commands of batch systems."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from vinecore.factory.batch_system import BatchError
from vinecore.factory.settings import FactorySettings

COMMAND_S = 300.0
MOST_WORDS = 500

FIND_PYTHON = """\
for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 /usr/bin/python3; do
    "$python" -c "import sys; sys.exit(sys.version_info < (3, 9))" 2>/dev/null && break
    python=
done
if [ -z "$python" ]; then
    echo "there is no Python 3.9 or newer on $(hostname); bring one: --python-env ARCHIVE" >&2
    exit 127
fi"""
UNPACK_PYTHON = """\
mkdir vine-env && tar -xf {archive} -C vine-env || exit 126
python=$here/vine-env/bin/python
PATH=$here/vine-env/bin:$PATH
[ ! -x vine-env/bin/conda-unpack ] || "$python" vine-env/bin/conda-unpack || exit 126"""


def write_worker_zipapp(folder: Path) -> Path:
    """Make the worker as one file in a folder."""
    made = subprocess.run(
        [sys.executable, "-m", "vineworker", "--pyz", str(folder)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
    )  # fmt: skip
    path = folder / "vine_worker.pyz"
    if made.returncode or not path.exists():
        msg = f"cannot build vine_worker.pyz: {made.stderr.strip()[-MOST_WORDS:]}"
        raise BatchError(msg)
    return path


def environment_exports(settings: FactorySettings) -> str:
    """Lines of a shell that set the workers' environment."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in (settings.env or {}).items())


def run_batch_command(*command: str, check: bool = True, given: str | None = None) -> str:
    """Run a command of a batch system, away from the terminal's interrupts; give what it prints.

    Raises
    ------
    BatchError
        It does not answer; or, with ``check``, it has failed.
    """
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=COMMAND_S, input=given or "",
            start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        msg = f"{command[0]} has not answered for {COMMAND_S:.0f} s"
        raise BatchError(msg) from None
    if ended.returncode and check:
        words = (ended.stderr.strip() or ended.stdout.strip()).replace(f"{command[0]}: error: ", "")
        msg = (
            f"{command[0]}: {'; '.join(words.splitlines())[-MOST_WORDS:] or f'exit code {ended.returncode}'}"
        )
        raise BatchError(msg)
    return ended.stdout
