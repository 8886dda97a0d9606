"""How workers and factories find a manager, and are let in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness.http_servers import catalog_server
from tests.harness.processes import PATIENCE_S, free_port, wait_until
from vinecore import Factory, Task
from vinecore.discovery.announcer import make_record
from vinecore.protocol.discovery.catalog import CatalogClient, parse_servers
from vinecore.protocol.discovery.manager_record import parse_record
from vinecore.security.shared_secret import write_secret


def registry_records(folder):
    return [json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())]


def test_properties_are_in_the_record(local_cluster, tmp_path):
    m = local_cluster.start_manager(name="with-properties", registry=tmp_path / "registry")
    m.set_property("framework", "parsl")
    limits = {"cores": [1, 2]}
    m.set_property("limits", limits)
    limits["cores"].append(3)
    m.update_catalog()
    [record] = registry_records(tmp_path / "registry")
    assert record["framework"] == "parsl"
    assert record["limits"] == {"cores": [1, 2]}
    with pytest.raises(TypeError, match="what JSON can hold"):
        m.set_property("wrong", object())
    with pytest.raises(ValueError, match="port"):
        m.set_property("port", 1)


def test_new_secret_counts_for_new_workers(local_cluster):
    m = local_cluster.start_manager()
    old = local_cluster.start_worker(m)
    m.wait_for_workers(1, PATIENCE_S)
    write_secret(local_cluster.path("other"))
    m.set_password_file(local_cluster.path("other"))
    assert m.password_file == local_cluster.path("other")
    refused = local_cluster.start_worker(m)
    assert refused.wait() != 0
    new = local_cluster.start_worker(m, secret=local_cluster.path("other"))
    m.wait_for_workers(2, PATIENCE_S)
    m.submit(Task("echo here", cores=1))
    assert m.wait(PATIENCE_S).output == "here\n"
    assert old.process.poll() is new.process.poll() is None


def test_bad_password_file_changes_nothing(local_cluster):
    m = local_cluster.start_manager()
    local_cluster.path("empty").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        m.set_password_file(local_cluster.path("empty"))
    with pytest.raises(OSError, match="missing"):
        m.set_password_file(local_cluster.path("missing"))
    assert m.password_file == local_cluster.secret
    local_cluster.start_worker(m)
    m.wait_for_workers(1, PATIENCE_S)
    wait_until(lambda: m.workers_connected == 1)


# ---- names, and what else is told


def test_manager_is_found_by_its_new_name(local_cluster, tmp_path):
    m = local_cluster.start_manager(registry=tmp_path / "registry")
    assert not (tmp_path / "registry").exists() or not registry_records(tmp_path / "registry")
    m.set_priority(7)
    m.set_name("first-name")
    assert m.name == "first-name"
    assert [(r["project"], r["priority"]) for r in registry_records(tmp_path / "registry")] == [
        ("first-name", 7)
    ]
    m.set_name("second-name")
    [record] = registry_records(tmp_path / "registry")
    assert record["project"] == "second-name"
    local_cluster.start_worker(None, "-M", "second-name", "--registry", str(tmp_path / "registry"))
    m.wait_for_workers(1, PATIENCE_S)
    with pytest.raises(ValueError, match="printable"):
        m.set_name("two\nlines")
    assert m.name == "second-name"
    m.close()
    assert registry_records(tmp_path / "registry") == []


def test_password_as_text_counts(local_cluster):
    m = local_cluster.start_manager()
    m.set_password("correct horse")
    local_cluster.path("horse").write_text("correct horse\n")
    local_cluster.start_worker(m, secret=local_cluster.path("horse"))
    m.wait_for_workers(1, PATIENCE_S)
    # workers that the program starts itself get it, too
    own = m.password_file
    assert own.read_text() == "correct horse\n"
    assert own.stat().st_mode & 0o077 == 0
    m.close()
    assert not own.exists()


def test_new_catalog_servers_get_the_record(local_cluster, tmp_path):
    with catalog_server(tmp_path) as port:
        first = f"127.0.0.1:{port}"
        m = local_cluster.start_manager(name="wanders", registry=False)
        m.set_manager_preferred_connection("by_hostname")
        m.set_catalog_servers(first)
        [record] = wait_until(lambda: CatalogClient(parse_servers(first)).query(), "the record")
        assert (record["project"], record["manager_preferred_connection"]) == ("wanders", "by_hostname")
        m.set_catalog_servers("")
        wait_until(lambda: not CatalogClient(parse_servers(first)).query(), "the record's end")


@pytest.mark.parametrize(
    ("mode", "first"), [("by_ip", "10.0.0.1"), ("by_hostname", "node"), ("by_apparent_ip", "192.0.2.7")]
)
def test_preferred_address_is_tried_first(mode, first):
    record = {**make_record(name="n", key="k", bound="10.0.0.1", port=9123, ssl=False), "name": "node",
              "address": "192.0.2.7", "manager_preferred_connection": mode}  # fmt: skip
    found = parse_record(record)
    assert found.addresses[0] == (first, 9123)
    assert {host for host, _port in found.addresses} == {"10.0.0.1", "node", "192.0.2.7"}


def test_factory_starts_workers_for_tasks_to_come(local_cluster):
    m = local_cluster.start_manager()
    with Factory("local", manager=m, max_workers=2, min_workers=0, cores=1, memory=200, disk=200):
        m.tasks_left_count(5)
        m.wait_for_workers(2, PATIENCE_S)
    with pytest.raises(ValueError, match="ntasks"):
        m.tasks_left_count(-1)


# ---- the constructor


@pytest.mark.parametrize("ssl", [None, False, (None, None), [None, None]])
def test_no_files_mean_no_tls(local_cluster, ssl):
    m = local_cluster.start_manager(ssl=ssl)
    assert m.using_ssl is False
    assert m.ssl_fingerprint == ""


def test_list_is_a_range_of_ports(local_cluster):
    low = free_port()
    m = local_cluster.start_manager(port=[low, low + 50])
    assert low <= m.port <= low + 50


def test_task_numbers_start_where_the_user_wants(m):
    first = m.submit(Task("true", cores=1))
    assert m.set_min_task_id(first + 1000) == first + 1000
    second = m.submit(Task("true", cores=1))
    assert second >= first + 1000
    assert m.set_min_task_id(5) > second
    third = m.submit(Task("true", cores=1))
    assert second < third < second + 10
    assert {m.wait(PATIENCE_S).id for _ in range(3)} == {first, second, third}
