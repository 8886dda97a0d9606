"""Pilots in a real Slurm, submitted by an ordinary user who has no file in common with the manager."""

from __future__ import annotations

import base64
import re

import pytest

from daskvine import DaskVine
from tests.cluster import debian_container, square_job
from tests.cluster.slurm_pool import CORES, MOST_IN_ARRAY, pool
from tests.cluster.square_job import LONG_S
from tests.harness.processes import start_local_cluster, wait_until, worker_summaries
from vinecore import Task


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The pool."""
    if reason := debian_container.missing():
        pytest.skip(reason)
    with pool(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


@pytest.fixture
def local_cluster(tmp_path, monkeypatch):
    with start_local_cluster(tmp_path, monkeypatch) as local_cluster:
        yield local_cluster


@pytest.fixture
def factory(slurm, local_cluster):
    """Start ``vine_factory`` for a manager, as the user; nothing is left of any pilot afterwards."""
    secret = slurm.give(local_cluster.secret, "secret")

    def start(m, *options):
        return slurm.factory("-T", "slurm", "127.0.0.1", str(m.port), "-P", secret, "--factory-period", "1", "--memory", "500", "--disk", "500",
                             *options)  # fmt: skip

    yield start
    assert slurm.queue() == []
    assert [path.name for path in (slurm.root.path / "tmp").iterdir() if "vine" in path.name] == []


def test_calls_survive_cancellation_of_half(slurm, factory, local_cluster, environment):
    """Calls run on pilots half of which are cancelled in the middle."""
    m = local_cluster.start_manager()
    python = slurm.give(environment, "python.tar")
    with factory(m, "-w", "0", "-W", str(CORES), "--python-env", python) as running:
        results = square_job.begin(m, 0.03)
        wait_until(lambda: m.workers_connected == CORES, "all pilots to be connected", LONG_S)
        secret = local_cluster.secret.read_text().strip()
        assert secret not in slurm.root.run("ps", "axeww")
        forms = ("-e", secret, "-e", base64.b64encode(local_cluster.secret.read_bytes()).decode()[:40])
        places = ("/home", "/run", "/tmp", "/var")
        assert slurm.root.run("grep", "-rlsF", *forms, *places, user="daemon", check=False) == "", (
            "others can read it"
        )
        assert slurm.root.run("grep", "-rlsF", *forms, "/tmp", "/var/lib/slurm").split(), (
            "that is how it would be found"
        )
        half = slurm.queue("RUNNING")[: CORES // 2]
        before = {worker["id"] for worker in worker_summaries(m)}
        slurm.run("scancel", *half)
        square_job.finish(m, results)
        assert {worker["id"] for worker in worker_summaries(m)} - before, (
            "somebody has come for those who were removed"
        )
        wait_until(lambda: ": it was cancelled (scancel)" in running.log, "a word about the cancelled pilots")
        assert running.end() == 0
    wait_until(lambda: m.workers_connected == 0, "the workers to be gone")
    assert {int(name.partition("_")[2]) for name in slurm.queue("all")} <= set(range(MOST_IN_ARRAY))


def test_demo_runs_on_bare_pilots(factory, local_cluster, queries):
    """The queries of the demo come out the same on pilots that have only a python."""
    m = local_cluster.start_manager(DaskVine)
    with factory(m, "-w", "2", "-W", "2", "--cores", "2", "--memory", "3000", "--disk", "6000") as running:
        m.wait_for_workers(2, LONG_S)
        assert queries.differing(m) == []
        assert running.end() == 0


def test_held_pilots_are_reported_and_replaced(slurm, factory, local_cluster):
    """Pilots that are held are told with the reason and replaced."""
    m = local_cluster.start_manager()
    with factory(
        m,
        "-w",
        "5",
        "-W",
        "5",
        "--env",
        "COLOUR=blue",
        "--batch-options",
        "--comment='for the thesis' --time=60",
    ) as running:
        m.wait_for_workers(CORES, LONG_S)
        m.submit(Task('id -un; echo "$COLOUR"'))
        assert m.wait(LONG_S).output == "scientist\nblue\n"
        assert re.search(r"--wall-time 3[45]\d\d ", slurm.root.run("ps", "axww")), (
            "workers know when their jobs end"
        )
        [waiting] = slurm.queue("PENDING")
        slurm.run("scontrol", "hold", waiting)
        wait_until(
            lambda: "1 pilot is held: its owner holds it (scontrol hold): JobHeldUser; others in" in running.log,
            "the reason", LONG_S,
        )  # fmt: skip
        wait_until(lambda: slurm.queue("PENDING") not in ([], [waiting]), "another pilot", LONG_S)
        [running_one, *_] = slurm.queue("RUNNING")
        slurm.run("scontrol", "requeuehold", running_one)
        wait_until(
            lambda: running_one not in slurm.queue(),
            "the pilot that was held while it ran to be taken out",
            LONG_S,
        )
        m.wait_for_workers(CORES, LONG_S)
        assert running.end() == 0


def test_preempted_pilots_are_replaced_with_room(slurm, factory, local_cluster):
    """Pilots that others take the place of are replaced when there is room."""
    m = local_cluster.start_manager()
    with factory(m, "-w", str(CORES), "-W", str(CORES)) as running:
        m.wait_for_workers(CORES, LONG_S)
        urgent = slurm.run(
            "sbatch",
            "--parsable",
            "--partition=urgent",
            "--mem=100",
            "--output=/dev/null",
            "--wrap=sleep 1000",
        )
        wait_until(
            lambda: ": others were preferred; others in" in running.log,
            "a word about it",
            LONG_S,
        )
        wait_until(
            lambda: m.workers_connected == CORES - 1 and slurm.queue("PENDING"), "another one to wait", LONG_S
        )
        slurm.run("scancel", urgent.strip())
        m.wait_for_workers(CORES, LONG_S)
        assert running.end() == 0


def test_failing_pilots_are_reported_and_delayed(slurm, factory, local_cluster):
    """Pilots that cannot start are told and not submitted as fast as possible."""
    slurm.run("sh", "-c", "mkdir /tmp/vine-pilot-killed && touch /tmp/vine-pilot-killed/alive")
    m = local_cluster.start_manager()
    with factory(m, "-w", "1", "-W", "1", "--wrapper", "sh -c 'echo no licence >&2; exit 3'") as running:
        said = "1 pilot is gone before connecting: exit code 3: no licence; others in"
        wait_until(
            lambda: f"{said} 0.4 s" in running.log and f"{said} 0.8 s" in running.log, "what is wrong", LONG_S
        )
        assert running.end() == 0


def test_refusal_of_slurm_is_quoted(factory, local_cluster):
    """What slurm refuses is told in its own words."""
    m = local_cluster.start_manager()
    with factory(m, "-w", "1", "-W", "1", "--batch-options=--partition=quick") as running:
        wait_until(
            lambda: (
                "nothing could be submitted: sbatch: " in running.log
                and "invalid partition specified: quick" in running.log
            ),
            "its words",
        )
        assert running.end() == 0
