"""A worker in a Debian 13 of its own, which has a Python and one file: ``vine_worker.pyz``."""

from __future__ import annotations

import io
import os
import platform
import shutil
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
from vineworker import zipapp_builder

from tests.cluster import debian_container
from tests.harness.processes import start_local_cluster
from vinecore import FunctionCall, PythonTask, Task

pytestmark = pytest.mark.timeout(900)  # the first one makes the Debian
LIBC = (2, 41)  # of Debian 13
NOT_CARRIED = {"__pycache__", "test", "idlelib", "tkinter", "ensurepip", "site-packages", "dist-packages"}

START = b"""#!/bin/sh
here=$(dirname "$0")
LD_LIBRARY_PATH="$here/../lib" exec "$here/python-itself" "$@"
"""
"""A Python may have been built to look for its library only where that was installed."""


@pytest.fixture
def local_cluster(tmp_path, monkeypatch):
    """Starts managers and workers, and ends them."""
    with start_local_cluster(tmp_path, monkeypatch) as local_cluster:
        yield local_cluster


@pytest.fixture
def root(local_cluster, tmp_path):
    """The Debian, with a user who has the file and the manager's secret."""
    if reason := debian_container.missing():
        pytest.skip(reason)
    with debian_container.opened(tmp_path / "debian") as root:
        root.run("useradd", "--create-home", "vine")
        home = root.path / "home" / "vine"
        zipapp_builder.write_zipapp(str(home))
        shutil.copy(local_cluster.secret, home / "secret")
        root.run("chown", "vine:vine", "/home/vine/secret")
        yield root


def start(local_cluster, m, root):
    """Start a worker inside."""
    command = root.command("python3", "/home/vine/vine_worker.pyz", user="vine")
    options = ("--workspace", "/home/vine/work")
    worker = local_cluster.start_worker(m, *options, command=command, secret=Path("/home/vine/secret"))
    m.wait_for_workers(1, 60)
    return worker


def end(m, worker, root):
    """End the manager; its worker leaves with it, and leaves nothing."""
    m.close()
    assert worker.wait() == 0
    assert "Traceback" not in worker.log
    assert root.run("find", "/home/vine/work", "-mindepth", "1") == ""


@pytest.fixture(scope="session")
def carried(tmp_path_factory):
    """An environment that is complete: this Python itself, with its library, and what pickles need."""
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, version.split("."))) > LIBC:
        pytest.skip(f"a Python built for {libc or 'another libc'} {version} does not run in Debian 13")
    archive = tmp_path_factory.mktemp("carried") / "python.tar.gz"

    def wanted(entry):
        return None if NOT_CARRIED & {*entry.name.split("/")} else entry

    library = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        start = tarfile.TarInfo("bin/python")
        start.size, start.mode = len(START), 0o755
        tar.addfile(start, io.BytesIO(START))
        tar.add(os.path.realpath(sys.executable), "bin/python-itself")
        shared = os.path.join(*map(sysconfig.get_config_var, ("LIBDIR", "INSTSONAME")))
        if os.path.exists(shared):
            tar.add(os.path.realpath(shared), f"lib/{os.path.basename(shared)}")
        tar.add(sysconfig.get_path("stdlib"), library, filter=wanted)
        for name in ("cloudpickle",):
            tar.add(os.path.dirname(__import__(name).__file__), f"{library}/site-packages/{name}")
    return archive


def functions():
    """What is sent by value: the worker cannot import this module."""

    def where():
        with open("/etc/debian_version") as file:
            return sys.version_info[:2], file.read().partition(".")[0]

    def double(x):
        return 2 * x

    return where, double


def test_a_bare_debian_runs_commands_at_once(local_cluster, root):
    m = local_cluster.start_manager()
    worker = start(local_cluster, m, root)
    task = Task("cat /etc/debian_version in; id -un", cores=1)
    task.add_input(m.declare_buffer("and an input\n"), "in")
    m.submit(task)
    assert m.wait(60) is task
    version, *rest = task.output.splitlines()
    assert (version.partition(".")[0], rest) == ("13", ["and an input", "vine"])
    end(m, worker, root)


def test_bare_debian_runs_functions_in_environment(local_cluster, root, carried):
    """A bare debian runs functions in the environment that is sent there."""
    m = local_cluster.start_manager()
    worker = start(local_cluster, m, root)
    where, double = functions()
    environment = m.declare_poncho(carried)
    task = PythonTask(where)
    task.add_environment(environment)
    library = m.create_library_from_functions("doubling", double, poncho_env=environment, exec_mode="direct")
    library.set_cores(1)
    m.install_library(library)
    calls = [FunctionCall("doubling", "double", n) for n in range(20)]
    task.set_cores(1)
    for each in (task, *calls):
        m.submit(each)
    assert {m.wait(60) for _ in range(21)} == {task, *calls}
    assert task.output == (sys.version_info[:2], "13")
    assert [call.output for call in calls] == [2 * n for n in range(20)]
    end(m, worker, root)
