"""The command, as a process of its own that asks a manager over the network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
from click.testing import CliRunner

from tests.harness.processes import PATIENCE_S, is_alive, wait_until
from vinecore import Factory, Task
from vinecore.discovery.status_query import query_status
from vinecore.factory.cli import ExitSignals, command, run
from vinecore.factory.manager_clients import RemoteManager
from vinecore.protocol import VERSION
from vinecore.protocol.handshake import HandshakeRejected


@pytest.fixture
def factory(local_cluster):
    """Start the command; it is ended in the end."""
    started = []

    def start(*options):
        log = local_cluster.path(f"factory-{len(started)}.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "vinecore.factory.cli", *options], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )  # fmt: skip
        started.append(process)
        process.log = log
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(PATIENCE_S)


def options_for(m, local_cluster, *more):
    return (
        "-T",
        "local",
        "127.0.0.1",
        str(m.port),
        "-P",
        str(local_cluster.secret),
        "--cores",
        "1",
        "--factory-period",
        "0.1",
        *more,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_follow_work_and_end(local_cluster, factory, number):
    """Workers come when there is work and all are gone when it is ended."""
    m = local_cluster.start_manager()
    process = factory(*options_for(m, local_cluster, "-w", "0", "-W", "2", "--env", "COLOUR=blue"))
    for _ in range(2):
        m.submit(Task('sleep 0.2; echo "$COLOUR"'))
    assert [m.wait(PATIENCE_S).output for _ in range(2)] == ["blue\n"] * 2
    wait_until(lambda: m.workers_connected, "a worker that is still there")
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == 0
    wait_until(lambda: not any(map(is_alive, family)), "the end of all workers")
    assert "removing all workers" in process.log.read_text()


def test_taskvine_options_have_their_effect(local_cluster, factory):
    """The log goes to a file, and options of workers reach them."""
    m = local_cluster.start_manager()
    log = local_cluster.path("factory.debug")
    words = ("-d", "all", "-o", str(log), "-O", "10", "--transfer-port", "20000:30000")
    more = ("--single-shot", "--debug-workers", "--task-wrapper", "env WRAPPED=yes", "-F", "foremen")
    process = factory(*options_for(m, local_cluster, "-w", "1", "-W", "1", *words, *more))
    m.submit(Task("echo $WRAPPED"))
    assert m.wait(PATIENCE_S).output == "yes\n"
    [worker] = psutil.Process(process.pid).children()
    line = " ".join(worker.cmdline())
    assert "--transfer-port 20000:30000 --task-wrapper env WRAPPED=yes --single-shot --debug" in line
    assert "vine_factory: submitted 1" in log.read_text()
    assert "--foremen-name has no effect: there are no foremen" in log.read_text()
    assert process.log.read_text() == ""


def test_absent_manager_ends_factory(local_cluster, factory):
    """It ends when no manager answers for long enough."""
    m = local_cluster.start_manager()
    m.submit(Task("sleep 1000"))  # so that nothing ends before the manager, however slow it starts
    process = factory(*options_for(m, local_cluster, "-w", "1", "-W", "1", "--factory-timeout", "3"))
    m.wait_for_workers(1, PATIENCE_S)
    m.close()
    assert process.wait(PATIENCE_S) == 0
    assert "no manager has answered for 3 s" in process.log.read_text()


def test_queue_statistics_need_the_secret(local_cluster):
    """A manager says what there is to do to who knows the secret."""
    m = local_cluster.start_manager(name="my-analysis")
    for _ in range(3):
        m.submit(Task("true"))
    m.empty()
    said = wait_until(
        lambda: (
            (s := query_status("127.0.0.1", m.port, local_cluster.secret.read_bytes().strip()))
            and s["waiting"] == 3
            and s
        )
    )
    assert (said["name"], said["protocol"], said["running"], said["workers"], said["pilots"]) == (
        "my-analysis",
        VERSION,
        0,
        0,
        [],
    )
    local_cluster.start_worker(m, "--feature", "pilot:mine/7", "--feature", "pilot:other/8")
    m.wait_for_workers(1, PATIENCE_S)
    source = RemoteManager("127.0.0.1", m.port, local_cluster.secret)
    demand = source.ask(None, "mine")
    assert (demand.pilots, demand.workers) == (("7",), 1)
    with pytest.raises(HandshakeRejected, match="wrong secret"):
        query_status("127.0.0.1", m.port, b"something else")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["localhost", "9123"], "Missing option '-T'"),
        (["-T", "pbs", "localhost", "9123"], "run vine_worker HOST PORT in a job of your own"),
        (
            ["-T", "cloud", "localhost", "9123"],
            "there is no such batch system; there are local, condor, slurm, dask",
        ),
        (["-T", "local"], "give either the manager's address"),
        (["-T", "local", "-M", "mine", "localhost", "9123"], "or its name, -M NAME"),
        (["-T", "local", "-M", "("], "neither a name nor a regular expression"),
        (["-T", "local", "-M", "x", "--catalog", "a b"], "is not a catalog server"),
        (["-T", "local", "mine"], "or the manager's name with -M mine"),
        (["-T", "local", "localhost", "port"], "is not an address"),
        (["-T", "local", "a", "1", "2"], "is not an address"),
        (["-T", "local", "localhost", "9123", "-w", "3", "-W", "2"], "min_workers=3, max_workers=2"),
        (["-T", "local", "localhost", "9123", "--env", "A"], "give VAR=VALUE"),
        (["-T", "local", "localhost", "9123", "--cores", "0"], "cores=0"),
    ],
)
def test_invalid_option_is_refused_with_remedy(words, said):
    """What cannot be understood is refused with what to do."""
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(("batch", "missing"), [("condor", "condor_submit"), ("slurm", "sbatch")])
def test_missing_batch_commands_are_reported(monkeypatch, tmp_path, batch, missing):
    """Without the commands of the batch system the error says so."""
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(command, ["-T", batch, "localhost", "9123"])
    assert result.exit_code == 1
    assert f"there is no command {missing} here" in result.output


@pytest.mark.parametrize(
    "more", [(), ("--wrapper", "sh -c '\"$@\"; true' wrapper")], ids=["plain", "wrapped"]
)
def test_killed_factory_ends_local_workers(local_cluster, factory, more):
    """When it is killed its workers of this machine leave."""
    m = local_cluster.start_manager()
    process = factory(*options_for(m, local_cluster, "-w", "2", "-W", "2", *more))
    m.wait_for_workers(2, PATIENCE_S)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait(PATIENCE_S)
    wait_until(lambda: m.workers_connected == 0, "the workers to leave")
    wait_until(lambda: not any(map(is_alive, family)), "the end of all processes")


def test_factory_ends_with_its_parent(local_cluster):
    """It ends with the process that has started it."""
    m = local_cluster.start_manager()
    words = [
        sys.executable,
        "-m",
        "vinecore.factory.cli",
        *options_for(m, local_cluster, "-w", "1", "-W", "1", "--parent-death"),
    ]
    program = (
        "import subprocess, sys, time\nprint(subprocess.Popen(sys.argv[1:]).pid, flush=True)\ntime.sleep(600)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    parent = subprocess.Popen(
        [sys.executable, "-c", program, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
    )
    pid = int(parent.stdout.readline())
    m.wait_for_workers(1, PATIENCE_S)
    parent.kill()
    parent.communicate(timeout=PATIENCE_S)
    wait_until(lambda: not is_alive(pid), "the factory to end")
    wait_until(lambda: m.workers_connected == 0, "the worker to leave")


def test_idle_factory_ends_after_timeout(local_cluster, factory):
    """It ends when there was nothing to do for long enough."""
    m = local_cluster.start_manager()
    process = factory(*options_for(m, local_cluster, "-w", "0", "-W", "1", "--factory-timeout", "1"))
    assert process.wait(PATIENCE_S) == 0
    assert "there was nothing to do for 1 s" in process.log.read_text()
    assert m.workers_connected == 0


class ToldInside(threading.Event):
    """An event in whose own lock the signal comes that says that it has happened."""

    def wait(self, timeout=None):
        with self._cond:
            signal.raise_signal(signal.SIGTERM)
        return super().wait(timeout)


def test_signal_ends_factory_at_any_moment(local_cluster):
    """A signal ends it wherever it is at that moment."""
    m = local_cluster.start_manager()
    factory = Factory("local", manager=m, min_workers=1, cores=1)
    factory.ended = ToldInside()
    with ExitSignals() as exit_signals:
        run(factory, exit_signals)
    assert not factory.processes


SIGNALLED_AT = """
import os, sys
event, text, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
del sys.argv[1:4]
from vinecore.factory.cli import main

