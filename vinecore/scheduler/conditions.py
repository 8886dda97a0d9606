"""What a task asks of its worker besides resources, and what of it a worker does not meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vinecore.scheduler.specs import PlacementConditions
    from vinecore.scheduler.state import SchedulerState, WorkerState


def meets_conditions(state: SchedulerState, worker: WorkerState, conditions: PlacementConditions) -> bool:
    """Return whether a worker has the features and files that tasks ask for, and stays long enough."""
    if not worker.features.issuperset(conditions.features):
        return False
    if worker.ends_at is not None and worker.ends_at - state.now < conditions.time_min:
        return False
    return not conditions.strict_inputs or has_files(state, worker, conditions.strict_inputs)


def has_files(state: SchedulerState, worker: WorkerState, names: Iterable[str]) -> bool:
    """Return whether a worker has all of these files."""
    for name in names:
        file = state.files.get(name)
        if file is None or worker not in file.replicas:
            return False
    return True


def explain_unmet(
    state: SchedulerState, workers: list[WorkerState], conditions: PlacementConditions
) -> tuple[str, bool]:
    """Return why none of these workers meets the conditions, and whether none of them ever will."""
    with_features = [worker for worker in workers if worker.features.issuperset(conditions.features)]
    if not with_features:
        missing = [
            name for name in conditions.features if not any(name in worker.features for worker in workers)
        ]
        what = " and ".join(map(repr, missing or conditions.features))
        options = " ".join(f"--feature {name}" for name in conditions.features)
        return f"no worker has the feature {what} that tasks ask for: start workers with {options}", True
    staying = [
        worker
        for worker in with_features
        if worker.ends_at is None or worker.ends_at - state.now >= conditions.time_min
    ]
    if not staying:
        left = max(0.0, *(worker.ends_at - state.now for worker in with_features if worker.ends_at))
        text = (
            f"no worker stays long enough: tasks ask for {conditions.time_min:.3g} s (set_time_min), and the "
            f"workers leave within {left:.3g} s. Start workers with a longer --wall-time"
        )
        return text, False
    lost = not any(may_get(state, name) for name in conditions.strict_inputs)
    return f"no worker that can run them has {', '.join(conditions.strict_inputs)} (strict_input)", lost


def may_get(state: SchedulerState, name: str) -> bool:
    """Return whether a worker has a file, is getting it, or may still tell that it has it."""
    file = state.files.get(name)
    if file is not None and (file.replicas or file.fetching):
        return True
    return any(worker.inventory_pending for worker in state.workers.values())
