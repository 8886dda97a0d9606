"""Pilots in a real HTCondor pool, submitted by an ordinary user who has no file in common with the manager."""

from __future__ import annotations

import psutil
import pytest

from daskvine import DaskVine
from tests.cluster import debian_container, square_job
from tests.cluster.condor_pool import CORES, pool
from tests.cluster.square_job import LONG_S
from tests.harness.http_servers import catalog_server
from tests.harness.processes import start_local_cluster, wait_until, worker_summaries
from vinecore import Task


@pytest.fixture(scope="module")
def condor(tmp_path_factory):
    """The pool."""
    if reason := debian_container.missing():
        pytest.skip(reason)
    with pool(tmp_path_factory.mktemp("condor")) as condor:
        yield condor


@pytest.fixture
def local_cluster(tmp_path, monkeypatch):
    with start_local_cluster(tmp_path, monkeypatch) as local_cluster:
        yield local_cluster


@pytest.fixture
def factory(condor, local_cluster):
    """Start ``vine_factory`` for a manager, as the user."""
    secret = condor.give(local_cluster.secret, "secret")

    def start(m, *options):
        return condor.factory("-T", "condor", "127.0.0.1", str(m.port), "-P", secret, "--factory-period", "1", "--memory", "500", "--disk", "500",
                              "-S", "/home/scientist/scratch", *options)  # fmt: skip

    return start


