"""How workers and factories find a manager, and are let in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness.processes import PATIENCE_S, wait_until
from vinecore import Task
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
