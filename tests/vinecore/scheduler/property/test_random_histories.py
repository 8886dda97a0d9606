"""The state machines of the manager and of its workers against each other, in random histories.

The scheduler and the state machine of each worker are real; messages wait in queues, and jobs end when the history says so, well or
badly. After every step the scheduler validates its state. At the end the faults stop, and then everything has to come to its end: every
task and every graph has ended once, the manager has every wanted result, every worker has exactly the files that the scheduler
records there, and when the user has released everything nothing is left anywhere.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.vinecore.scheduler.property.machine import ClusterMachine, run_history

TestClusterMachine = ClusterMachine.TestCase
# the same histories each time; `make fuzz` runs others
TestClusterMachine.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("seed", range(60))
def test_random_history_comes_to_its_end(seed):
    run_history(seed)