def test_calls_survive_removal_of_half(condor, factory, local_cluster, environment):
    """Calls run on pilots half of which are removed in the middle."""
    m = local_cluster.start_manager()
    python = condor.give(environment, "python.tar")
    with factory(m, "-w", "0", "-W", str(CORES), "--python-env", python) as running:
        results = square_job.begin(m, 0.05)
        wait_until(lambda: m.workers_connected == CORES, "all pilots to be connected", LONG_S)
        half = condor.pilots()[: CORES // 2]
        before = {worker["id"] for worker in worker_summaries(m)}
        condor.run("condor_rm", *half)
        square_job.finish(m, results)
        assert {worker["id"] for worker in worker_summaries(m)} - before, (
            "somebody has come for those who were removed"
        )
        wait_until(
            lambda: "via condor_rm (by user scientist)" in running.log, "a word about the removed pilots"
        )
        assert running.end() == 0
        assert condor.queue() == []
        assert not list((condor.home / "scratch").iterdir())
    wait_until(lambda: m.workers_connected == 0, "the workers to be gone")


def test_demo_runs_on_bare_pilots(condor, factory, local_cluster, queries):
    """The queries of the demo come out the same on pilots that have only a python."""
    m = local_cluster.start_manager(DaskVine)
    with factory(m, "-w", "2", "-W", "2", "--cores", "2", "--memory", "3000", "--disk", "6000") as running:
        m.wait_for_workers(2, LONG_S)
        assert queries.differing(m) == []
        assert running.end() == 0
    assert condor.queue() == []


def test_held_pilots_are_reported_and_replaced(condor, factory, local_cluster):
    """Pilots that are held are told with the reason and replaced."""
    m = local_cluster.start_manager()
    with factory(
        m,
        "-w",
        "1",
        "-W",
        "1",
        "--env",
        "COLOUR=blue",
        "--condor-requirements",
        "Cpus >= 1",
        "--condor-requirements",
        'OpSys == "LINUX"',
    ) as running:
        m.wait_for_workers(1, LONG_S)
        m.submit(Task('id -un; echo "$COLOUR"'))
        assert m.wait(LONG_S).output == "scientist\nblue\n"
        [first] = condor.pilots()
        condor.run("condor_hold", "-reason", "the machine is needed", first)
        wait_until(lambda: "1 pilot is held: the machine is needed" in running.log, "the reason", LONG_S)
        wait_until(lambda: condor.pilots() not in ([], [first]), "another pilot", LONG_S)
        assert first not in condor.pilots(5)
        assert running.end() == 0
    assert condor.queue() == []


@pytest.mark.parametrize(("spool", "words"), [((), ": no licence"), (("--condor-spool",), "")])
def test_failing_pilots_are_reported_and_delayed(condor, factory, local_cluster, spool, words):
    """Pilots that cannot start are told and not submitted as fast as possible."""
    m = local_cluster.start_manager()
    with factory(
        m, "-w", "1", "-W", "1", "--wrapper", "sh -c 'echo no licence >&2; exit 3'", *spool
    ) as running:
        said = f"1 pilot is gone before connecting: exit code 3{words}; others in"
        wait_until(
            lambda: f"{said} 0.4 s" in running.log and f"{said} 0.8 s" in running.log, "what is wrong", LONG_S
        )
    assert condor.queue() == []


def test_pilots_follow_managers_by_catalog(condor, local_cluster):
    """Pilots find their managers by name at a catalog and go on with another one."""
    secret = condor.give(local_cluster.secret, "secret")
    with catalog_server(local_cluster.folder) as port:
        catalog = f"127.0.0.1:{port}"
        first, second = (
            local_cluster.start_manager(name=f"run-{n}", registry=False, catalog=catalog) for n in (1, 2)
        )
        for m in (first, second):
            m.submit(Task("id -un"))
        words = ("-T", "condor", "-M", "run-.", "--catalog", catalog, "-P", secret, "--factory-period", "1", "--memory", "500", "--disk", "500",
                 "-w", "0", "-W", "2", "-S", "/home/scientist/scratch")  # fmt: skip
        with condor.factory(*words) as running:
            assert [m.wait(LONG_S).output for m in (first, second)] == ["scientist\n"] * 2
            assert first.workers_connected == second.workers_connected == 1
            pilots = condor.pilots()
            first.close()
            second.wait_for_workers(2, LONG_S)
            assert condor.pilots() == pilots
            assert running.end() == 0
    assert condor.queue() == []


def test_pilots_of_killed_factory_are_removed(condor, factory, local_cluster):
    """What a killed factory has left is taken out by one of the same name."""
    m = local_cluster.start_manager()
    options = ("-w", "1", "-W", "1", "--factory-name", "night", "--feature", "own", "--wrapper-input", "/etc/hostname",
               "--wrapper", "sh -c 'test -e hostname && exec \"$@\"' wrapper")  # fmt: skip
    with factory(m, *options) as running:
        m.wait_for_workers(1, LONG_S)
        [first] = condor.pilots()
        for inside in psutil.Process(running.process.pid).children():
            inside.kill()
        running.process.wait(60)
    assert condor.pilots() == [first]
    with factory(m, *options) as running:
        wait_until(
            lambda: condor.pilots() not in ([], [first]) and first not in condor.pilots(),
            "another pilot",
            LONG_S,
        )
        assert len(condor.pilots()) == 1
        assert running.end() == 0
    assert condor.queue() == []


@pytest.mark.parametrize(
    "options", [(), ("--spool",), ("--autosize",)], ids=lambda words: "".join(words) or "plain"
)
def test_submitted_workers_compute(condor, local_cluster, options):
    """Workers that ``vine_submit_workers`` has submitted find the manager, compute, and leave with it."""
    m = local_cluster.start_manager()
    secret = condor.give(local_cluster.secret, "secret")
    words = ("-T", "condor", "-P", secret, "--cores", "2", "--memory", "500", "--disk", "500", "--scratch-dir", "/home/scientist/submitted",
             "-E", "--single-shot", "--class-ad", 'VineTest="yes"', *options, "127.0.0.1", str(m.port))  # fmt: skip
    assert "queue 1" in condor.run("vine_submit_workers", *words, "--dry-run", "1").splitlines()
    assert condor.queue() == []
    printed = condor.run("vine_submit_workers", *words, "1")
    assert "1 job(s) submitted to cluster" in printed
    assert [job["VineTest"] for job in condor.queue()] == ["yes"]
    m.submit(Task("echo $((6 * 7)) in $_CONDOR_SLOT"))
    done = m.wait(LONG_S)
    assert done.output.startswith("42 in slot")
    [worker] = worker_summaries(m)
    assert worker["total"]["cores"] == (CORES if "--autosize" in options else 2)
    m.close()
    wait_until(lambda: not condor.queue(), "the jobs to end", LONG_S)
