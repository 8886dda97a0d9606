"""A file of rules and a program of Work Queue in a real HTCondor pool, killed in the middle and started again."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cluster import debian_container
from tests.cluster.batch_pools import CODE, USER
from tests.cluster.condor_pool import pool
from tests.cluster.square_job import LONG_S
from tests.harness import hera_rules
from tests.harness.processes import wait_until

# What the engine needs, of Debian's own Python.
PACKAGES = ("python3-cloudpickle", "python3-msgspec", "python3-psutil")
OPTIONS = r"request_memory = 300 M \n request_cpus = 1"

PROGRAM = """
import os
import work_queue as wq

queue = wq.WorkQueue(port=-1)
workers = wq.Factory("condor", manager_host_port=f"127.0.0.1:{queue.port}", factory_name="doubles")
workers.min_workers, workers.max_workers, workers.factory_period = 0, 4, 1
workers.cores, workers.memory, workers.disk = 1, 300, 300
with workers:
    for n in range(40):
        if not os.path.exists(f"double.{n}"):
            task = wq.Task("id -un >&2; ./double < in > out; sleep 0.2")
            task.specify_input_file("double", cache=True)
            task.specify_buffer(f"{n}", "in", wq.WORK_QUEUE_NOCACHE)
            task.specify_output_file(f"double.{n}", "out", cache=False)
            task.specify_tag(n)
            queue.submit(task)
    while not queue.empty():
        task = queue.wait(5)
        if task:
            print(task.tag, task.result, task.return_status, task.output.strip(), flush=True)
"""


@pytest.fixture(scope="module")
def condor(tmp_path_factory):
    """The pool, with all that a manager needs."""
    if reason := debian_container.missing():
        pytest.skip(reason)
    with pool(tmp_path_factory.mktemp("condor"), *PACKAGES) as condor:
        # pilots find the manager by the name of this machine, as those of a submit node do
        with (condor.root.path / "etc/hosts").open("a") as hosts:
            print(f"\n127.0.0.1 localhost {socket.gethostname()}", file=hosts)
        yield condor


@pytest.fixture
def folder(condor):
    """A folder of the user's, seen from outside; inside it is ``work`` in the home."""
    folder = condor.home / "work"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def give(condor):
    """Give the files in the folder to the user."""
    condor.root.run("chown", "-R", f"{USER}:{USER}", f"/home/{USER}/work")


def completed(folder):
    path = folder / "rtp.mf.vinelog"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["rule"] for line in lines]


def run_in_shell(folder: Path, targets):
    """Return the contents of the targets after the wrappers have run one after another, step by step."""
    for step in hera_rules.STEPS:
        for target in targets:
            if f".{step}." in target:
                subprocess.run([f"./wrapper_{target.removesuffix('.out')}.sh"], cwd=folder, check=True)
    return {target: (folder / target).read_text() for target in targets}


def test_rules_of_hera_continue_in_pool(condor, folder, tmp_path):
    """Two hundred rules in pilots with the memory of BATCH_OPTIONS; the second run does only the rest."""
    expected = run_in_shell(tmp_path, hera_rules.write(tmp_path, 40, OPTIONS, shared=False))
    targets = hera_rules.write(folder, 40, OPTIONS, shared=False)
    give(condor)
    command = (
        "vine_make",
        "-T",
        "condor",
        "-J",
        "4",
        "-B",
        "request_disk = 300M",
        f"/home/{USER}/work/rtp.mf",
    )
    with condor.start(*command) as running:
        wait_until(
            lambda: len(completed(folder)) >= 20 or running.process.poll() is not None, "some rules", LONG_S
        )
        [pilot, *_] = condor.queue()
        assert (pilot["RequestMemory"], pilot["RequestCpus"]) == (300, 1)
        running.kill()
    before = completed(folder)
    assert 20 <= len(before) < 200, running.log
    first = {job["ClusterId"] for job in condor.queue()}
    stamps = {name: (folder / name).stat().st_mtime_ns for name in before}
    with condor.start(*command) as running:
        assert running.process.wait(LONG_S) == 0, running.log
        assert f"{200 - len(before)} of 200 rules to run" in running.log
    assert sorted(completed(folder)) == sorted(targets)
    assert {target: (folder / target).read_text() for target in targets} == expected
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == stamps
    wait_until(
        lambda: condor.queue() == [], f"the pilots of both runs to be gone, {first} among them", LONG_S
    )


def ended_tasks(running):
    """Return the tags of the tasks that have succeeded as the user's."""
    lines = [line.split() for line in running.log.splitlines()]
    return [line[0] for line in lines if line[1:] == ["0", "0", USER]]


def test_program_of_work_queue_continues_in_pool(condor, folder):
    """Outputs are whole where they are, so a program that looks for them does only the rest."""
    (folder / "program.py").write_text(PROGRAM)
    (folder / "double").write_text("#!/bin/sh\nread n; echo $((n + n))\n")
    (folder / "double").chmod(0o755)
    give(condor)
    command = ("sh", "-c", f"cd ~/work && PYTHONPATH={CODE} exec vine_compat program.py")
    with condor.start(*command) as running:
        wait_until(
            lambda: len(ended_tasks(running)) >= 10 or running.process.poll() is not None,
            "some tasks",
            LONG_S,
        )
        running.kill()
    there = {path.name for path in folder.glob("double.*")}
    assert 10 <= len(there) < 40, running.log
    with condor.start(*command) as running:
        assert running.process.wait(LONG_S) == 0, running.log
    assert sorted(ended_tasks(running)) == sorted(str(n) for n in range(40) if f"double.{n}" not in there)
    assert [(folder / f"double.{n}").read_text() for n in range(40)] == [f"{n + n}\n" for n in range(40)]
    wait_until(lambda: condor.queue() == [], "the pilots to be gone", LONG_S)
