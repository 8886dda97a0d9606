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
from tests.harness.processes import alive, free_port, paths_in, until
from vinecore.journal import records
from vinecore.journal.reader import read
from vinecore.protocol.temporary_folders import OWNER_FILE

WORKERS = 3
KILLS = 7


def only_files(folder):
    return [name for _place, _folders, files in os.walk(folder) for name in files if name != OWNER_FILE]


class Script:
    """The user's script, started as often as it takes."""

    def __init__(self, yard):
        self._yard, self.port = yard, free_port()
        self.log, self.answer, self.info = yard.place("log"), yard.place("answer"), yard.place("info")
        self.process = None

    def start(self, resume="yes", workspace=""):
        """Start it, with workers of its own if there is a workspace."""
        places = (self._yard.secret, self.info, self.log, self.answer)
        with self._yard.place("script.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.resume_script", str(self.port), *map(str, places), resume, str(workspace)], stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )  # fmt: skip

    def worker(self):
        """Start one that outlives its managers."""
        return self._yard.worker(self.port, "--timeout", "300", command=sample_tasks.PERSISTENT)

    def finish(self):
        """Let it come to its end; give the total, and how many vertices were run."""
        self.log.with_suffix(".gate").touch()
        assert self.process.wait(120) == 0, self._yard.place("script.log").read_text()
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
def script(yard):
    script = Script(yard)
    yield script
    if script.process is not None:
        script.kill()


def test_a_manager_that_is_killed_again_and_again_repeats_nothing_that_is_finished(yard, script):
    chance = random.Random(1)
    _graph, _end, expected = resume_script.graph_of(script.log)
    workers = [
        yard.worker(script.port, "--timeout", "300", command=sample_tasks.PERSISTENT) for _ in range(WORKERS)
    ]
    before = {}  # vertices that are finished and in a journal -> how often they have been run
    for _ in range(KILLS):
        more = int(chance.uniform(0, 0.35) * (expected - len(before)))
        enough = script.executions().total() + more
        script.start()
        until(lambda: script.executions().total() >= enough or script.process.poll() is not None)  # noqa: B023
        assert script.process.poll() is None, yard.place("script.log").read_text()
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
    assert list(yard.workspace.iterdir()) == []
    assert [path.name for path in yard.place("tmp").iterdir() if path.name.startswith("vine")] == []


def test_what_was_lost_together_with_the_manager_is_made_again(yard, script):
    workers = [script.worker() for _ in range(2)]
    script.start()
    until(lambda: len(script.finished()) >= 50)
    workers[0].kill()
    script.kill()
    script.start()
    total, executed = script.finish()
    assert total == resume_script.graph_of(script.log)[2]
    assert executed < total


def test_what_own_workers_have_left_in_their_workspace_is_found(yard, script):
    script.start(workspace=yard.place("kept"))
    until(lambda: len(script.finished()) >= 50)
    family = psutil.Process(script.process.pid).children(recursive=True)
    script.kill()
    until(lambda: not any(map(alive, family)), "its workers to notice")
    script.start(workspace=yard.place("kept"))
    total, executed = script.finish()
    assert total == resume_script.graph_of(script.log)[2]
    assert executed < total


def test_what_workers_hold_goes_when_the_next_manager_does_not_want_it(yard, script):
    script.worker()
    script.start()
    until(lambda: script.executions().total() >= 30)
    script.kill()
    left = lambda: [name for path in paths_in(yard.workspace, "*/estate-*") for name in only_files(path)]  # noqa: E731
    until(left, "the worker to keep what it has")
    with yard.manager(port=script.port) as m:
        m.wait_for_workers(1, 60)
        until(lambda: not left(), "the worker to let it go")
        assert m._engine.query(lambda mind: mind.tables.files) == {}


def test_workers_of_a_manager_that_asks_for_nothing_keep_nothing(yard, script):
    worker = script.worker()
    script.start("no")
    until(lambda: script.executions().total() >= 30)
    script.kill()
    worker.says("the manager is gone")
    until(lambda: only_files(yard.workspace) == [])
