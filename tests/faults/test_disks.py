"""Disks that are full, cannot be written, or are cleaned up by somebody else."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import subprocess
import threading

import pytest

from daskvine import DaskVine, daskvine_merge, execution_settings
from daskvine.remote import task_functions
from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, find_paths, wait_for_task, wait_until
from vinecore import PythonTask, Task

MB = 1 << 20


@pytest.fixture
def small_disk(local_cluster):
    """A disk of 8 MB."""
    place = local_cluster.path("small")
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk needs the right to mount one: {mounted.stderr.strip()}")
    yield place
    with contextlib.suppress(subprocess.CalledProcessError):
        subprocess.run(["umount", "--lazy", place], check=True)


def test_oversized_result_fails_and_worker_survives(local_cluster, small_disk):
    """A result that does not fit on the disk is an error that says so and the worker goes on."""
    m = local_cluster.start_manager(DaskVine)
    worker = local_cluster.start_worker(m, "--workspace", str(small_disk))
    m.wait_for_workers(1, PATIENCE_S)
    for task_mode in ("function-calls", "tasks"):
        graph = {"large": (sample_tasks.make_bytes, 20 * MB), "end": (sample_tasks.length, "large")}
        with pytest.raises(OSError, match="No space left on device"):
            m.get(graph, "end", task_mode=task_mode, progress_disable=True)
        assert (
            m.get({"small": (sample_tasks.add, 1, 2)}, "small", task_mode=task_mode, progress_disable=True)
            == 3
        )
    assert worker.process.poll() is None
    wait_until(lambda: shutil.disk_usage(small_disk).used < MB, "what was half written to be removed")


def test_oversized_input_fails_with_reason(local_cluster, small_disk, monkeypatch):
    """An input that does not fit on the disk is an error that says so."""
    monkeypatch.setattr("vinecore.scheduler.transfer_failures.RETRY_DELAY_S", 0.01)  # between its tries
    m = local_cluster.start_manager()
    worker = local_cluster.start_worker(m, "--workspace", str(small_disk))
    m.wait_for_workers(1, PATIENCE_S)
    task = Task("wc -c < in")
    task.add_input(m.declare_buffer(os.urandom(20 * MB)), "in")
    m.submit(task)
    assert wait_for_task(m) is task
    assert task.result == "input missing"
    assert "No space left on device" in str(task.error())
    m.submit(Task("echo fine"))
    assert wait_for_task(m).output == "fine\n"
    assert worker.process.poll() is None
    wait_until(lambda: shutil.disk_usage(small_disk).used < MB, "what was half written to be removed")


def test_non_executable_workspace_is_reported(local_cluster, small_disk):
    """A worker says if nothing can be executed in its workspace."""
    subprocess.run(["mount", "-o", "remount,noexec", small_disk], check=True)
    m = local_cluster.start_manager()
    worker = local_cluster.start_worker(m, "--workspace", str(small_disk))
    program = Task("./in")
    program.add_input(m.declare_buffer("#!/bin/sh\n"), "in")
    m.submit(program)
    assert wait_for_task(m).exit_code == 126
    m.submit(Task("echo fine"))
    assert wait_for_task(m).output == "fine\n"
    assert "mounted with noexec" in worker.log


def test_foreign_full_disk_allows_small_calls(local_cluster, small_disk):
    """A disk that is full of other things lets small calls go on."""
    m = local_cluster.start_manager(DaskVine)
    local_cluster.start_worker(m, "--workspace", str(small_disk))
    m.wait_for_workers(1, PATIENCE_S)
    assert m.get({"x": (sample_tasks.add, 1, 2)}, "x", task_mode="function-calls", progress_disable=True) == 3
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    graph = {("n", n): (sample_tasks.add, n, 1) for n in range(100)}
    assert m.get(graph, list(graph), task_mode="function-calls", progress_disable=True) == tuple(
        range(1, 101)
    )
    task = Task("echo fine")
    m.submit(task)
    assert wait_for_task(m) is task
    assert not task.successful()
    (small_disk / "ballast").unlink()
    m.submit(task)
    assert wait_for_task(m).output == "fine\n"


def test_unplaceable_output_fails_its_task(local_cluster):
    """An output that cannot be put where the user wants it fails its task."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    local_cluster.path("a-file").write_text("in the way")
    task = Task("echo new > out")
    task.add_output(m.declare_file(local_cluster.path("a-file") / "out"), "out")
    m.submit(task)
    assert wait_for_task(m) is task
    assert task.result == "output transfer error"
    assert "cannot be written" in str(task.error())


def damage(local_cluster):
    """Remove every file in the caches of all workers, as a cleaner of temporary folders would."""
    removed = 0
    for path in find_paths(local_cluster.workspace, "vine-worker-*/session-*/cache/*"):
        path.unlink()
        removed += 1
    return removed