def signal_once(name, arguments):
    global event
    if name == event and text in str(arguments):
        event = None
        os.kill(os.getpid(), number)

sys.addaudithook(signal_once)
main()
"""
"""Runs the command, which gets a signal when something happens in it for the first time."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(
    ("event", "text"),
    [("open", "settings.json"), ("tempfile.mkdtemp", "vine-local-"), ("subprocess.Popen", "vineworker")],
)
def test_a_signal_during_the_start_leaves_nothing(local_cluster, tmp_path, event, text, number):
    """It comes when the settings are read, when the folder is made, and when the worker is started."""
    m = local_cluster.start_manager()
    settings, folder = tmp_path / "settings.json", tmp_path / "temporary"
    settings.write_text('{"min-workers": 1, "max-workers": 1}')
    folder.mkdir()
    words = [sys.executable, "-c", SIGNALLED_AT, event, text, str(int(number))]
    done = subprocess.run(
        [*words, *options_for(m, local_cluster, "-C", str(settings))],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert f"got {number.name}" in done.stderr
    assert not [*folder.iterdir()]
    assert not [p.pid for p in psutil.process_iter() if uses_folder(p, folder)]


def uses_folder(process, folder):
    """Tell whether a process has a folder for temporary files."""
    try:
        return process.environ().get("TMPDIR") == str(folder)
    except (psutil.Error, OSError):
        return False
