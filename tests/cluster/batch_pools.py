"""What the batch systems of these tests have in common: a Debian with one ordinary user, who starts ``vine_factory``."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import click
import psutil

from tests.harness.processes import PATIENCE_S, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster import debian_container

USER = "scientist"
CODE = "/opt/daskvine"
HERE = Path(__file__).parents[2]
COMMANDS = {
    "vine_factory": "vinecore.factory.cli",
    "vine_submit_workers": "vinecore.factory.submit_workers",
    "vine_make": "vinecore.make.cli",
    "vine_compat": "vinecore.compat.cli",
}
COMMAND = """\
#!/usr/bin/python3
import sys
sys.path.insert(0, {code!r})  # where only this command looks, no pilot
from {module} import main
main()
"""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def furnish(root: debian_container.Root) -> None:
    """Give a Debian its user, and the commands."""
    root.run("useradd", "--create-home", "--shell", "/bin/bash", USER)
    for package in (HERE / "vinecore", HERE / "worker/vineworker", Path(click.__file__).parent):
        shutil.copytree(
            package, Path(f"{root.path}{CODE}") / package.name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name, module in COMMANDS.items():
        command = root.path / "usr/local/bin" / name
        command.write_text(COMMAND.format(code=CODE, module=module))
        command.chmod(0o755)


class Pool:
    """A batch system and its one user.

    Attributes
    ----------
    home : Path
        The user's home, seen from outside.
    """

    def __init__(self, root: debian_container.Root, folder: Path) -> None:
        self.root, self._folder = root, folder
        self.home = root.path / "home" / USER
        self._commands = 0

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command as the user; give what it prints."""
        return self.root.run(*command, user=USER, check=check)

    def give(self, source: Path, name: str) -> str:
        """Put a file into the user's home, for nobody else to read; give its path inside."""
        inside = f"/home/{USER}/{name}"
        place = Path(f"{self.root.path}{inside}")
        shutil.copyfile(source, place)
        place.chmod(0o600)
        self.root.run("chown", f"{USER}:{USER}", inside)
        return inside

    @contextlib.contextmanager
    def factory(self, *options: str) -> Iterator[RunningCommand]:
        """Run the command ``vine_factory`` as the user; afterwards it is ended, if it has not ended itself."""
        with self.start("vine_factory", *options) as factory:
            yield factory

    @contextlib.contextmanager
    def start(self, *command: str) -> Iterator[RunningCommand]:
        """Run a command as the user; afterwards it is ended, if it has not ended itself."""
        self._commands += 1
        log = self._folder / f"command-{self._commands}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.root.command(*command, user=USER), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )  # fmt: skip
        running = RunningCommand(process, log)
        try:
            yield running
        finally:
            if process.poll() is None:
                running.end()


class RunningCommand:
    """A command as it runs."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    @property
    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """Kill it with SIGKILL, and wait."""
        process = psutil.Process(self.process.pid)
        for inside in wait_until(process.children, "what has entered the pool to have forked"):
            inside.kill()
        self.process.wait(PATIENCE_S)

    def end(self) -> int:
        """End it as a person would; give its exit code."""
        process = psutil.Process(self.process.pid)
        for inside in wait_until(process.children, "what has entered the pool to have forked"):
            inside.terminate()
        return self.process.wait(PATIENCE_S)
