"""The command that says which managers there are."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from tests.harness.processes import PATIENCE_S
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
        ["MANAGER", "ADDRESS", "WAITING", "RUNNING", "WORKERS"],
        ["busy", f"127.0.0.1:{busy.port}", "2", "0", "0"],
        ["idle", f"127.0.0.1:{idle.port}", "0", "0", "1"],
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
    assert (code, row[2:5], row[-1]) == (1, ["-", "-", "-"], "refused")


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
    [["localhost"], ["a", "b", "c"], ["localhost", "1", "-M", "x"], ["-M", "("], ["--ssl-fingerprint", "0"]],
)
def test_what_cannot_be_understood_is_refused(local_cluster, words):
    assert status(local_cluster, *words)[0] == 2
