"""What decides which workers get work, with real workers."""

from __future__ import annotations

import socket
import subprocess

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, scheduler_state, wait_until, worker_summaries
from vinecore import PythonTask, Task
from vinecore.scheduler.tuning import Tuning

HOST = socket.gethostname()


def held(local_cluster, name, gate="gate", **more):
    task = PythonTask(sample_tasks.held, str(local_cluster.folder), name, gate)
    task.set_cores(1)
    for setting, value in more.items():
        getattr(task, f"set_{setting}")(value)
    return task


@pytest.mark.parametrize("names", [("block_host", "unblock_host"), ("blacklist", "blacklist_clear")])
def test_blocked_host_gets_no_work(local_cluster, names):
    m = local_cluster.start_manager()
    block, unblock = (getattr(m, name) for name in names)
    local_cluster.start_workers(m, 1)
    block(HOST)
    m.submit(Task("echo ran", cores=1))
    wait_until(lambda: "unblock_host" in m.stalled_reason)
    assert worker_summaries(m)[0]["tasks"] == 0
    unblock(HOST)
    assert m.wait(PATIENCE_S).output == "ran\n"


@pytest.mark.parametrize("name", ["block_host_with_timeout", "blacklist_with_timeout"])
def test_block_ends_by_itself(local_cluster, name):
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    getattr(m, name)(HOST, 0.5)
    m.submit(Task("echo ran", cores=1))
    assert scheduler_state(m, lambda scheduler: [t.worker for t in scheduler.state.tasks.values()]) == [None]
    assert m.wait(PATIENCE_S).output == "ran\n"


def test_drained_host_finishes_and_leaves(local_cluster):
    m = local_cluster.start_manager()
    [worker] = local_cluster.start_workers(m, 1)
    m.submit(held(local_cluster, "begun"))
    wait_until(local_cluster.path("begun").exists)
    assert m.set_draining_by_hostname("elsewhere") == 0
    assert m.set_draining_by_hostname(HOST) == 1
    m.submit(Task("echo later", cores=1, tag="later"))
    local_cluster.path("gate").touch()
    assert m.wait(PATIENCE_S).output == "begun"
    assert worker.wait() == 0
    local_cluster.start_workers(m, 1)
    assert m.wait(PATIENCE_S).tag == "later"


def test_kept_host_gets_work_again(local_cluster):
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    m.submit(held(local_cluster, "begun"))
    wait_until(local_cluster.path("begun").exists)
    m.set_draining_by_hostname(HOST)
    assert m.set_draining_by_hostname(HOST, drain_mode=False) == 1
    m.submit(Task("echo later", cores=1, tag="later"))
    assert m.wait(PATIENCE_S).tag == "later"
    local_cluster.path("gate").touch()
    assert m.wait(PATIENCE_S).output == "begun"


def test_shut_down_workers_leave_their_work(local_cluster):
    m = local_cluster.start_manager()
    workers = local_cluster.start_workers(m, 3, "--cores", "1")
    m.submit(held(local_cluster, "begun"))
    wait_until(local_cluster.path("begun").exists)
    assert m.workers_shutdown(2) == 2
    wait_until(lambda: sum(worker.process.poll() is None for worker in workers) == 1)
    assert m.workers_connected == 1
    [busy] = [worker for worker in workers if worker.process.poll() is None]
    assert m.workers_shutdown() == 1
    assert busy.wait() == 0
    local_cluster.path("gate").touch()
    local_cluster.start_workers(m, 1)
    assert m.wait(PATIENCE_S).output == "begun"


def test_random_worker_is_released(local_cluster):
    m = local_cluster.start_manager()
    assert m.release_random_worker() == 0
    workers = local_cluster.start_workers(m, 2)
    number = m.release_random_worker()
    wait_until(lambda: m.workers_connected == 1)
    assert worker_summaries(m)[0]["id"] != number
    wait_until(lambda: [worker.process.poll() is None for worker in workers].count(False) == 1)


