"""Managers are killed, and others go on where they were."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter

import psutil
import pytest

from tests.faults import resume_script
from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, find_paths, free_port, is_alive, scheduler_state, wait_until
from vinecore.journal import records
from vinecore.journal.reader import read
from vinecore.protocol.temporary_folders import OWNER_FILE

WORKERS = 3
KILLS = 7


def only_files(folder):
    return [name for _place, _folders, files in os.walk(folder) for name in files if name != OWNER_FILE]


class Script:
    """The user's script, started as often as it takes."""

    def __init__(self, local_cluster):
        self._local_cluster, self.port = local_cluster, free_port()
        self.log, self.answer, self.info = (
            local_cluster.path("log"),
            local_cluster.path("answer"),
            local_cluster.path("info"),
        )
        self.process = None

    def start(self, resume="yes", workspace=""):
        """Start it, with workers of its own if there is a workspace."""
        places = (self._local_cluster.secret, self.info, self.log, self.answer)
        with self._local_cluster.path("script.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.resume_script", str(self.port), *map(str, places), resume, str(workspace)], stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )  # fmt: skip

    def worker(self):
        """Start one that outlives its managers."""
        return self._local_cluster.start_worker(
            self.port, "--timeout", "300", command=sample_tasks.PERSISTENT
        )

    def finish(self):
        """Let it come to its end; give the total, and how many vertices were run."""
        self.log.with_suffix(".gate").touch()
        assert self.process.wait(PATIENCE_S) == 0, self._local_cluster.path("script.log").read_text()
        return json.loads(self.answer.read_text())

    def kill(self):
        """Kill it; nothing of it is left to write."""
        self.process.kill()
        self.process.wait()

    def executions(self):
        """How often each vertex has been run to its end."""
        return Counter(self.log.read_text().splitlines()) if self.log.exists() else Counter()

    def finished(self):
        """The vertices that are done according to the journals."""
        done = set()
        for path in self.info.glob(f"2*/{records.FILE}"):
            labels = {}
            for record in read(path):
                if type(record) is records.TaskSubmittedRecord:
                    labels[record.task] = record.label
                elif type(record) is records.TaskDoneRecord:
                    done.add(labels[record.task])
        return done


@pytest.fixture
def script(local_cluster):
    script = Script(local_cluster)
    yield script
    if script.process is not None:
        script.kill()


def test_manager_killed_repeatedly_repeats_no_task(local_cluster, script):
    """A manager that is killed again and again repeats nothing that is finished."""
    chance = random.Random(1)
    _graph, _end, expected = resume_script.graph_of(script.log)
    workers = [
        local_cluster.start_worker(script.port, "--timeout", "300", command=sample_tasks.PERSISTENT)
        for _ in range(WORKERS)
    ]
    before = {}  # vertices that are finished and in a journal -> how often they have been run
    for _ in range(KILLS):
        more = int(chance.uniform(0, 0.35) * (expected - len(before)))
        enough = script.executions().total() + more
        script.start()
        wait_until(lambda: script.executions().total() >= enough or script.process.poll() is not None)  # noqa: B023
        assert script.process.poll() is None, local_cluster.path("script.log").read_text()
        script.kill()
        counts = script.executions()
        before.update({name: counts[name] for name in script.finished() - before.keys()})
    script.start()
    total, executed = script.finish()
    counts = script.executions()
    assert total == expected == len(counts)
    assert {name: counts[name] for name in before} == before
    assert executed <= expected - len(before)
    for worker in workers:
        worker.send(15)
        assert worker.wait() == 0
    assert list(local_cluster.workspace.iterdir()) == []
    assert [path.name for path in local_cluster.path("tmp").iterdir() if path.name.startswith("vine")] == []


def test_results_lost_with_manager_are_remade(local_cluster, script):
    """What was lost together with the manager is made again."""
    workers = [script.worker() for _ in range(2)]
    script.start()
    wait_until(lambda: len(script.finished()) >= 50)
    workers[0].kill()
    script.kill()
    script.start()
    total, executed = script.finish()
    assert total == resume_script.graph_of(script.log)[2]
    assert executed < total


def test_results_in_workspace_are_found(local_cluster, script):
    """What own workers have left in their workspace is found."""
    script.start(workspace=local_cluster.path("kept"))
    wait_until(lambda: len(script.finished()) >= 50)
    family = psutil.Process(script.process.pid).children(recursive=True)
    script.kill()
    wait_until(lambda: not any(map(is_alive, family)), "its workers to notice")
    script.start(workspace=local_cluster.path("kept"))
    total, executed = script.finish()
    assert total == resume_script.graph_of(script.log)[2]
    assert executed < total


def test_unwanted_kept_files_are_released(local_cluster, script):
    """What workers hold goes when the next manager does not want it."""
    script.worker()
    script.start()
    wait_until(lambda: script.executions().total() >= 30)
    script.kill()

    def list_kept_files():
        folders = find_paths(local_cluster.workspace, "*/orphans-*")
        return [name for path in folders for name in only_files(path)]

    wait_until(list_kept_files, "the worker to keep what it has")
    with local_cluster.start_manager(port=script.port) as m:
        m.wait_for_workers(1, PATIENCE_S)
        wait_until(lambda: not list_kept_files(), "the worker to let it go")
        assert scheduler_state(m, lambda scheduler: scheduler.state.files) == {}


def test_workers_keep_nothing_without_resume(local_cluster, script):
    """Workers of a manager that asks for nothing keep nothing."""
    worker = script.worker()
    script.start("no")
    wait_until(lambda: script.executions().total() >= 30)
    script.kill()
    worker.wait_for_log("the manager is gone")
    wait_until(lambda: only_files(local_cluster.workspace) == [])
