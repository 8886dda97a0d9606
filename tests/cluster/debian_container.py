"""A Debian 13 of its own to run things in: another Python, its own users, none of this machine's files.

A root is made once, by debootstrap, and kept in a cache folder (``VINE_TEST_ROOTS``, else below ``~/.cache``). A test gets a layer over it
that is thrown away, so nothing that it does stays. All that is mounted is so in a mount namespace of its own, and all that runs in it is in a process namespace of its
own: both are gone when the one process is that holds them, however that ends, and this machine's mounts and devices are never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SUITE = "trixie"
BASE = ("ca-certificates", "python3", "python3-venv")
MADE = ".made"  # its last file


def missing() -> str:
    """What keeps a root from being made here; "" if nothing does."""
    if os.geteuid() != 0:
        return "a Debian root needs root"
    for command in ("unshare", "nsenter", "chroot"):
        if shutil.which(command) is None:
            return f"a Debian root needs the command {command}"
    if shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
        return "a Debian root needs the command debootstrap (Debian: debootstrap)"
    return ""


def made(*packages: str) -> Path:
    """Make a root with these packages, or find the one that was made before; nobody may change it."""
    cache = Path(os.environ.get("VINE_TEST_ROOTS") or Path.home() / ".cache" / "vine-test-roots")
    cache.mkdir(parents=True, exist_ok=True)
    root = cache / "-".join([SUITE, *sorted(packages)])
    with open(f"{root}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (root / MADE).exists():
            return root
        shutil.rmtree(root, ignore_errors=True)
        try:
            if packages:
                _run("cp", "-a", "--reflink=auto", str(made()), str(root))
                (root / MADE).unlink()
                _install(root, packages)
            else:
                program = shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
                assert program is not None
                _run(program, "--variant=minbase", f"--include={','.join(BASE)}", SUITE, str(root))
        except subprocess.CalledProcessError as error:
            pytest.skip(
                f"a Debian root cannot be made here: {error.cmd[4]}: {error.stderr[-500:] or error.stdout[-500:]}"
            )
        (root / MADE).touch()
    return root


def _install(root: Path, packages: tuple[str, ...]) -> None:
    policy = root / "usr/sbin/policy-rc.d"  # nothing is started because it was installed
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    _run("chroot", str(root), "apt-get", "update", env=environment)
    _run(
        "chroot",
        str(root),
        "apt-get",
        "install",
        "--yes",
        "--no-install-recommends",
        *packages,
        env=environment,
    )
    _run("chroot", str(root), "apt-get", "clean")


def _run(*command: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, **more
    )


HOLD = """\
set -e
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/changes,workdir=$2/work" "$2/root"
cd "$2/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
for device in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 "dev/${device%:*}" c 1 "${device#*:}"
done
mknod -m 666 dev/tty c 5 0
ln -s /proc/self/fd dev/fd
mkdir -m 1777 dev/shm
echo ready
trap : TERM
read -r _ || true
"""


class Root:
    """A Debian that can be written to.

    Attributes
    ----------
    path : Path
        Where its files are, seen from outside.
    """

    def __init__(self, holder: int, place: Path) -> None:
        self._holder, self._place = holder, place
        self.path = Path(f"/proc/{holder}/root{place}")

    def command(
        self, *command: str, user: str = "root", environment: dict[str, str] | None = None
    ) -> list[str]:
        """A command, as it has to be written outside to run inside."""
        words = ["nsenter", "--mount", "--pid", "--target", str(self._holder), "chroot"]
        if user != "root":
            words.append(f"--userspec={user}:{user}")
        home = "/root" if user == "root" else f"/home/{user}"
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        variables = {"HOME": home, "USER": user, "LOGNAME": user, **(environment or {})}
        return [
            *words,
            str(self._place),
            "env",
            "-i",
            path,
            *(f"{n}={v}" for n, v in variables.items()),
            *command,
        ]

    def run(self, *command: str, user: str = "root", check: bool = True, timeout: float = 120) -> str:
        """Run a command inside; give what it says."""
        ended = subprocess.run(
            self.command(*command, user=user),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        assert not check or ended.returncode == 0, (
            f"{command}: {ended.returncode}\n{ended.stdout}{ended.stderr}"
        )
        return ended.stdout


@contextlib.contextmanager
def opened(folder: Path, *packages: str) -> Iterator[Root]:
    """A root with these packages, its changes in a folder; afterwards nothing runs in it and nothing is left of it."""
    below = made(*packages)
    for name in ("root", "changes", "work"):
        (folder / name).mkdir(parents=True)
    holder = subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-c", HOLD, "sh", str(below), str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            pytest.skip(f"a root of its own cannot be mounted here: {holder.stderr.read().strip()}")
        [inside] = psutil.Process(holder.pid).children()
        yield Root(inside.pid, folder / "root")
    finally:
        holder.kill()  # and with it the first process of the namespace, and with that all others
        holder.communicate()
        for name in ("changes", "work"):
            shutil.rmtree(folder / name, ignore_errors=True)
