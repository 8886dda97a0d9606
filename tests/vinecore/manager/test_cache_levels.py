"""How long workers keep files: until a task is over, until the manager ends, until the worker ends, or longer."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests.harness.processes import PATIENCE_S, find_paths, free_port, scheduler_state, wait_until
from tests.harness.sample_tasks import PERSISTENT
from vinecore import Manager, PythonTask, Task
from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol.serialization import values
from vinecore.security.shared_secret import write_secret

LARGE = 3 * INLINE_LIMIT
LOOK = "cat in/deep/run; in/deep/run; readlink in/link; ls -d in/empty; stat -c %a in/deep/run in/deep; sha256sum < large; cat small"


@pytest.fixture
def inputs(tmp_path):
    """What a user has: a small file, a large one, and a directory with everything that directories may have."""
    (tmp_path / "mine" / "tree" / "empty").mkdir(parents=True)
    mine = tmp_path / "mine"
    (mine / "small").write_text("small\n")
    (mine / "large").write_bytes(os.urandom(LARGE))
    deep = mine / "tree" / "deep"
    deep.mkdir(mode=0o750)
    (deep / "run").write_text("#!/bin/sh\necho I run\n")
    (deep / "run").chmod(0o755)
    (mine / "tree" / "link").symlink_to("deep/run")
    return mine


def declare(m, inputs, cache):
    return {name: m.declare_file(inputs / name, cache=cache) for name in ("small", "large", "tree")}


def look(files):
    task = Task(LOOK, cores=1)
    for name, file in files.items():
        task.add_input(file, "in" if name == "tree" else name)
    return task


def run(m, task):
    m.submit(task)
    assert m.wait(PATIENCE_S) is task, m.stalled_reason
    assert task.successful(), (task.result, task.output, task.error())
    return task.output


def counts(m, files):
    return [m.get_file_replica_count(file) for file in files.values()]


def moved(m):
    return scheduler_state(m, lambda scheduler: scheduler.state.moved_bytes)


def records(local_cluster):
    return sorted(path.name for path in local_cluster.workspace.glob("vine-kept/*/records/*"))


def keeper(local_cluster, m, *options):
    """Start a worker that keeps what is to be kept."""
    return local_cluster.start_worker(m, "--keep-workspace", *options)


def fill(local_cluster, inputs, count=3):
    """Have a worker keep files, and give it; its manager has ended."""
    m = local_cluster.start_manager()
    worker = keeper(local_cluster, m)
    files = declare(m, inputs, "forever")
    output = run(m, look(files))
    wait_until(lambda: len(records(local_cluster)) == count, "all to be kept")
    m.close()
    return worker, output


# ---- forever


@pytest.mark.parametrize("killed", [False, True])
def test_forever_file_is_found_later(local_cluster, inputs, killed):
    """A forever file is found by a later manager on a later worker."""
    m = local_cluster.start_manager()
    worker = keeper(local_cluster, m)
    output = run(m, look(declare(m, inputs, "forever")))
    wait_until(lambda: len(records(local_cluster)) == 3, "all to be kept")
    if killed:
        worker.kill()
    m.close()
    worker.wait()
    wait_until(lambda: os.listdir(local_cluster.workspace) == ["vine-kept"], "nothing else to be left")

    m = local_cluster.start_manager()
    files = declare(m, inputs, "forever")
    keeper(local_cluster, m)
    wait_until(lambda: counts(m, files) == [1, 1, 1], "the files to be found")
    (inputs / "large").unlink()  # nobody could bring it again
    assert run(m, look(files)) == output
    assert moved(m) == 0


SLOW = [
    sys.executable,
    "-c",
    "from vineworker import cli\nfrom vineworker.storage import persistent_cache\npersistent_cache.PersistentCache._scan_directory = lambda self: []\ncli.main()",
]
"""The command of a worker that has not come to looking through what is kept yet."""


def test_impatient_task_gets_found_files(local_cluster, inputs):
    """A task that does not wait until files are found has them nevertheless."""
    worker, output = fill(local_cluster, inputs)
    worker.wait()
    m = local_cluster.start_manager()
    task = look(declare(m, inputs, "forever"))
    (inputs / "large").unlink()
    m.submit(task)
    local_cluster.start_worker(m, "--keep-workspace", command=SLOW)
    assert m.wait(PATIENCE_S) is task
    assert task.output == output


def test_worker_persists_before_leaving(local_cluster, inputs):
    """A worker keeps what it was told to before it leaves."""
    os.truncate(inputs / "large", 1000 * LARGE)
    m = local_cluster.start_manager()
    worker = keeper(local_cluster, m)
    run(m, look(declare(m, inputs, "workflow")))
    declare(m, inputs, "forever")
    m.close()
    worker.wait()
    assert len(records(local_cluster)) == 3
    assert os.listdir(local_cluster.workspace) == ["vine-kept"]


def test_damaged_file_is_fetched_again(local_cluster, inputs):
    """A damaged file is not used but brought again."""
    worker, output = fill(local_cluster, inputs)
    worker.wait()
    for path in local_cluster.workspace.glob("vine-kept/*/objects/*"):
        victim = path / "deep" / "run" if path.is_dir() else path
        data = bytearray(victim.read_bytes())
        data[0] ^= 1
        victim.chmod(0o755)
        victim.write_bytes(bytes(data))
    m = local_cluster.start_manager()
    worker = keeper(local_cluster, m)
    wait_until(lambda: worker.log.count("is damaged") == 3, "the damage to be found")
    wait_until(lambda: records(local_cluster) == [], "what is damaged to be removed")
    assert run(m, look(declare(m, inputs, "forever"))) == output
    wait_until(lambda: len(records(local_cluster)) == 3, "all to be kept again")


def test_altered_cached_file_is_not_persisted(local_cluster, inputs):
    """What was altered in a cache is not kept elsewhere."""
    data = os.urandom(20 << 20)
    (inputs / "large").write_bytes(data)
    m = local_cluster.start_manager()
    first = keeper(local_cluster, m, "--cores", "1")
    file = m.declare_file(inputs / "large", cache="forever")

    def task():
        reading = Task("sha256sum < large", cores=1)
        reading.add_input(file, "large")
        return reading

    output = run(m, task())
    wait_until(lambda: len(records(local_cluster)) == 1, "it to be kept")
    (copy,) = local_cluster.workspace.glob(f"*/*/cache/{file.cache_name}")
    altered = local_cluster.path("altered")
    altered.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.replace(altered, copy)
    hold = f"touch {local_cluster.path('held')}; while [ ! -e {local_cluster.path('gate')} ]; do sleep 0.01; done"
    m.submit(Task(hold, cores=1))
    wait_until(local_cluster.path("held").exists)
    keeper(local_cluster, m, "--cores", "1")
    m.wait_for_workers(2, PATIENCE_S)
    assert run(m, task()) == output
    assert f"{file.cache_name} has been changed on this worker's disk" in first.log
    wait_until(lambda: find_paths(local_cluster.workspace, "vine-kept/*-2/records/*"), "it to be kept there")
    local_cluster.path("gate").touch()
    assert [path.read_bytes() for path in local_cluster.workspace.glob("vine-kept/*-2/objects/*")] == [data]


def test_a_worker_with_another_secret_finds_nothing(local_cluster, inputs):
    worker, output = fill(local_cluster, inputs)
    worker.wait()
    other = local_cluster.path("other")
    write_secret(other)
    m = local_cluster.start_manager(password_file=other)
    local_cluster.start_worker(m, "--keep-workspace", secret=other)
    files = declare(m, inputs, "forever")
    assert run(m, look(files)) == output
    assert moved(m) >= LARGE
    wait_until(lambda: len(records(local_cluster)) == 6, "both to have their own")


def test_two_workers_persist_in_one_workspace(local_cluster, inputs):
    """Two workers keep side by side in one workspace."""
    m = local_cluster.start_manager()
    workers = [keeper(local_cluster, m, "--cores", "1") for _ in range(2)]
    m.wait_for_workers(2, PATIENCE_S)
    files = declare(m, inputs, "forever")
    tasks = []
    for mine, other in (("a", "b"), ("b", "a")):
        task = look(files)
        task.command = f"touch {local_cluster.path(mine)}; until [ -e {local_cluster.path(other)} ]; do sleep 0.01; done; {LOOK}"
        tasks.append(task)
        m.submit(task)
    assert {m.wait(PATIENCE_S), m.wait(PATIENCE_S)} == set(tasks)
    wait_until(lambda: len(records(local_cluster)) == 6, "each to have its own")
    m.close()
    for worker in workers:
        worker.wait()
    m = local_cluster.start_manager()
    files = declare(m, inputs, "forever")
    for _ in range(2):
        keeper(local_cluster, m, "--cores", "1")
    wait_until(lambda: counts(m, files) == [2, 2, 2], "both to find what they have kept")


def test_without_keep_workspace_nothing_is_left(local_cluster, inputs):
    m = local_cluster.start_manager()
    workers = [local_cluster.start_worker(m) for _ in range(2)]
    m.wait_for_workers(2, PATIENCE_S)
    run(m, look(declare(m, inputs, "forever")))
    workers[0].kill()
    m.close()
    for worker in workers:
        worker.wait()
    wait_until(lambda: os.listdir(local_cluster.workspace) == [], "nothing to be left")


def test_undeclared_file_stays_pruned_goes(local_cluster, inputs):
    """What is undeclared stays and what is pruned goes."""
    m = local_cluster.start_manager()
    keeper(local_cluster, m)
    files = declare(m, inputs, "forever")
    run(m, look(files))
    wait_until(lambda: len(records(local_cluster)) == 3, "all to be kept")
    for file in files.values():
        m.undeclare_file(file)
    again = declare(m, inputs, "forever")
    assert counts(m, again) == [1, 1, 1]
    before = moved(m)
    run(m, look(again))
    assert moved(m) == before
    for file in again.values():
        m.prune_file(file)
    assert counts(m, again) == [0, 0, 0]
    wait_until(lambda: records(local_cluster) == [], "nothing to be kept")
    wait_until(
        lambda: not find_paths(local_cluster.workspace, "vine-kept/*/objects/*"), "the contents to go as well"
    )


def test_an_unpacked_archive_is_kept_too(local_cluster, tmp_path):
    import tarfile

    (tmp_path / "hello").write_text("hello\n")
    with tarfile.open(tmp_path / "hello.tar", "w") as archive:
        archive.add(tmp_path / "hello", "hello")
    for turn in range(2):
        m = local_cluster.start_manager()
        worker = keeper(local_cluster, m)
        unpacked = m.declare_untar(m.declare_file(tmp_path / "hello.tar"), cache="forever")
        if turn:
            wait_until(lambda: m.get_file_replica_count(unpacked), "the unpacked archive to be found")  # noqa: B023
        task = Task("cat in/hello", cores=1)
        task.add_input(unpacked, "in")
        assert run(m, task) == "hello\n"
        wait_until(lambda: len(records(local_cluster)) == 1, "it to be kept")
        m.close()
        worker.wait()


# ---- worker and workflow


def test_worker_level_files_reach_next_manager(local_cluster, inputs):
    """A worker brings its files to the next manager except those of a workflow."""
    port = free_port()
    m = local_cluster.start_manager(port=port)
    worker = local_cluster.start_worker(m, command=PERSISTENT)
    lasting = m.declare_file(inputs / "large", cache="worker")
    ending = m.declare_file(inputs / "tree", cache="workflow")
    both = Task("test -e a && test -e b")
    both.add_input(lasting, "a")
    both.add_input(ending, "b")
    run(m, both)
    wait_until(lambda: find_paths(local_cluster.workspace, "*/kept/objects/*"), "it to be kept")
    m.close()
    m = local_cluster.start_manager(port=port)
    lasting = m.declare_file(inputs / "large", cache="worker")
    ending = m.declare_file(inputs / "tree", cache="workflow")
    wait_until(lambda: m.get_file_replica_count(lasting), "it to be found")
    assert m.get_file_replica_count(ending) == 0
    worker.send(signal.SIGTERM)
    worker.wait()
    wait_until(lambda: os.listdir(local_cluster.workspace) == [], "nothing to be left")


def test_workflow_file_stays_until_undeclared(local_cluster):
    """A workflow file stays between tasks until it is undeclared."""
    m = local_cluster.start_manager()
    local_cluster.start_worker(m)
    file = m.declare_buffer(os.urandom(LARGE), cache=True)
    task = Task("cat in > /dev/null")
    task.add_input(file, "in")
    run(m, task)
    assert m.get_file_replica_count(file) == 1
    m.undeclare_file(file)
    wait_until(
        lambda: not find_paths(local_cluster.workspace, "*/session-*/cache/buffer-*"),
        "the copy to be removed",
    )


# ---- task


def test_task_level_file_goes_after_last_task(local_cluster):
    """A task file goes when the last task that needs it is over."""
    m = local_cluster.start_manager()
    local_cluster.start_worker(m, "--cores", "1")
    file = m.declare_buffer(os.urandom(LARGE))
    tasks = []
    for _ in range(2):
        task = Task("cat in > /dev/null", cores=1)
        task.add_input(file, "in")
        tasks.append(task)
        m.submit(task)
    assert m.wait(PATIENCE_S) in tasks
    assert m.wait(PATIENCE_S) in tasks
    assert moved(m) == LARGE  # the second one has used the copy of the first
    assert m.get_file_replica_count(file) == 0
    wait_until(
        lambda: not find_paths(local_cluster.workspace, "*/session-*/cache/buffer-*"),
        "the copy to be removed",
    )
    run(m, tasks[0])
    assert moved(m) == 2 * LARGE


def test_output_leaves_worker_after_upload(local_cluster, tmp_path):
    """An output stays on its worker only until it has been brought."""
    m = local_cluster.start_manager()
    local_cluster.start_worker(m)
    brief, longer = m.declare_file(tmp_path / "a"), m.declare_file(tmp_path / "b", cache=True)
    task = Task(f"head -c {LARGE} /dev/zero | tee a > b")
    task.add_output(brief, "a")
    task.add_output(longer, "b")
    run(m, task)
    assert [path.stat().st_size for path in (tmp_path / "a", tmp_path / "b")] == [LARGE, LARGE]
    assert (m.get_file_replica_count(brief), m.get_file_replica_count(longer)) == (0, 1)


def test_input_is_cached_for_next_task(local_cluster):
    """The input of a python task is there for the task after it."""
    m = local_cluster.start_manager()
    local_cluster.start_worker(m)
    data = m.declare_buffer(values.dumps(-42, by_value=False))
    for _ in range(2):
        task = PythonTask(abs, data)
        m.submit(task)
        assert m.wait(PATIENCE_S) is task
        assert task.output == 42


# ---- the user's own file


def test_unlinked_file_goes_after_last_task(local_cluster, tmp_path):
    """A file to be unlinked goes when the last task that needs it is over."""
    path = tmp_path / "scratch"
    path.write_bytes(os.urandom(LARGE))
    m = local_cluster.start_manager()
    file = m.declare_file(path, unlink_when_done=True)
    task = Task("wc -c < in")
    task.add_input(file, "in")
    m.submit(task)
    m.undeclare_file(file)
    assert path.exists()
    local_cluster.start_worker(m)
    assert m.wait(PATIENCE_S) is task
    assert task.output.strip() == str(LARGE)
    wait_until(lambda: not path.exists(), "the file to be unlinked")


def test_unlinked_files_and_folders_go_with_manager(tmp_path, local_cluster):
    """Files and folders to be unlinked go with the manager."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").write_text("x")
    m = local_cluster.start_manager(Manager)
    m.declare_file(tmp_path / "folder", unlink_when_done=True)
    m.declare_file(tmp_path / "file", unlink_when_done=True)
    m.declare_file(tmp_path / "other")
    m.close()
    assert not (tmp_path / "folder").exists()
    assert not (tmp_path / "file").exists()
    assert (tmp_path / "other").exists()


def test_unlinked_output_goes_when_undeclared(local_cluster, tmp_path):
    """An output to be unlinked goes when it is undeclared."""
    m = local_cluster.start_manager()
    local_cluster.start_worker(m)
    file = m.declare_file(tmp_path / "out", unlink_when_done=True)
    task = Task("echo x > out")
    task.add_output(file, "out")
    run(m, task)
    assert (tmp_path / "out").read_text() == "x\n"
    m.undeclare_file(file)
    assert not (tmp_path / "out").exists()