def test_silent_worker_is_given_up(local_cluster):
    """Before it would even be asked by default."""
    m = local_cluster.start_manager()
    m.set_keepalive_interval(0.3)
    m.set_keepalive_timeout(0.6)
    [worker] = local_cluster.start_workers(m, 1)
    worker.send(subprocess.signal.SIGSTOP)
    wait_until(lambda: m.workers_connected == 0, timeout_s=Tuning().keepalive_interval - 5)
    worker.send(subprocess.signal.SIGCONT)
    worker.wait()


def test_worker_beyond_maximum_is_refused(local_cluster):
    m = local_cluster.start_manager()
    assert m.tune("max-workers", 1) == 0
    [first] = local_cluster.start_workers(m, 1)
    second = local_cluster.start_worker(m)
    assert second.wait() is not None
    assert "max-workers" in second.log
    assert m.workers_connected == 1
    first.kill()
    wait_until(lambda: m.workers_connected == 0)
    local_cluster.start_workers(m, 1)


def test_work_waits_for_enough_workers(local_cluster):
    m = local_cluster.start_manager()
    m.tune("wait-for-workers", 2)
    local_cluster.start_workers(m, 1)
    m.submit(Task("echo ran", cores=1))
    wait_until(lambda: "1 of the 2 workers" in m.stalled_reason)
    local_cluster.start_workers(m, 1)
    assert m.wait(PATIENCE_S).output == "ran\n"


@pytest.mark.parametrize("name", ["enable_disconnect_slow_workers_category", "activate_fast_abort_category"])
def test_slow_task_runs_on_another_worker(local_cluster, name):
    """The first attempt waits for a file that never comes, the second finds its own."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1, "--cores", "1")
    for _ in range(10):
        m.submit(Task("true", category="kind", cores=1))
    assert all(m.wait(PATIENCE_S).successful() for _ in range(10))
    assert getattr(m, name)("kind", 3) == 0
    folder = local_cluster.folder
    m.submit(
        Task(f"test -e {folder}/slow || {{ touch {folder}/slow; sleep 1000; }}", category="kind", cores=1)
    )
    wait_until((folder / "slow").exists)
    local_cluster.start_workers(m, 1, "--cores", "1")
    task = m.wait(PATIENCE_S)
    assert task.successful()
    assert m.worker_name(2) == task.hostname
    assert scheduler_state(m, lambda scheduler: scheduler.state.counters.workers_slow) == 0


def test_slow_worker_check_can_be_switched(local_cluster):
    m = local_cluster.start_manager()
    for enable in (m.enable_disconnect_slow_workers, m.activate_fast_abort):
        assert [enable(3), enable(0), enable(-1)] == [0, 1, 1]
        assert scheduler_state(m, lambda scheduler: scheduler.state.tuning.disconnect_slow_worker_factor) == 0
    assert m.tune("disconnect-slow-workers-factor", 2) == 0
    assert scheduler_state(m, lambda scheduler: scheduler.state.tuning.disconnect_slow_worker_factor) == 2


def test_workers_are_evicted_in_intervals(local_cluster):
    """A test of recovery: all that is lost is made again."""
    m = local_cluster.start_manager()
    workers = local_cluster.start_workers(m, 2, "--cores", "1")
    tasks = [held(local_cluster, f"begun-{n}", f"gate-{n}") for n in range(2)]
    for task in tasks:
        m.submit(task)
    wait_until(lambda: all(local_cluster.path(f"begun-{n}").exists() for n in range(2)))
    m.tune("enforce-worker-eviction-interval", 0.1)
    wait_until(lambda: m.workers_connected == 0)
    m.tune("enforce-worker-eviction-interval", 0)
    assert [worker.wait() for worker in workers] == [0, 0]
    for n in range(2):
        local_cluster.path(f"gate-{n}").touch()
    local_cluster.start_workers(m, 1)
    assert {m.wait(PATIENCE_S).output for _ in tasks} == {"begun-0", "begun-1"}
