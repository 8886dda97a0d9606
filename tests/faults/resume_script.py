"""The script of a user whose manager is killed again and again: it computes a graph, and goes on where the one before has died.

The last vertex waits for a file, so that the script cannot be through before it is killed.
"""

from __future__ import annotations

import json
import os
import sys
import time

from daskvine import DaskVine
from tests.harness import sample_tasks

CHAINS, LENGTH, FAN_IN = 100, 2, 4
CALL_S = 0.05
LARGE = 100_000


def step(log, name, *inputs):
    """Add up some numbers, and leave a line when that is done; results of every third one are large."""
    time.sleep(CALL_S)
    if name == "+end":
        sample_tasks.wait_for(f"{log.partition(':')[2]}.gate", 240.0)
    total = 1 + sum(value for value, _ballast in inputs)
    line = os.open(log.partition(":")[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(line, f"{name[1:]}\n".encode())
    os.close(line)
    return total, bytes(LARGE if total % 3 == 0 else 10)


def graph_of(log):
    """Chains, and a tree that reduces them; give it, its last key, and what comes out."""
    log = f"to:{log}"  # a path would be part of the names of results, with its time of change
    graph, ends = {}, []
    for chain in range(CHAINS):
        for place in range(LENGTH):
            name = f"step-{chain}-{place}"
            graph[name] = (step, log, f"+{name}", *([f"step-{chain}-{place - 1}"] if place else []))
        ends.append(f"step-{chain}-{LENGTH - 1}")
    while len(ends) > 1:
        groups = [ends[n : n + FAN_IN] for n in range(0, len(ends), FAN_IN)]
        ends = []
        for group in groups:
            name = f"sum-{len(graph)}" if len(groups) > 1 else "end"
            graph[name] = (step, log, f"+{name}", *group)
            ends.append(name)
    return graph, ends[0], len(graph)


def main(port, secret, info, log, answer, resume, workspace):
    """Compute it, with workers that connect or, if there is a workspace, with own ones."""
    options = {"run_info_path": info, "resume": resume == "yes"}
    if workspace:
        m = DaskVine.local(cores=4, memory_mb=1000, disk_mb=1000, workspace=workspace, **options)
    else:
        m = DaskVine(port=int(port), address="127.0.0.1", password_file=secret, **options)
    with m:
        graph, end, _expected = graph_of(log)
        total, _ballast = m.get(graph, end, task_mode="function-calls", progress_disable=True)
        with open(answer, "w") as file:
            json.dump([total, m.last_run.executed], file)


if __name__ == "__main__":
    main(*sys.argv[1:])
