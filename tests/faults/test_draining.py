"""Workers that are told to end, and hand over what only they have."""

from __future__ import annotations

import contextlib
import os
import signal

import psutil

from daskvine import DaskVine
from tests.faults.test_workers_lost import InThread
from tests.harness import sample_tasks
from tests.harness.processes import HURRY_S, PATIENCE_S, scheduler_state, wait_until, worker_summaries
from vinecore import FunctionCall, Task

PARTS = 6


def half_way(local_cluster, m, size=1):
    """A run whose parts are made, and wait for a gate to be added up."""
    graph = {("part", n): (make_part, str(local_cluster.folder), f"part-{n}", n, size) for n in range(PARTS)}
    graph["wait"] = (sample_tasks.held, str(local_cluster.folder), "held", "gate")
    graph["end"] = (add_up, [("part", n) for n in range(PARTS)], "wait")
    return InThread(m.get, graph, "end", task_mode="function-calls", progress_disable=True)


def make_part(folder, name, value, size):
    sample_tasks.note(f"{folder}/{name}")
    return bytes([value]) * size


def add_up(parts, _gate):
    return [(part[0], len(part)) for part in parts]


def made(local_cluster):
    return [local_cluster.count_lines(f"part-{n}") for n in range(PARTS)]


def wait_for_parts(local_cluster, m, run):
    """Wait until all parts are done, as the manager sees it, and the gate is waited for."""

    def look(scheduler):
        return any(known.done >= PARTS for known in scheduler.state.graphs.values())

    wait_until(
        lambda: not run.running or (scheduler_state(m, look) and local_cluster.count_lines("held")),
        "the parts to be made",
    )
    assert run.running or run.result()


def finish(local_cluster, run, size=1):
    local_cluster.path("gate").touch()
    assert run.result() == [(n, size) for n in range(PARTS)]


def test_terminated_worker_loses_no_result(local_cluster):
    """A worker that gets sigterm takes no result with it."""
    m = local_cluster.start_manager(DaskVine)
    [first] = local_cluster.start_workers(m, 1)
    run = half_way(local_cluster, m, size=200_000)
    wait_for_parts(local_cluster, m, run)
    [_second] = local_cluster.start_workers(m, 1)
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    assert "leaving within 25 s" in first.log
    finish(local_cluster, run, size=200_000)
    assert made(local_cluster) == [1] * PARTS
    assert m.last_run.recomputed == 0


def test_sole_workers_results_go_to_manager(local_cluster):
    """Where there is no other worker the manager takes what it has."""
    m = local_cluster.start_manager(DaskVine)
    [first] = local_cluster.start_workers(m, 1)
    run = half_way(local_cluster, m)
    wait_for_parts(local_cluster, m, run)
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    assert run.running
    local_cluster.start_workers(m, 1)
    finish(local_cluster, run)
    assert made(local_cluster) == [1] * PARTS


def test_worker_past_wall_time_loses_nothing(local_cluster):
    """A worker whose wall time is over takes no result with it."""
    m = local_cluster.start_manager(DaskVine)
    first = local_cluster.start_hurried_worker(m, "--wall-time", str(HURRY_S))
    run = half_way(local_cluster, m)
    wait_for_parts(local_cluster, m, run)
    local_cluster.start_workers(m, 1)
    local_cluster.let_time_pass()
    assert first.wait() == 0
    assert f"its wall time of {HURRY_S} s is over" in first.log
    finish(local_cluster, run)
    assert made(local_cluster) == [1] * PARTS


def test_undrainable_worker_ends_after_grace(local_cluster):
    """Nobody waits for longer than its grace for a worker that cannot hand over."""
    m = local_cluster.start_manager(DaskVine)
    [first] = local_cluster.start_workers(m, 1, "--grace", "0.5")
    run = half_way(local_cluster, m)
    wait_for_parts(local_cluster, m, run)
    [second] = local_cluster.start_workers(m, 1)
    second.send(signal.SIGSTOP)  # who was to take it
    try:
        first.send(signal.SIGTERM)
        assert first.wait() == 0
        assert "its grace of 0.5 s is over" in first.log
    finally:
        second.send(signal.SIGCONT)
    wait_until(lambda: m.workers_connected == 1, "the manager to notice")
    finish(local_cluster, run)


def test_a_second_signal_ends_it_at_once(local_cluster):
    m = local_cluster.start_manager(DaskVine)
    [first] = local_cluster.start_workers(m, 1, "--grace", "10000")
    run = half_way(local_cluster, m)
    wait_for_parts(local_cluster, m, run)
    [second] = local_cluster.start_workers(m, 1)
    second.send(signal.SIGSTOP)
    try:
        first.send(signal.SIGINT)
        first.wait_for_log("leaving within 10000 s")
        first.send(signal.SIGINT)
        assert first.wait() == 0
        assert "the worker got SIGINT again" in first.log
    finally:
        second.send(signal.SIGCONT)
    finish(local_cluster, run)


def test_only_worker_answers_jobs_signal(local_cluster):
    """Only the worker answers when all processes of a job are asked to end."""
    m = local_cluster.start_manager(DaskVine)
    [first] = local_cluster.start_workers(m, 1)
    run = half_way(local_cluster, m)
    wait_for_parts(local_cluster, m, run)
    local_cluster.start_workers(m, 1)
    family = first.descendants
    first.send(signal.SIGTERM)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    assert first.wait() == 0
    finish(local_cluster, run)
    assert made(local_cluster) == [1] * PARTS


def test_library_ignores_signal_its_calls_end(local_cluster):
    """A library does not end when it is asked to but what it runs does."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    library = m.create_library_from_functions(
        "chores", sample_tasks.who, sample_tasks.dies_once, exec_mode="direct"
    )
    library.set_cores(1)
    m.install_library(library)
    m.submit(FunctionCall("chores", "who"))
    _slot, host = m.wait(PATIENCE_S).output
    os.kill(host, signal.SIGTERM)
    m.submit(FunctionCall("chores", "dies_once", str(local_cluster.folder), "call", int(signal.SIGTERM)))
    assert m.wait(PATIENCE_S).output == "call"
    assert local_cluster.count_lines("call") == 2
    m.submit(FunctionCall("chores", "who"))
    assert m.wait(PATIENCE_S).output[1] == host


def test_idle_worker_leaves_results_with_manager(local_cluster):
    """An idle worker leaves what is needed with the manager."""
    m = local_cluster.start_manager()
    temp = m.declare_temp()
    maker = Task(f"echo made >> {local_cluster.path('makers')}; echo precious > out")
    maker.add_output(temp, "out")
    m.submit(maker)
    worker = local_cluster.start_hurried_worker(m, "--idle-timeout", str(HURRY_S - 50))
    assert m.wait(PATIENCE_S).successful()
    local_cluster.let_time_pass()
    assert worker.wait() == 0
    assert f"idle for {HURRY_S - 50} s" in worker.log
    wait_until(lambda: not worker_summaries(m), "the manager to notice")
    local_cluster.start_workers(m, 1)
    reader = Task("cat in")
    reader.add_input(temp, "in")
    m.submit(reader)
    assert m.wait(PATIENCE_S).output == "precious\n"
    assert local_cluster.count_lines("makers") == 1
