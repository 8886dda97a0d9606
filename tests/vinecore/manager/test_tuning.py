"""`Manager.tune`: every name of TaskVine's is accepted, and every value is checked."""

from __future__ import annotations

import logging

import pytest

from tests.harness.processes import scheduler_state
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
