"""Vine workers on the nodes of Dask clusters that are there already."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys

import dask
import psutil
import pytest

pytest.importorskip("distributed")

from daskvine import DaskVine
from tests.cluster import dask_clusters, square_job
from tests.cluster.dask_clusters import MEMORY_MB, pilots
from tests.cluster.square_job import LONG_S
from tests.harness.processes import is_alive, start_local_cluster, wait_until, worker_summaries
from vinecore import Factory, PythonTask, Task
from vinecore.factory.batch_system import BatchError

ON_LOCAL, ON_JOBS = (pytest.mark.parametrize("cluster", [kind], indirect=True) for kind in ("local", "jobs"))

# what Dask's own processes and sockets leave to the garbage collector
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module", params=["local", "jobs"])
def cluster(request, tmp_path_factory):
    """A Dask cluster: two workers on one node, or two jobs with a node each."""
    if request.param == "jobs":
        answer = signal.getsignal(signal.SIGINT)
        pytest.importorskip("dask_jobqueue")
        signal.signal(signal.SIGINT, answer)  # on import it takes interrupts for itself
    folder = tmp_path_factory.mktemp("dask")
    config = {"temporary-directory": str(folder)}
    if request.param == "jobs":  # which have no nanny left that starts another worker
        config["distributed.deploy.lost-worker-timeout"] = "500ms"
    with dask.config.set(config):
        cluster = dask_clusters.local() if request.param == "local" else dask_clusters.jobs(folder)
        try:
            yield cluster
        finally:
            cluster.close()


@pytest.fixture
def local_cluster(tmp_path, monkeypatch):
    with start_local_cluster(tmp_path, monkeypatch) as local_cluster:
        yield local_cluster


@pytest.fixture
def start(cluster):
    """Start factories; when the test ends nothing of them is left, and the Dask cluster works."""
    started = []

    def start(m, **options):
        factory = Factory(
            "dask", client=cluster.client, manager=m, **{"factory_period": 0.5, **options}
        ).start()
        started.append(factory)
        return factory

    yield start
    there = [
        process for factory in started for pilot in pilots(factory) for process in (pilot, *children(pilot))
    ]
    for factory in started:
        factory.stop()
        assert pilots(factory) == []
    wait_until(lambda: not any(map(is_alive, there)), "the end of all that vine workers have started")
    assert cluster.client.submit(sum, [1, 2], pure=False).result(LONG_S) == 3


def children(process):
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def test_each_node_has_one_equal_worker(cluster, start, local_cluster, caplog):
    """There is one vine worker on each node with what its dask workers have."""
    m = local_cluster.start_manager()
    secret = local_cluster.secret.read_text().strip()
    with caplog.at_level(logging.DEBUG):
        factory = start(m, disk=500)
        m.wait_for_workers(cluster.nodes, LONG_S)
        wait_until(lambda: len(pilots(factory)) == cluster.nodes, "the vine workers")
    assert [(w["total"]["cores"], w["total"]["memory"], w["total"]["disk"]) for w in worker_summaries(m)] == [
        (cluster.cores, cluster.cores * MEMORY_MB, 500)
    ] * cluster.nodes
    m.submit(PythonTask(lambda: __import__("sys").executable))
    assert m.wait(LONG_S).output == sys.executable
    shown = [word for process in psutil.process_iter(["cmdline"]) for word in process.info["cmdline"] or ()]
    assert "a defect" not in caplog.text
    assert factory._id in cluster.logs
    assert secret not in "".join([*shown, cluster.logs, caplog.text])
    for pilot in pilots(factory):
        assert secret not in str(pilot.environ())


def test_calls_survive_kill_of_half(cluster, start, local_cluster):
    """Calls do not notice that half of the cluster is killed in the middle."""
    m = local_cluster.start_manager()
    factory = start(m)
    results = square_job.begin(m, 0.005)
    m.wait_for_workers(cluster.nodes, LONG_S)
    known = {worker["id"] for worker in worker_summaries(m)}
    before = cluster.lose_half(factory)
    wait_until(lambda: not is_alive(before[0]), "the end of the vine worker whose Dask worker was killed")
    square_job.finish(m, results)
    wait_until(
        lambda: m.workers_connected == cluster.nodes and {w["id"] for w in worker_summaries(m)} - known,
        "another vine worker",
        LONG_S,
    )


def test_demo_survives_kill_of_half(cluster, start, local_cluster, tmp_path_factory):
    """The queries of the demo do not notice it either."""
    pytest.importorskip("coffea", reason="the demo needs the HEP stack (coffea with dask-awkward, hist)")
    from daskvine.demo.nanoaod import write_dataset
    from daskvine.demo.queries import QUERIES, open_events
    from daskvine.demo.reference import compute_reference, same
    from daskvine.demo.runner import run_queries

    dataset = write_dataset(tmp_path_factory.mktemp("nanoaod"), files=2, events=1000, seed=7)
    references = compute_reference(dataset)
    m = local_cluster.start_manager(DaskVine)
    factory = start(m)
    m.wait_for_workers(cluster.nodes, LONG_S)
    events = open_events(dataset, steps_per_file=2)
    results = run_queries(m.get, events, task_mode="function-calls", progress_disable=True)
    done = [next(results) for _ in range(3)]
    cluster.lose_half(factory)
    done += results
    assert [result.query.name for result in done] == list(QUERIES)
    assert all(same(result.histograms, references[result.query.name]) for result in done)


@ON_JOBS
def test_manager_scales_over_present_nodes(start, cluster, local_cluster):
    """A manager scales over the nodes that are there."""
    m = local_cluster.start_manager()
    factory = start(m, min_workers=0, max_workers=5)
    assert not m.workers_connected
    m.submit(Task("echo fine"))
    assert m.wait(LONG_S).output == "fine\n"
    m.scale(3)
    m.wait_for_workers(cluster.nodes, LONG_S)
    before = pilots(factory)
    assert len(before) == cluster.nodes
    m.scale(1)
    wait_until(lambda: len(pilots(factory)) == 1, "those that are too many to go", LONG_S)
    m.adapt(1, 5)
    os.kill(pilots(factory)[0].pid, signal.SIGKILL)
    wait_until(
        lambda: pilots(factory) and not set(pilots(factory)) & set(before), "another vine worker", LONG_S
    )
    m.submit(Task("echo fine"))
    assert m.wait(LONG_S).output == "fine\n"


@ON_JOBS
def test_leaving_client_ends_its_workers(cluster, local_cluster, monkeypatch, caplog):
    """A client that leaves ends its vine workers."""
    from distributed import Client

    monkeypatch.setattr("daskvine.dask_cluster.HEARTBEAT_TIMEOUT_S", 4.0)
    m = local_cluster.start_manager()
    with Client(cluster.client.scheduler.address, set_as_default=False) as client:
        factory = Factory("dask", client=client, manager=m, factory_period=0.5).start()
        m.wait_for_workers(cluster.nodes, LONG_S)
        there = pilots(factory)
    try:
        wait_until(lambda: not any(map(is_alive, there)), "the end of the vine workers")
        wait_until(lambda: "the Dask client is closed" in caplog.text, "a word about the client")
    finally:
        factory.stop()
    assert m.workers_connected == 0


@ON_LOCAL
def test_failing_start_is_reported_and_delayed(cluster, start, local_cluster, caplog):
    """What cannot start is told with the reason and not started as fast as possible."""
    start(local_cluster.start_manager(), wrapper="sh -c 'echo no licence >&2; exit 3'")
    wait_until(
        lambda: all(f"exit code 3: no licence; others in {pause} s" in caplog.text for pause in (0.4, 0.8)),
        "what is wrong",
        LONG_S,
    )


@ON_LOCAL
def test_command_uses_cluster_by_address(cluster, local_cluster):
    """The command uses a cluster by its address."""
    m = local_cluster.start_manager()
    log = local_cluster.path("factory.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vinecore.factory.cli", "-T", "dask", "--dask-scheduler", cluster.client.scheduler.address, "127.0.0.1", str(m.port),
             "-P", str(local_cluster.secret), "--max-workers", "1"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )  # fmt: skip
    with process:
        try:
            m.wait_for_workers(1, LONG_S)
            m.submit(Task("echo fine"))
            assert m.wait(LONG_S).output == "fine\n"
        finally:
            process.send_signal(signal.SIGTERM)
    assert (process.returncode, "removing all workers" in log.read_text()) == (0, True), log.read_text()
    wait_until(lambda: m.workers_connected == 0, "the vine worker to go")


def test_what_makes_no_sense_is_refused(local_cluster, monkeypatch):
    from distributed import Client

    m = local_cluster.start_manager()
    with pytest.raises(ValueError, match="python_env is not for 'dask'"):
        Factory("dask", manager=m, python_env="env.tar")
    with pytest.raises(ValueError, match="for 'dask', not for 'local'"):
        Factory("local", manager=m, dask_scheduler="tcp://127.0.0.1:1")

    async def with_its_client():
        Factory(
            "dask", manager=m, client=Client("tcp://127.0.0.1:1", asynchronous=True, set_as_default=False)
        )

    with pytest.raises(ValueError, match="client is asynchronous"):
        asyncio.run(with_its_client())
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    with (
        dask.config.set({"scheduler-address": None}),
        pytest.raises(BatchError, match="no Dask cluster is given"),
    ):
        Factory("dask", manager=m).start()
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "500ms"}),
        pytest.raises(BatchError, match="no Dask scheduler at tcp"),
    ):
        Factory("dask", manager=m, dask_scheduler="tcp://127.0.0.1:1").start()


def test_missing_distributed_names_package():
    """Without distributed the error says what to install."""
    program = "import sys; sys.modules['distributed'] = None; from vinecore.factory.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", program, "-T", "dask", "--dask-scheduler", "tcp://localhost:8786", "localhost", "9123"],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert ended.returncode == 1
    assert "pip install 'daskvine[distributed]'" in ended.stderr
