"""The command that says which managers there are."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tests.harness.processes import PATIENCE_S, wait_until
from vinecore import Task
from vinecore.discovery.status import command
from vinecore.security.shared_secret import write_secret


def status(local_cluster, *words):
    ended = CliRunner().invoke(command, ["-P", str(local_cluster.secret), *map(str, words)])
    return ended.exit_code, [line.split() for line in ended.stdout.splitlines()]


def test_managers_are_listed_with_work(local_cluster):
    """Managers are listed with what they have to do."""
    busy, idle = local_cluster.start_manager(name="busy"), local_cluster.start_manager(name="idle")
    local_cluster.start_manager()
    busy.submit(Task("true"))
    busy.submit(Task("true"))
    local_cluster.start_worker(idle)
    idle.wait_for_workers(1, PATIENCE_S)
    assert status(local_cluster) == (0, [
        ["MANAGER", "ADDRESS", "WAITING", "RUNNING", "COMPLETE", "WORKERS"],
        ["busy", f"127.0.0.1:{busy.port}", "2", "0", "0", "0"],
        ["idle", f"127.0.0.1:{idle.port}", "0", "0", "0", "1"],
    ])  # fmt: skip
    assert status(local_cluster, "-M", "i.*") == status(local_cluster, "-M", "idle")
    assert len(status(local_cluster, "-M", "idle")[1]) == 2
    [about] = json.loads(
        CliRunner().invoke(command, ["-P", str(local_cluster.secret), "-M", "idle", "--json"]).stdout
    )
    assert (about["name"], about["workers"], about["problem"]) == ("idle", 1, "")


def test_one_behind_an_address_is_asked(local_cluster):
    m = local_cluster.start_manager(name="hidden", registry=False)
    for words in (["127.0.0.1", m.port], [f"127.0.0.1:{m.port}"]):
        code, (_head, row) = status(local_cluster, *words)
        assert (code, row[0]) == (0, "hidden")
    m.close()
    code, (_head, row) = status(local_cluster, "127.0.0.1", m.port)
    assert (code, row[2:6], row[-1]) == (1, ["-", "-", "-", "-"], "refused")


def test_no_manager_lists_searched_places(local_cluster):
    """Where there is none it says where it has looked."""
    code, [words] = status(local_cluster)
    assert (code, words[:4]) == (1, ["there", "is", "no", "manager"])


def test_manager_with_other_secret_is_listed(local_cluster, tmp_path):
    """One with another secret is listed with the reason."""
    write_secret(tmp_path / "theirs")
    local_cluster.start_manager(name="theirs", password_file=tmp_path / "theirs")
    code, (_head, row) = status(local_cluster)
    assert (code, row[0], row[-2:]) == (1, "theirs", ["wrong", "secret"])


@pytest.mark.parametrize(
    "words",
    [
        ["localhost"],
        ["a", "b", "c"],
        ["localhost", "1", "-M", "x"],
        ["-M", "("],
        ["--ssl-fingerprint", "0"],
        ["--where", "1 +"],
    ],
)
def test_what_cannot_be_understood_is_refused(local_cluster, words):
    assert status(local_cluster, *words)[0] == 2


# ---- tables


@pytest.fixture(scope="module")
def working(shared_cluster):
    """A manager with a worker of two cores, a task that runs there, and two that wait."""
    m = shared_cluster.start_manager(name="working", registry=False)
    shared_cluster.start_worker(m)
    m.wait_for_workers(1, PATIENCE_S)
    m.submit(Task("sleep 600", cores=2, memory=300, disk=200, category="long", tag="first"))
    wait_until(lambda: m.stats.tasks_running == 1)
    for number in range(2):
        m.submit(Task(f"echo {number}", cores=1, category="short", priority=number))
    m.set_category_resources_max("short", {"cores": 1, "memory": 100})
    return m


def shown(shared_cluster, m, *words):
    code, lines = status(shared_cluster, f"127.0.0.1:{m.port}", *words)
    assert code == 0
    return lines


def test_table_of_workers(working, shared_cluster):
    head, row = shown(shared_cluster, working, "-W")
    assert head == ["MANAGER", "HOST", "ADDRESS", "TASKS", "CORES", "MEMORY", "DISK", "GPUS"]
    assert (row[0], row[3:]) == ("working", ["1", "2/2", "300/2000", "200/2000", "0/0"])


def test_table_of_tasks(working, shared_cluster):
    head, *rows = shown(shared_cluster, working, "-T")
    assert head == ["MANAGER", "STATE", "CATEGORY", "HOST", "COMMAND", "ID", "PRIORITY", "ATTEMPTS"]
    assert [(row[1], row[2], row[4]) for row in rows] == [
        ("RUNNING", "long", "sleep"),
        ("READY", "short", "echo"),
        ("READY", "short", "echo"),
    ]
    assert [row[-2:] for row in rows] == [["0", "1"], ["0", "0"], ["1", "0"]]


def test_table_of_categories(working, shared_cluster):
    head, *rows = shown(shared_cluster, working, "-A")
    assert head[1:6] == ["CATEGORY", "RUNNING", "WAITING", "DONE", "FIT-WORKERS"]
    assert [row[1:8] for row in rows] == [
        ["long", "1", "0", "0", "1", "-", "-"],
        ["short", "0", "2", "0", "1", "1", "100"],
    ]


def test_table_of_resources(working, shared_cluster):
    _head, row = shown(shared_cluster, working, "-R")
    assert row == ["working", "1", "2/2", "300/2000", "200/2000", "0/0", "2", "2000", "2000", "0"]


def test_table_of_capacity(working, shared_cluster):
    assert shown(shared_cluster, working, "--capacity")[1] == ["working", "0", "0", "0", "0", "0"]


def test_condition_selects_rows(working, shared_cluster):
    _head, row = shown(shared_cluster, working, "-T", "--where", 'category == "long" || priority > 5')
    assert row[2] == "long"
    assert shown(shared_cluster, working, "--where", "tasks_waiting > 2") == [
        ["there", "is", "nothing", "to", "show"]
    ]
    assert shown(shared_cluster, working, "--where", "tasks_waiting == 2 and workers == 1")[1][0] == "working"


def test_every_field_is_shown(working, shared_cluster):
    fields = {line[0] for line in shown(shared_cluster, working, "-l")}
    assert {
        "project:",
        "tasks_waiting:",
        "capacity_tasks:",
        "time_when_started:",
        "network_interfaces:",
    } <= fields


def test_json_has_the_table(working, shared_cluster):
    words = ["-P", str(shared_cluster.secret), "127.0.0.1", str(working.port), "-T", "--json"]
    rows = json.loads(CliRunner().invoke(command, words).stdout)
    assert [(row["tag"], row["command"]) for row in rows] == [
        ("first", "sleep 600"),
        ("", "echo 0"),
        ("", "echo 1"),
    ]
