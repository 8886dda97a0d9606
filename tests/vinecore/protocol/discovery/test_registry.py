"""Records of managers, whoever has written them, and the folder in which they are."""

from __future__ import annotations

import json
import os
import random
import socket
import stat
import subprocess
import sys
import time

import pytest

from tests.harness.processes import PATIENCE_S, wait_until
from vinecore.discovery.announcer import make_record
from vinecore.protocol.discovery import registry
from vinecore.protocol.discovery.finder import ManagerFinder
from vinecore.protocol.discovery.manager_record import MAX_ADDRESSES, check_name, parse_pattern, parse_record


def record(name="mine", bound="192.0.2.7", port=9123, key="0123", **more):
    return {**make_record(name=name, key=key, bound=bound, port=port, ssl=False), **more}


# ---- records


def test_a_record_says_where_its_manager_is():
    found = parse_record(record(tasks_waiting=3, ssl=True))
    assert found == ("mine", "0123", (("192.0.2.7", 9123), (socket.gethostname(), 9123)), True, 3)


def test_manager_on_all_addresses_lists_them():
    """A manager that listens everywhere names the addresses of its machine."""
    addresses = [about["address"] for about in record(bound="0.0.0.0")["network_interfaces"]]
    assert addresses
    assert "0.0.0.0" not in addresses
    assert len(addresses) == 1 or not any(address.startswith("127.") for address in addresses)


def test_loopback_manager_is_found_locally_only():
    """A manager on loopback is found on its own machine only."""
    assert parse_record(record(bound="127.0.0.1")).addresses == (("127.0.0.1", 9123),)
    assert parse_record(record(bound="127.0.0.1") | {"name": "other.example.org"}) is None


def test_catalog_addresses_are_tried_last():
    """What a catalog adds is tried after what the manager says."""
    assert parse_record(record() | {"address": "203.0.113.5", "name": "far.example.org"}).addresses == (
        ("192.0.2.7", 9123),
        ("203.0.113.5", 9123),
        ("far.example.org", 9123),
    )


@pytest.mark.parametrize(
    "change",
    [
        {"type": "vine_factory"},
        {"software": "cctools"},
        {"software": None},
        {"project": 7},
        {"project": "a\nb"},
        {"project": "a" * 201},
        {"port": "9123"},
        {"port": True},
        {"port": 0},
        {"port": 65536},
        {"port": 10**400},
        {"taskvine_uuid": None},
        {"network_interfaces": [{"address": "a b"}], "name": "x\r\ny", "address": ["127.0.0.1"]},
        {"network_interfaces": [], "name": "", "address": None},
    ],
)
def test_foreign_records_are_skipped(change):
    """What is not a manager of ours is passed over."""
    assert parse_record(record()) is not None
    assert parse_record(record() | change) is None


def test_odd_records_do_no_harm():
    odd = [None, 1, "x", [], {}, {"a": 1}, True, 1e300, [[]], "127.0.0.1", {"address": {}}, -5, "a" * 70_000]
    draw = random.Random(7)
    base = record()
    for _ in range(2000):
        change = {draw.choice([*base, "address", "tasks_waiting"]): draw.choice(odd) for _ in range(3)}
        found = parse_record(base | change)
        assert found is None or len(found.addresses) <= MAX_ADDRESSES + 2
    assert all(parse_record(value) is None for value in odd)
    many = [{"address": f"10.0.0.{n}"} for n in range(200)]
    assert len(parse_record(base | {"network_interfaces": many}).addresses) == MAX_ADDRESSES + 1


def test_names_are_checked():
    assert check_name("my analysis, v2") == "my analysis, v2"
    for name in ("", "a" * 201, "a\n", 7):
        with pytest.raises(ValueError, match="printable"):
            check_name(name)
    with pytest.raises(ValueError, match="neither a name nor a regular expression"):
        parse_pattern("(")


# ---- the folder


def test_file_is_private_and_complete(tmp_path):
    """A file is for nobody else and complete."""
    folder = tmp_path / "state" / "managers"
    registry.write(str(folder), "0123", record())
    [path] = folder.iterdir()
    assert [stat.S_IMODE(p.stat().st_mode) for p in (folder, path)] == [0o700, 0o600]
    about = json.loads(path.read_text())
    assert (about["project"], about["port"], about["pid"]) == ("mine", 9123, os.getpid())
    assert about["starttime"] <= time.time()
    registry.remove(str(folder), "0123")
    registry.remove(str(folder), "0123")
    assert list(folder.iterdir()) == []


