"""Graphs of random shapes, and the files and libraries that their tasks use."""

from __future__ import annotations

import random
import zlib
from collections import Counter
from typing import Any

from vinecore.resources.amounts import ResourceRequest
from vinecore.scheduler.specs import FOREVER, TASK, WORKER, FileSpec, LibrarySpec, TaskSpec

SMALL, LARGE = 10, 300_000
SETUP, FUNCTION, DATA, ADDRESS, ARCHIVED, UNPACKED = (
    "setup",
    "function",
    "data",
    "address",
    "archive",
    "unpacked",
)
BRIEF, LASTING = "brief", "lasting"
DECLARED = (
    FileSpec(SETUP, SMALL, at_manager=True),
    FileSpec(FUNCTION, SMALL, at_manager=True),
    FileSpec(DATA, LARGE, at_manager=True, digest="declared"),
    FileSpec(ADDRESS, url="https://example.org/data"),
    FileSpec(ARCHIVED, LARGE, at_manager=True, digest="declared"),
    FileSpec(UNPACKED, archive=ARCHIVED, directory=True),
    FileSpec(BRIEF, LARGE, at_manager=True, digest="declared", level=TASK),
    FileSpec(LASTING, LARGE, at_manager=True, digest="declared", level=FOREVER),
)
LIBRARIES = (
    LibrarySpec("whole", SETUP),
    LibrarySpec("shared", SETUP, 2, ResourceRequest(cores=1), files=(DATA,)),
    LibrarySpec("archived", SETUP, 1, ResourceRequest(cores=1), environment=UNPACKED),
)
MODES = ("fixed", "fixed", "max", "min waste", "greedy_bucketing")
POLICIES = (
    *("files",) * 5,
    "time",
    "rand",
    "worst",
    "disk",
    "fcfs",
    "through the manager",
    "one at a time",
    "two copies",
)
PRIORITIES = ("", "", "", "FIFO", "LIFO", "depth-first", "breadth-first", "random", "longest-category-first",
              "shortest-category-first", "largest-input-first")  # fmt: skip
DISKS = (1, 2, 1000)  # MB
REQUESTS = (ResourceRequest(), ResourceRequest(cores=1), ResourceRequest(cores=2, memory=100))


class GraphGenerator:
    """Makes tasks, and remembers them by number."""

    def __init__(self) -> None:
        self.task_number = 0
        self.specs: dict[int, TaskSpec] = {}

    def make_graph(self, shape: random.Random, run: int, outside: list[str]) -> list[TaskSpec]:
        """Make some tasks; they read each other's results, declared files, and perhaps one from outside of the graph."""
        chain, function = shape.random() < 0.3, shape.choice(("quick", "slow"))
        alone = shape.choice((*[library.name for library in LIBRARIES], "", None))
        graph: list[TaskSpec] = []
        for _ in range(shape.randint(1, 7)):
            self.task_number += 1
            name = f"r{self.task_number}"
            makers = [t.result for t in graph if t.result and (run or not t.wanted_at_manager)]
            inputs = shape.sample(makers, min(len(makers), shape.choice((0, 1, 1, 2, 3))))
            if chain and makers:
                inputs = makers[-1:]
            if outside and shape.random() < 0.15:
                inputs.append(shape.choice(outside))
            if shape.random() < 0.2:
                inputs.append(shape.choice((DATA, ADDRESS, BRIEF, LASTING)))
            if shape.random() < 0.1 and inputs:
                inputs.append(inputs[0])
            library = shape.choice((*[library.name for library in LIBRARIES], "")) if alone is None else alone
            command = not library and shape.random() < 0.5
            outputs = tuple(f"{name}-{k}" for k in range(shape.choice((0, 0, 1)))) if command and run else ()
            options: dict[str, Any] = {"size": shape.choice((SMALL, LARGE))}
            if command:
                options["command"] = "true"
                options["mounts"] = [[file, file, False] for file in inputs]
                options["outputs"] = [[file, file, "always"] for file in outputs]
            spec = TaskSpec(
                self.task_number,
                f"t{self.task_number}",
                "" if command and outputs and shape.random() < 0.5 else name,
                run,
                library,
                function,
                b"",
                shared=() if command else (FUNCTION,),
                inputs=() if command else tuple(inputs),
                mounts=tuple(inputs) if command else (),
                outputs=outputs,
                wanted_at_manager=(name,) if shape.random() < 0.3 else (),
                category=shape.choice(("a", "b")),
                request=shape.choice(REQUESTS),
                priority=self.task_number,
                depth=len(graph),
                retries=shape.choice((0, 50)),
                python=shape.random() < 0.8,
                level=shape.choice((*[TASK] * 8, WORKER, FOREVER)),
                environment=UNPACKED if not library and shape.random() < 0.2 else "",
                options=options,
            )
            if spec.environment:
                options["environment"] = spec.environment
            if not spec.result:
                spec = spec._replace(wanted_at_manager=shape.choice(((), outputs)))
            graph.append(spec)
            self.specs[spec.task] = spec
        readers = Counter(name for spec in graph for name in {*spec.inputs, *spec.mounts})
        return [spec._replace(reader_count=readers[spec.result]) for spec in graph]

    def name_by_content(self, graph: list[TaskSpec]) -> list[TaskSpec]:
        """Name results by their content, so that later graphs make the same ones; all tasks run on demand."""
        names: dict[str, str] = {}
        specs: dict[str, TaskSpec] = {}
        for spec in graph:
            inputs = tuple(names.get(name, name) for name in (*spec.inputs, *spec.mounts))
            recipe = repr((spec.library, inputs, spec.options["size"], spec.environment))
            name = names[spec.result] = f"v{zlib.crc32(recipe.encode())}"
            options = {"size": spec.options["size"]}
            if spec.environment:
                options["environment"] = spec.environment
            if name not in specs or spec.wanted_at_manager:
                specs[name] = self.specs[spec.task] = spec._replace(
                    result=name, inputs=inputs, mounts=(), shared=(FUNCTION,), outputs=(), wanted_at_manager=(name,) if spec.wanted_at_manager else (),
                    options=options, on_demand=True, content_addressed=True,
                )  # fmt: skip
        order = {spec.result: number for number, spec in enumerate(specs.values())}
        return sorted(specs.values(), key=lambda spec: order[spec.result])
