"""The scheduler: a state machine without I/O that takes events and returns instructions.

`ORDER` is the order of its modules: each imports only modules above it, and each part is built with parts above it. What has to go
the other way goes through `signals`.
"""

from typing import Final

ORDER: Final = (
    # values and records
    "transitions",
    "specs",
    "counters",
    "tuning",
    "task_accounts",
    "state",
    "conditions",
    "events",
    "instructions",
    "signals",
    # books
    "outbox",
    "queues",
    "reservation",
    "disk",
    "replicas",
    "queue_stats",
    "file_lifetime",
    # tasks, files and workers one at a time
    "lifecycle",
    "missing_files",
    "time_windows",
    "transfers",
    "recovery",
    "replication",
    "libraries",
    "eviction",
    "replica_balance",
    "transfer_failures",
    # which task goes where
    "worker_choice",
    "dispatch",
    "placement",
    "disk_deadlock",
    "stealing",
    # special cases
    "resume",
    "on_demand",
    "draining",
    "hosts",
    "slow_workers",
    "diagnostics",
    # invariants
    "validation",
    # handlers of events
    "task_results",
    "worker_messages",
    "workers",
    "submission",
    "settings",
    "scheduler",
    # questions of other threads
    "statistics",
    "status_tables",
    "queries",
)
