"""How long an object outlives the tasks that use it: the four cache levels by their names."""

from __future__ import annotations

from vinecore.scheduler.specs import FOREVER, TASK, WORKER, WORKFLOW

CacheLevel = {"task": TASK, "workflow": WORKFLOW, "worker": WORKER, "forever": FOREVER}