@pytest.mark.parametrize("task_mode", ["function-calls", "tasks"])
def test_removed_intermediate_is_made_again(local_cluster, task_mode):
    """An intermediate that somebody has removed is made again."""
    m = local_cluster.start_manager(DaskVine)
    local_cluster.start_workers(m, 1)
    folder = str(local_cluster.folder)
    graph = {
        "large": (sample_tasks.make_bytes, MB),
        "held": (sample_tasks.held, folder, "holding", "gate"),
        "end": (lambda data, _held: len(data), "large", "held"),
        "count": (sample_tasks.counted, folder, "counts", "large"),
    }

    def clean_up():
        wait_until(
            lambda: local_cluster.count_lines("holding") and local_cluster.count_lines("counts"),
            "the large result to be there",
        )
        assert damage(local_cluster)
        local_cluster.path("gate").touch()

    cleaner = threading.Thread(target=clean_up)
    cleaner.start()
    expected = len(sample_tasks.make_bytes(MB))
    try:
        found = m.get(
            graph,
            ["end", "count"],
            task_mode=task_mode,
            resources={"cores": 1} if task_mode == "tasks" else None,
            progress_disable=True,
        )
        assert (found[0], len(found[1])) == (expected, expected)
    finally:
        cleaner.join()


@pytest.mark.parametrize("task_mode", ["function-calls", "tasks"])
def test_input_removed_during_merge_is_remade(local_cluster, monkeypatch, task_mode):
    """An input that somebody has removed while others are merged is made again."""
    monkeypatch.setattr(
        task_functions, "MAX_BYTES_LOADED_AT_ONCE", 0
    )  # so that each is loaded when its turn comes
    # The setup of libraries, which holds that limit, is serialized once for all managers.
    monkeypatch.setattr(execution_settings, "_serialized_setups", {})
    m = local_cluster.start_manager(DaskVine)
    local_cluster.start_workers(m, 1)
    caches, marker = (
        f"{local_cluster.workspace}/vine-worker-*/session-*/cache/*",
        str(local_cluster.path("removed")),
    )

    @daskvine_merge
    def merge(parts):
        if not os.path.exists(marker):
            with open(marker, "w"):
                pass
            for path in glob.glob(caches):
                os.unlink(path)
        return b"".join(parts)

    parts = {("part", number): (sample_tasks.make_bytes, MB) for number in range(4)}
    whole = m.get({**parts, "all": (merge, [*parts])}, "all", task_mode=task_mode)
    assert os.path.exists(marker)
    assert whole == sample_tasks.make_bytes(MB) * 4
    assert m.last_run.recomputed > 0


def test_declared_file_changed_before_use_is_refused(local_cluster, caplog):
    """A declared file that is changed before it is used is not used."""
    m = local_cluster.start_manager()
    path = local_cluster.path("input")
    path.write_bytes(b"a" * 100_000)
    os.utime(path, (0, 0))  # or both would be of the same moment of the clock of the file system
    task = Task("head -c 1 in")
    task.add_input(m.declare_file(path), "in")
    m.submit(task)
    path.write_bytes(b"b" * 100_000)
    local_cluster.start_workers(m, 1)
    assert wait_for_task(m) is task
    assert task.result == "input missing"
    assert str(path) in str(task.error())
    assert "has been changed or removed since it was declared" in caplog.text


def test_small_declared_file_keeps_its_content(local_cluster):
    """A small declared file stays what it was when it was declared."""
    m = local_cluster.start_manager()
    path = local_cluster.path("input")
    path.write_text("as declared")
    task = PythonTask(lambda: open("in").read())
    task.add_input(m.declare_file(path), "in")
    m.submit(task)
    path.unlink()
    local_cluster.start_workers(m, 1)
    assert wait_for_task(m).output == "as declared"


@pytest.mark.parametrize("how", ["flipped", "cut"])
@pytest.mark.parametrize("large", [False, True])
def test_corrupt_replica_is_remade_not_spread(local_cluster, caplog, how, large):
    """Its worker notices before anybody gets it."""
    m = local_cluster.start_manager()
    size = (20 if large else 1) * MB
    (first,) = local_cluster.start_workers(m, 1)
    data = m.declare_temp()
    maker = Task(f"echo >> {local_cluster.path('made')}; head -c {size} /dev/zero > out")
    maker.add_output(data, "out")
    m.submit(maker)
    assert wait_for_task(m).successful()
    (copy,) = local_cluster.workspace.glob(f"*/*/cache/{data.cache_name}")
    copy.chmod(0o600)
    if how == "cut":
        os.truncate(copy, size // 2)
    else:
        with copy.open("r+b") as file:
            file.seek(size // 2)
            file.write(b"x")
    holding = Task(
        f"touch {local_cluster.path('held')}; while [ ! -e {local_cluster.path('gate')} ]; do sleep 0.01; done"
    )
    holding.set_cores(2)
    m.submit(holding)
    wait_until(local_cluster.path("held").exists)
    local_cluster.start_workers(m, 1)
    reader = Task("cksum < in")
    reader.add_input(data, "in")
    m.submit(reader)
    task = wait_for_task(m)
    local_cluster.path("gate").touch()
    command = f"head -c {size} /dev/zero | cksum"
    expected = subprocess.run(command, shell=True, capture_output=True, check=True)
    assert task.output.encode() == expected.stdout
    assert local_cluster.count_lines("made") == 2
    assert "could not get a file of declare_temp from" in caplog.text
    assert f"{data.cache_name} has been changed on this worker's disk" in first.log
    assert first.process.poll() is None
