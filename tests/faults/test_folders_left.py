"""However a program with workers of its own ends, its folders go: with it, or with the next vine of the same user."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from daskvine import DaskVine
from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, is_alive, wait_until
from vinecore.protocol import temporary_folders

PROGRAM = """
import os, signal, sys, threading, time
from daskvine import DaskVine
from tests.harness import sample_tasks as chores
place = sys.argv[1]
{before}
m = DaskVine.local(cores=1)
m.declare_buffer(b"x" * 100_000)
m.get({{"x": (chores.add, 1, 2)}}, "x", task_mode="function-calls", progress_disable=True)
threading.Thread(target=m.get, args=({{"x": (chores.held, place, "vertex", "gate")}}, "x"), kwargs={{"progress_disable": True}}, daemon=True).start()
chores.wait_for(place + "/vertex")
m._server.store.folder
{then}
"""
STAY = """
chores.note(place + "/ready")
time.sleep(1000)
"""


@pytest.fixture
def program(local_cluster):
    """Starts a program with a vine of its own, and waits until it is busy."""
    started = []

    def start(before="", then=STAY):
        text = PROGRAM.format(before=before, then=then)
        process = subprocess.Popen(
            [sys.executable, "-c", text, str(local_cluster.folder)], start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        wait_until(
            lambda: local_cluster.count_lines("ready") or process.poll() is not None, "the program to be busy"
        )
        assert process.poll() is None, process.stderr.read().decode()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def left(local_cluster):
    return sorted(path.name for path in (local_cluster.folder / "tmp").iterdir())


def links(local_cluster):
    """Short paths to what is in the folder of a test."""
    found = [path for path in Path("/tmp").glob("vine-*") if path.is_symlink()]
    return [path for path in found if str(path.readlink()).startswith(str(local_cluster.folder))]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signal_ends_program_and_its_files(local_cluster, program, number):
    """A signal ends the program and all that is its."""
    process = program()
    assert links(local_cluster)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(left(local_cluster)) == 3
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == -number
    assert left(local_cluster) == []
    wait_until(lambda: not any(map(is_alive, family)), "the end of all processes")
    wait_until(lambda: not links(local_cluster), "the short paths to be removed")


def test_folders_of_killed_program_are_removed(local_cluster, program):
    """What a killed program has left is removed by the next vine."""
    process = program()
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(is_alive, family)), "the end of its workers")
    assert len(left(local_cluster)) == 3
    with DaskVine.local(cores=1):
        pass
    assert left(local_cluster) == []


def test_handler_of_user_stays_and_decides(local_cluster, program):
    """A handler of the users stays and decides."""
    process = program(
        before="signal.signal(signal.SIGTERM, lambda *_: (chores.note(place + '/handled'), sys.exit(5)))"
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 5
    assert local_cluster.count_lines("handled") == 1
    assert left(local_cluster) == []


def test_signalled_fork_takes_nothing_away(local_cluster):
    """A child of its fork ends by a signal and takes nothing away."""
    with DaskVine.local(cores=1) as m:
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=time.sleep, args=(1000,)) for _ in range(20)]
        for child in children:
            child.start()
            child.terminate()  # however early that is
        for child in children:
            child.join()
        assert {child.exitcode for child in children} == {-signal.SIGTERM}
        assert m.get({"x": (sample_tasks.add, 1, 2)}, "x", progress_disable=True) == 3


SIGNALS = """
import signal, threading
from daskvine import DaskVine

def handlers():
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]

before = handlers()
first, second = DaskVine.local(cores=1), DaskVine.local(cores=1)
assert handlers() != before
second.close()
assert handlers() != before
first.close()
assert handlers() == before
in_thread = threading.Thread(target=lambda: DaskVine.local(cores=1).close())
in_thread.start()
in_thread.join()
assert handlers() == before
"""


def test_what_signals_do_is_given_back(local_cluster):
    """In a process of its own: here other tests may have managers that are open."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", SIGNALS], env=variables, check=True, timeout=PATIENCE_S)