def entered_by_another_process(folder):
    code = f"from vinecore.protocol.discovery import registry; registry.write({str(folder)!r}, 'dead', {record('dead')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_S, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip


def test_ended_manager_is_forgotten(tmp_path):
    """A manager whose process is gone is forgotten."""
    entered_by_another_process(tmp_path)
    registry.write(str(tmp_path), "alive", record())
    assert [about["project"] for about in registry.read(str(tmp_path))] == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["alive.json"]


def test_reused_pid_is_not_the_manager(tmp_path):
    """A process that has got the number of another one is not taken for it."""
    registry.write(str(tmp_path), "0123", record())
    path = tmp_path / "0123.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"process_started": about["process_started"] + 1}))
    assert registry.read(str(tmp_path)) == []
    assert not path.exists()


@pytest.mark.parametrize(
    ("age", "found", "kept"), [(60, True, True), (2 * registry.STALE_S, False, True), (1e6, False, False)]
)
def test_remote_manager_is_judged_by_age(tmp_path, age, found, kept):
    """A manager of another machine is judged by when it was heard."""
    entered_by_another_process(tmp_path)
    path = tmp_path / "dead.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"machine": "another one", "lastheardfrom": int(time.time() - age)}))
    assert bool(registry.read(str(tmp_path))) == found
    assert path.exists() == kept


def test_what_else_lies_there_does_no_harm(tmp_path):
    for n, content in enumerate(
        [
            b"",
            b"\xff",
            b"[" * 100_000,
            b"[]",
            b"{}",
            b'"x"',
            b" " * 70_000,
            b'{"pid": NaN}',
            b'{"pid": 1, "lastheardfrom": 1' + b"0" * 4000 + b"}",
            b'{"a":' * 10_000,
        ]
    ):
        (tmp_path / f"{n}.json").write_bytes(content)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "gone.json").symlink_to("nowhere")
    (tmp_path / "read-me").write_text("hello")
    registry.write(str(tmp_path), "0123", record())
    before = sorted(tmp_path.iterdir())
    assert [about["project"] for about in registry.read(str(tmp_path))] == ["mine"]
    assert sorted(tmp_path.iterdir()) == before
    assert registry.read(str(tmp_path / "missing")) == []


def test_where_it_is_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.delenv("VINE_REGISTRY", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert registry.registry_directory() == str(tmp_path / "state" / "daskvine" / "managers")
    monkeypatch.setenv("VINE_REGISTRY", str(tmp_path / "common"))
    assert registry.registry_directory() == str(tmp_path / "common")
    assert registry.registry_directory(str(tmp_path / "given")) == str(tmp_path / "given")
    monkeypatch.delenv("VINE_REGISTRY")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registry.registry_directory() == str(tmp_path / ".local" / "state" / "daskvine" / "managers")


# ---- finding


def test_full_matches_with_work_come_first(tmp_path):
    """Those are found whose whole name matches and those with work come first."""
    for n in range(20):
        registry.write(
            str(tmp_path), f"k{n}", record(f"run-{n}", key=f"k{n}", tasks_waiting=int(n in (3, 15)))
        )
    names = [found.name for found in ManagerFinder("run-1.?", str(tmp_path)).find()]
    assert names[0] == "run-15"
    assert sorted(names) == sorted(f"run-{n}" for n in (1, *range(10, 20)))
    assert [found.name for found in ManagerFinder("run-3", str(tmp_path)).find()] == ["run-3"]
    finder = ManagerFinder("run-.*", str(tmp_path))
    first = finder.find()
    wait_until(lambda: finder.find()[2:] != first[2:], "another order")
    assert ManagerFinder("run", str(tmp_path)).find() == []


def test_unreadable_registry_is_reported(tmp_path):
    """A registry that cannot be read is told."""
    (tmp_path / "file").touch()
    finder = ManagerFinder("x", str(tmp_path / "file"))
    assert finder.find() == []
    assert "cannot be read: Not a directory" in finder.problem
