"""The command ``vine_worker``: its arguments, and its life from start to end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import vineworker
from vineworker.cli import parse_address
from vineworker.options import parse_amount_mb, parse_cores, parse_gpus

from tests.harness import sample_tasks
from tests.harness.processes import (
    HURRY_S,
    PATIENCE_S,
    find_python,
    free_port,
    is_alive,
    wait_for_task,
    wait_until,
    worker_summaries,
)
from vinecore import Factory, Manager, PythonTask, Task
from vinecore.protocol.amounts import parse_megabytes
from vinecore.protocol.temporary_folders import OWNER_FILE

ROOT = Path(__file__).parents[2]
ALONE = os.pathsep.join([str(ROOT), str(ROOT / "worker")])


def vine_worker(*arguments, **env):
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "vineworker", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": ALONE, **env},
        check=False,
        stdin=subprocess.DEVNULL,
    )


def on_a_leash(m, local_cluster, seconds):
    """Start a worker on a leash, and give it with the pipe that holds it."""
    log = local_cluster.path("leash.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vineworker", "127.0.0.1", str(m.port), "--password", "-", "--leash", str(seconds),
             "--workspace", str(local_cluster.workspace), "--cores", "1"],
            stdin=subprocess.PIPE, stdout=output, stderr=output, env={**os.environ, "PYTHONPATH": ALONE},
        )  # fmt: skip
    process.stdin.write(local_cluster.secret.read_bytes())
    process.stdin.flush()
    wait_until(lambda: pull(process) and m.workers_connected, "the worker to be connected")
    return process, log


def pull(process):
    process.stdin.write(b".")
    process.stdin.flush()
    return True


def test_leashed_worker_ends_with_parent(local_cluster):
    """A worker on a leash leaves when that ends."""
    m = local_cluster.start_manager()
    process, log = on_a_leash(m, local_cluster, 300)
    with process:
        m.submit(Task("echo fine; cat"))
        assert m.wait(PATIENCE_S).output == "fine\n"
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0
    assert "has let it go" in log.read_text()


def test_leashed_worker_ends_without_signal(local_cluster):
    """A worker on a leash leaves when nobody pulls it."""
    m = local_cluster.start_manager()
    process, log = on_a_leash(m, local_cluster, 3)
    with process:
        m.submit(Task("echo fine"))
        task = wait_until(
            lambda: pull(process) and m.wait(0), "the task to be done, by a worker that is pulled"
        )
        assert task.output == "fine\n"
        assert process.wait(PATIENCE_S) == 0
    assert "has not been heard for 3 s" in log.read_text()


def test_leash_pipe_delivers_announced_secret(tmp_path):
    """A leash is a pipe and a secret that is announced comes."""
    ended = vine_worker("localhost", 1, "--password", "-", "--workspace", tmp_path)
    assert (ended.returncode, "no secret came from standard input" in ended.stderr) == (2, True)
    ended = vine_worker("localhost", 1, "--leash", 5, "--workspace", tmp_path)
    assert (ended.returncode, "--leash needs a pipe" in ended.stderr) == (2, True)


def only_files(folder):
    # os.walk takes no offence at what goes meanwhile
    return [
        Path(base) / name for base, _folders, names in os.walk(folder) for name in names if name != OWNER_FILE
    ]


# ---- arguments


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (["localhost", "9123"], ("localhost", 9123)),
        (["localhost:9123"], ("localhost", 9123)),
        (["10.0.0.1:1"], ("10.0.0.1", 1)),
        (["[::1]:9123"], ("::1", 9123)),
        (["::1", "9123"], ("::1", 9123)),
    ],
)
def test_address_is_host_and_port(words, address):
    """An address is a host and a port."""
    assert parse_address(words) == address


@pytest.mark.parametrize(
    "words",
    [
        ["localhost"],
        ["localhost:"],
        [":9123"],
        ["localhost", "port"],
        ["localhost", "0"],
        ["localhost:70000"],
        ["a", "1", "b"],
    ],
)
def test_invalid_address_is_refused_with_example(local_cluster, words):
    """What is not an address is refused with an example."""
    ended = vine_worker(*words, "--password", local_cluster.secret)
    assert ended.returncode == 2
    assert "give HOST PORT or HOST:PORT, such as localhost:9123" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_missing_secret_names_place_and_remedy(local_cluster, tmp_path):
    """Without a secret the worker says where it looked and what to do."""
    ended = vine_worker("localhost", 9123)
    assert ended.returncode == 2
    assert f"no secret at {tmp_path}/config/daskvine/secret" in ended.stderr
    assert "--password FILE" in ended.stderr
    ended = vine_worker("localhost", 9123, "--password", tmp_path / "missing")
    assert (ended.returncode, f"no secret at {tmp_path}/missing" in ended.stderr) == (2, True)
    assert "Traceback" not in ended.stderr


def test_impossible_workspace_is_error(local_cluster):
    """A workspace that cannot be made is an error that says so."""
    ended = vine_worker(
        "localhost",
        9123,
        "--password",
        local_cluster.secret,
        "--workspace",
        local_cluster.secret / "below-a-file",
    )
    assert ended.returncode == 2
    assert "cannot be made" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("option", ["--cores", "--memory", "--disk", "--gpus", "--timeout"])
def test_what_is_not_a_number_is_refused(local_cluster, option):
    ended = vine_worker("localhost", 9123, "--password", local_cluster.secret, option, "many")
    assert ended.returncode == 2
    assert option in ended.stderr


def test_the_version_and_the_help_are_told():
    assert vine_worker("--version").stdout == f"vine_worker {vineworker.__version__}\n"
    text = vine_worker("--help").stdout
    for option in (
        "HOST PORT",
        "--cores",
        "--memory",
        "--disk",
        "--gpus",
        "--timeout",
        "--password",
        "--workspace",
        "--single-shot",
        "--debug",
    ):
        assert option in text


def test_the_resources_that_are_told_are_offered(local_cluster):
    m = local_cluster.start_manager()
    local_cluster.start_worker(m, "--cores", "3", "--memory", "1234", "--disk", "567", "--gpus", "2")
    m.wait_for_workers(1, PATIENCE_S)
    assert worker_summaries(m)[0]["total"] == {"cores": 3.0, "memory": 1234, "disk": 567, "gpus": 2.0}


def test_unspecified_resources_are_detected(local_cluster):
    """The resources that are not told are detected."""
    m = local_cluster.start_manager()
    local_cluster.start_worker(m, "--cores", "all", "--memory", "auto", "--disk", "-1", "--gpus", "auto")
    m.wait_for_workers(1, PATIENCE_S)
    total = worker_summaries(m)[0]["total"]
    assert total["cores"] == len(os.sched_getaffinity(0))
    assert total["memory"] > 100
    assert total["disk"] > 0


def test_environment_defaults_stay_from_tasks(local_cluster):
    """Defaults come from the environment and do not reach the tasks."""
    m = local_cluster.start_manager()
    log = local_cluster.path("log")
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "vineworker", f"127.0.0.1:{m.port}", "-P", local_cluster.secret, "-s", local_cluster.workspace, "--single-shot"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, "PYTHONPATH": ALONE, "CORES": "5", "MEMORY": "600"},
        )  # fmt: skip
    try:
        m.wait_for_workers(1, PATIENCE_S)
        assert worker_summaries(m)[0]["total"]["cores"] == 5
        assert worker_summaries(m)[0]["total"]["memory"] == 600
        task = Task("echo $CORES $MEMORY", cores=1, memory=10, disk=1)
        m.submit(task)
        assert wait_for_task(m).output == "1 10\n"
    finally:
        worker.terminate()
        assert worker.wait(PATIENCE_S) == 0


def test_files_are_kept_in_the_workspace(local_cluster):
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    assert len(list(local_cluster.workspace.glob("vine-worker-*"))) == 1
    m.submit(Task("pwd"))
    assert wait_for_task(m).output.startswith(str(local_cluster.workspace))


def test_with_debug_more_is_said(local_cluster):
    m = local_cluster.start_manager()
    quiet, loud = local_cluster.start_workers(m, 1)[0], local_cluster.start_workers(m, 1, "--debug")[0]
    loud.wait_for_log("Using selector")
    assert "Using selector" not in quiet.log


# ---- life


def test_worker_waits_for_absent_manager(local_cluster):
    """A worker waits for a manager that is not there yet."""
    port = free_port()
    worker = local_cluster.start_worker(port, "--timeout", "60")
    wait_until(lambda: len(list(local_cluster.workspace.glob("vine-worker-*"))) == 1, "the worker to be up")
    m = local_cluster.start_manager(port=port)
    m.wait_for_workers(1, PATIENCE_S)
    m.submit(Task("echo fine"))
    assert wait_for_task(m).output == "fine\n"
    assert worker.process.poll() is None


def test_worker_without_manager_ends_after_timeout(local_cluster):
    """A worker that finds no manager leaves after its timeout."""
    worker = local_cluster.start_worker(free_port(), "--timeout", "0.5")
    assert worker.wait() == 1
    assert "no manager at 127.0.0.1" in worker.log
    assert only_files(local_cluster.workspace) == []


def test_the_two_timeouts_can_be_set_apart(local_cluster):
    lost = local_cluster.start_worker(free_port(), "--idle-timeout", "1000", "--connect-timeout", "0.5")
    assert lost.wait() == 1
    m = local_cluster.start_manager()
    idle = local_cluster.start_hurried_worker(
        m, "--idle-timeout", str(HURRY_S - 50), "--connect-timeout", "1000"
    )
    local_cluster.let_time_pass()
    assert idle.wait() == 0


def test_worker_without_manager_ends_on_request(local_cluster):
    """A worker without a manager ends when its time is over or it is told to."""
    timed = local_cluster.start_worker(free_port(), "--wall-time", "0.5")
    assert timed.wait() == 0
    told = local_cluster.start_worker(free_port())
    told.wait_for_log("looking for a manager")
    told.send(signal.SIGTERM)
    assert told.wait() == 0


def test_an_idle_worker_leaves_after_its_timeout(local_cluster):
    m = local_cluster.start_manager()
    worker = local_cluster.start_hurried_worker(m, "--timeout", str(HURRY_S - 50))
    local_cluster.let_time_pass()
    assert worker.wait() == 0
    wait_until(lambda: m.workers_connected == 0, "the manager to notice")
    assert list(local_cluster.workspace.iterdir()) == []


def test_a_worker_that_works_does_not_leave(local_cluster):
    m = local_cluster.start_manager()
    gate = local_cluster.path("gate")
    works = Task(f"until [ -e {gate} ]; do sleep 0.05; done; echo done", cores=1)
    ends = Task(f"touch {local_cluster.path('begun')}; sleep 1000", cores=1, time_max=HURRY_S - 50)
    m.submit(works)
    m.submit(ends)
    worker = local_cluster.start_hurried_worker(m, "--timeout", str(HURRY_S - 50))
    wait_until(local_cluster.path("begun").exists, "both to run")
    local_cluster.let_time_pass()
    assert wait_for_task(m) is ends  # so the worker has looked at its clock
    gate.touch()
    assert wait_for_task(m).output == "done\n"
    assert worker.process.poll() is None


def test_single_shot_worker_ends_with_manager(local_cluster):
    """A single shot worker leaves with its manager."""
    with local_cluster.start_manager() as m:
        [worker] = local_cluster.start_workers(m, 1)
    assert worker.wait() == 0
    assert list(local_cluster.workspace.iterdir()) == []


def test_worker_serves_next_manager(local_cluster):
    """Without single shot a worker serves the next manager too."""
    port = free_port()
    worker = local_cluster.start_worker(port, "--timeout", "60", command=sample_tasks.PERSISTENT)
    cached = []
    for number in (1, 2):
        with local_cluster.start_manager(port=port) as m:
            m.wait_for_workers(1, PATIENCE_S)
            library = m.create_library_from_functions("chores", sample_tasks.add, exec_mode="direct")
            library.set_cores(1)
            m.install_library(library)
            m.submit(PythonTask(sample_tasks.add, number, 1))
            task = Task("cat in", cores=1)
            task.add_input(m.declare_buffer(f"for manager {number}"), "in")
            m.submit(task)
            assert {str(wait_for_task(m).output) for _ in range(2)} == {
                str(number + 1),
                f"for manager {number}",
            }
            cached.append(only_files(local_cluster.workspace))
            started = worker.descendants
        is_reaper_alone = lambda started=started: sum(map(is_alive, started)) == 1  # noqa: E731
        wait_until(is_reaper_alone, "only the process reaper of the worker to be left")
    assert not set(cached[0]) & set(only_files(local_cluster.workspace)), (
        "files of the first manager are still there"
    )
    assert worker.process.poll() is None
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0


def test_late_messages_stay_with_their_manager(local_cluster):
    """Tasks of both have the same numbers."""
    port = free_port()
    local_cluster.start_worker(port, "--timeout", "60", "--cores", "4", command=sample_tasks.PERSISTENT)
    with local_cluster.start_manager(port=port) as m:
        m.wait_for_workers(1, PATIENCE_S)
        for n in range(4):
            m.submit(
                PythonTask(sample_tasks.held, str(local_cluster.folder), f"first-{n}", "never")
                if n % 2
                else Task("sleep 1000", cores=1)
            )
        wait_until(
            lambda: local_cluster.count_lines("first-1") or worker_summaries(m)[0]["tasks"],
            "something to be running",
        )
    with local_cluster.start_manager(port=port) as m:
        m.wait_for_workers(1, PATIENCE_S)
        tasks = [
            PythonTask(sample_tasks.add, n, 0) if n % 2 else Task(f"echo {n}", cores=1) for n in range(8)
        ]
        for task in tasks:
            m.submit(task)
        ended = [wait_for_task(m) for _ in tasks]
        assert {task.result for task in ended} == {"success"}
        assert [str(task.output).strip() for task in tasks] == [str(n) for n in range(8)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("when", ["waiting", "working", "handshake"])
def test_signal_ends_worker_in_any_state(local_cluster, number, when):
    """A signal ends a worker cleanly whatever it does."""
    with contextlib.ExitStack() as stack:
        if when == "waiting":
            worker = local_cluster.start_worker(free_port(), "--timeout", "1000")
            worker.wait_for_log("looking for a manager")
        elif when == "handshake":
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            worker = local_cluster.start_worker(listener.getsockname()[1])
            stack.enter_context(listener.accept()[0])  # and say nothing
        else:
            m = local_cluster.start_manager()
            [worker] = local_cluster.start_workers(m, 1)
            for task in (
                Task("sleep 1000", cores=1),
                PythonTask(sample_tasks.held, str(local_cluster.folder), "held", "never"),
            ):
                task.set_cores(1)
                m.submit(task)
            wait_until(lambda: local_cluster.count_lines("held"), "the tasks to be running")
        family = worker.descendants
        worker.send(number)
        assert worker.wait() == 0
        wait_until(lambda: not any(map(is_alive, family)), "the end of all that it has started")
    assert list(local_cluster.workspace.iterdir()) == []
    assert "Traceback" not in worker.log


def test_a_worker_says_goodbye_with_the_reason(local_cluster, caplog):
    caplog.set_level("INFO", "vinecore")
    m = local_cluster.start_manager()
    [worker] = local_cluster.start_workers(m, 1)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    wait_until(lambda: "the worker got SIGTERM" in caplog.text, "the reason in the manager's log")


def test_reaper_crash_harms_no_task(local_cluster):
    m = local_cluster.start_manager()
    [worker] = local_cluster.start_workers(m, 1)
    [process_reaper] = worker.descendants
    process_reaper.kill()
    for _ in range(3):
        m.submit(Task("echo fine"))
        assert wait_for_task(m).output == "fine\n"
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert list(local_cluster.workspace.iterdir()) == []


# ---- other Pythons

THIS = f"{sys.version_info[0]}.{sys.version_info[1]}"
OTHERS = ["3.9", "3.10", "3.12", "3.13", "3.14"]


@pytest.mark.parametrize("version", [v for v in OTHERS if v != THIS])
def test_other_python_runs_commands_only(local_cluster, version, caplog):
    """A bare python of another version runs commands and gets no functions."""
    python = find_python(version)
    m = local_cluster.start_manager()
    worker = local_cluster.start_worker(m, command=[python, "-m", "vineworker"], PYTHONPATH=ALONE)
    m.wait_for_workers(1, PATIENCE_S)
    task = Task("cat in; echo of a bare Python > out", cores=1)
    output = m.declare_buffer()
    task.add_input(m.declare_buffer("fine "), "in")
    task.add_output(output, "out")
    m.submit(task)
    assert wait_for_task(m).output == "fine "
    assert output.contents() == b"of a bare Python\n"
    function = PythonTask(sample_tasks.add, 1, 2)
    m.submit(function)
    text = wait_until(lambda: m.stalled_reason, "the manager to say what is missing")
    assert THIS in text
    assert version in text
    assert m.wait(0) is None
    with Factory("local", manager=m, cores=1):  # a worker of the right version is given what waits
        assert wait_for_task(m).output == 3
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    assert "Traceback" not in worker.log


# ---- amounts


@pytest.mark.parametrize(
    ("text", "megabytes"),
    [("2000", 2000), ("2GB", 2000), ("2 gb", 2000), ("2G", 2000), ("2.5GB", 2500), ("512MB", 512), ("2GiB", 2048), ("1TB", 1_000_000), ("3000000kB", 3000),
     ("5000000B", 5), ("0", 0)],
)  # fmt: skip
def test_amounts_have_units_or_are_megabytes(text, megabytes):
    assert parse_megabytes(text) == megabytes
    assert parse_amount_mb(text) == (megabytes or None)


@pytest.mark.parametrize("text", ["", "GB", "2XB", "two", "2GB 3", "1e3", "nan", "inf", "9" * 30, "0x10"])
def test_invalid_amount_is_refused_with_example(text):
    """What is no amount is refused with an example."""
    with pytest.raises(ValueError, match="such as 2GB"):
        parse_megabytes(text)


@pytest.mark.parametrize("text", ["all", "auto", "ALL", "-1"])
def test_keyword_all_means_everything(text):
    """All that is there has words of its own."""
    assert parse_amount_mb(text) is None
    assert parse_cores(text) is None
    assert parse_gpus(text) is None


def test_zero_means_all_except_for_gpus():
    """Nothing means all that is there but of gpus as with taskvine."""
    assert (parse_cores("0"), parse_amount_mb("0"), parse_amount_mb("0GB"), parse_gpus("0")) == (
        None,
        None,
        None,
        0,
    )


@pytest.mark.parametrize(
    ("option", "text"),
    [("--memory", "2XB"), ("--disk", "much"), ("--cores", "2.5"), ("--cores", "nan"), ("--gpus", "x"), ("--gpus", "-2"),
     ("--cores", "-3"), ("--memory", "-5"), ("--disk", "100kB"), ("--parent-death", "-5"), ("--parent-death", "0")],
)  # fmt: skip
def test_a_worker_refuses_what_is_no_amount(option, text):
    ended = vine_worker("localhost", 1, option, text)
    assert ended.returncode == 2
    assert f"argument {option}" in ended.stderr
    assert repr(text) in ended.stderr


@pytest.mark.parametrize("host", ["nosuch.invalid", "a..b", "a" * 100])
def test_unresolvable_host_is_named_with_remedy(local_cluster, host):
    """A host that has no address is named with what to do."""
    words = f"no address is known of the host {host!r} ("
    for place in ((host, 9123), (host, 9123, "--transfer-address", "127.0.0.1")):
        ended = vine_worker(*place, "--password", local_cluster.secret, "--connect-timeout", 0)
        assert ended.returncode == 1
        assert words in ended.stderr
        assert "check how it is spelled" in ended.stderr
        assert "Traceback" not in ended.stderr
    ended = vine_worker(
        "localhost", 1, "--password", local_cluster.secret, "--connect-timeout", 0, "--transfer-address", host
    )
    assert f"cannot listen on --transfer-address {host}: {words}" in ended.stderr
    assert "Traceback" not in ended.stderr
    with pytest.raises(OSError, match=re.escape(f"cannot listen on address={host}: {words}")):
        Manager(0, address=host)
    for look in ((f"{host}:99",), ("--catalog", f"{host}:99")):
        ended = subprocess.run([sys.executable, "-m", "vinecore.discovery.status", *look], check=False, capture_output=True, text=True, timeout=PATIENCE_S)  # fmt: skip
        assert words in ended.stdout + ended.stderr


def test_foreign_address_is_named_with_remedy():
    """An address of another machine is named with what to do."""
    with pytest.raises(
        OSError, match=r"cannot listen on address=203\.0\.113\.7: .*Use an address of this machine"
    ):
        Manager((20000, 60000), address="203.0.113.7")


def test_worker_offers_amounts_given_in_gigabytes(local_cluster):
    """A worker offers what it was told in gigabytes."""
    m = local_cluster.start_manager()
    local_cluster.start_worker(m, "--memory", "2GB", "--disk", "1.5GB")
    m.wait_for_workers(1, PATIENCE_S)
    total = m.summarize_workers()[0]["total"]
    assert (total["memory"], total["disk"]) == (2000, 1500)


@pytest.mark.parametrize(
    "option", ["--timeout", "--idle-timeout", "--connect-timeout", "--leash", "--wall-time", "--grace"]
)
@pytest.mark.parametrize("text", ["nan", "-1", "soon"])
def test_invalid_duration_names_its_option(option, text):
    """What is no duration is refused with its option."""
    ended = subprocess.run([sys.executable, "-m", "vineworker", f"{option}={text}", "127.0.0.1", "1"], check=False, capture_output=True, text=True, timeout=PATIENCE_S)  # fmt: skip
    assert ended.returncode == 2
    assert f"{text!r} is not a number of seconds, 0 or more" in ended.stderr
    assert option in ended.stderr