def test_terminal_interrupt_spares_workers(local_cluster, program):
    """An interrupt in the terminal is for the program and not for its workers."""
    process = program(
        then="""
try:
    chores.note(place + "/ready")
    while True:
        time.sleep(0.01)
except KeyboardInterrupt:
    chores.note(place + "/gate")
    chores.note(place + "/workers", len(m.summarize_workers()))
    m.get({"x": (chores.counted, place, "after")}, "x", task_mode="function-calls", progress_disable=True)
    m.close()
    sys.exit(0)
"""
    )
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(PATIENCE_S) == 0, process.stderr.read().decode()
    assert local_cluster.path("workers").read_text() == "1\n"
    assert local_cluster.count_lines("after") == 1
    wait_until(lambda: not any(map(is_alive, family)), "the end of all processes")


def abandoned(tmp_path, prefix="vine-local-"):
    """A folder whose process has ended."""
    code = "import sys; from vinecore.protocol import temporary_folders as folders; print(folders.create_folder(*sys.argv[1:]))"
    said = subprocess.run(
        [sys.executable, "-c", code, prefix, str(tmp_path)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    return said.stdout.strip()


def test_only_what_is_certainly_abandoned_is_removed(tmp_path):
    gone = abandoned(tmp_path)
    os.makedirs(f"{gone}/inner/locked")
    os.chmod(f"{gone}/inner/locked", 0)
    alive_one = temporary_folders.create_folder("vine-worker-", str(tmp_path))
    holds_one = abandoned(tmp_path)
    inner = temporary_folders.create_folder("vine-worker-", holds_one)
    foreign = abandoned(tmp_path, "something-")
    elsewhere = abandoned(tmp_path)
    Path(elsewhere, temporary_folders.OWNER_FILE).write_text("another-machine")
    unmarked = tmp_path / "vine-kept"
    unmarked.mkdir()
    target = tmp_path / "target"
    target.mkdir()
    (target / temporary_folders.OWNER_FILE).write_bytes(
        Path(foreign, temporary_folders.OWNER_FILE).read_bytes()
    )
    link = tmp_path / "vine-link"
    link.symlink_to(target)
    others = None
    if os.geteuid() == 0:
        others = abandoned(tmp_path)
        os.chown(others, 12345, -1)
    temporary_folders.remove_abandoned(str(tmp_path))
    assert not os.path.exists(gone)
    for path in filter(
        None, (alive_one, holds_one, inner, foreign, elsewhere, unmarked, target, link, others)
    ):
        assert os.path.exists(path), path
    temporary_folders.remove_folder(inner)
    temporary_folders.remove_folder(alive_one)
    temporary_folders.remove_abandoned(str(tmp_path))
    assert not os.path.exists(holds_one)


def test_concurrent_removals_do_not_conflict(tmp_path):
    """Two that remove at once do not disturb each other."""
    gone = [abandoned(tmp_path) for _ in range(3)]
    for folder in gone:
        for n in range(200):
            Path(folder, str(n)).touch()
    threads = [
        threading.Thread(target=temporary_folders.remove_abandoned, args=(str(tmp_path),)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    temporary_folders.remove_abandoned(str(tmp_path))
    assert not any(map(os.path.exists, gone))


def test_killed_workers_workspace_is_removed_by_next(local_cluster):
    """A killed workers workspace is removed by the next worker in its place."""
    m = local_cluster.start_manager(DaskVine)
    [worker] = local_cluster.start_workers(m, 1)
    [process_reaper] = [p for p in worker.descendants if "vine-process-reaper" in p.cmdline()]
    process_reaper.kill()  # as a batch system does that kills all at once
    worker.kill()
    wait_until(lambda: not m.workers_connected, "the manager to notice")
    [folder] = local_cluster.workspace.iterdir()
    local_cluster.start_workers(m, 1)
    wait_until(lambda: not folder.exists(), "the folder of the first worker to be removed")


def test_signalled_local_factory_leaves_nothing(local_cluster):
    """A local factory leaves nothing after a signal."""
    text = """
import sys, time
from tests.harness import sample_tasks as chores
from vinecore import Factory, Manager
m = Manager(port=0, address="127.0.0.1", password_file=sys.argv[2])
Factory("local", manager=m, min_workers=1, cores=1, memory=500, disk=500).start()
m.wait_for_workers(1, 60)
chores.note(sys.argv[1] + "/ready")
time.sleep(1000)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", text, str(local_cluster.folder), str(local_cluster.secret)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    with process:
        wait_until(lambda: local_cluster.count_lines("ready"))
        process.terminate()
        assert process.wait(PATIENCE_S) == -signal.SIGTERM
    assert left(local_cluster) == []
