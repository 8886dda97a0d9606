"""`Manager.tune`: every name of TaskVine's is accepted, and every value is checked."""

from __future__ import annotations

import logging

import pytest

from tests.harness.processes import PATIENCE_S, scheduler_state, wait_until
from vinecore import PythonTask, Task
from vinecore.discovery import announcer
from vinecore.scheduler.tuning import IGNORED_PARAMETERS, list_parameters

TASKVINE_NAMES = """
asynchrony-multiplier attempt-schedule-depth category-steady-n-tasks clean-redundant-replicas default-transfer-rate
disconnect-slow-worker-factor disk-proportion-available-to-task enforce-worker-eviction-interval
file-source-max-transfers force-proportional-resources force-proportional-whole-tasks hungry-minimum
hungry-minimum-factor immediate-recovery keepalive-interval keepalive-timeout large-task-check-interval
load-from-shared-filesystem long-timeout max-library-retries max-new-workers max-retrievals
max-task-stdout-storage max-workers min-transfer-timeout monitor-interval option-blocklist-slow-workers-timeout
perf-log-interval prefer-dispatch proportional-resources proportional-whole-tasks ramp-down-heuristic
resource-management-interval resource-submit-multiplier sandbox-grow-factor shift-disk-load short-timeout
task-groups temp-replica-count transfer-outlier-factor transfer-replica-per-cycle transfer-temps-recovery
transient-error-interval update-interval wait-for-workers watch-library-logfiles worker-retrievals
worker-source-max-transfers disconnect-slow-workers-factor wait_retrieve_many
"""
"""All names of TaskVine's `tune`, and those that only its manual has."""


@pytest.fixture(scope="module")
def m(shared_cluster):
    return shared_cluster.start_manager()


def test_every_name_of_taskvine_is_accepted(m):
    for name in TASKVINE_NAMES.split():
        assert m.tune(name, 2 if name == "sandbox-grow-factor" else 1) == 0


@pytest.mark.parametrize("row", list_parameters(), ids=lambda row: row.name)
def test_value_reaches_the_scheduler(m, row):
    """As the type of the default, under every name."""
    given = (
        0 if row.default is True else row.least if row.default == row.most else min(row.default + 1, row.most)
    )
    for name in (row.name, *row.aliases, row.name.replace("-", "_")):
        assert m.tune(name, given) == 0
        value = scheduler_state(m, lambda scheduler: getattr(scheduler.state.tuning, row.attribute))
        assert value == given
        assert type(value) is type(row.default)


@pytest.mark.parametrize("row", list_parameters(), ids=lambda row: row.name)
def test_value_out_of_bounds_is_refused(m, row):
    for value in (row.least - 1, float("nan"), "1", None):
        with pytest.raises((TypeError, ValueError), match=row.name):
            m.tune(row.name, value)


def test_ignored_name_is_explained_once(local_cluster, caplog):
    m = local_cluster.start_manager()
    caplog.set_level(logging.INFO, "vinecore")
    for name, reason in IGNORED_PARAMETERS.items():
        assert (m.tune(name, 5), m.tune(name, 6)) == (0, 0)
        assert caplog.text.count(f"tune({name!r}, 5) has no meaning here: {reason}") == 1
        assert f"tune({name!r}, 6)" not in caplog.text


def test_unknown_name_gets_nearest(m, caplog):
    assert m.tune("hungry-minimun", 1) == -1
    assert "did you mean 'hungry-minimum'?" in caplog.text


def test_end_of_a_long_output_comes_back(local_cluster):
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1)
    m.tune("max-task-stdout-storage", 4)
    tasks = [Task("printf 123456", cores=1), PythonTask(print, "123456", end="")]
    for task in tasks:
        task.set_cores(1)
        m.submit(task)
    assert [m.wait(PATIENCE_S).std_output for _ in tasks] == ["3456", "3456"]


def test_registry_is_told_in_intervals(local_cluster, monkeypatch):
    monkeypatch.setattr(announcer, "LOOK_S", 0.05)
    registry = local_cluster.path("registry")
    m = local_cluster.start_manager(name="told", registry=registry)
    [entry] = registry.iterdir()
    m.tune("update-interval", 1)
    for _ in range(2):  # the first may be that of the beginning
        before = entry.stat().st_mtime_ns
        wait_until(lambda seen=before: entry.stat().st_mtime_ns > seen, timeout_s=announcer.UPDATE_S / 2)
