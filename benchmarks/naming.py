"""How long it takes to name the vertices of a large graph for `reuse`, beside what it takes to compile them for the workers.

``python -m benchmarks.naming`` makes a file with many branches and a graph over as many partitions of it, and prints both times. Naming has to be the
shorter one, and in proportion to the number of vertices.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from daskvine.cache_keys import ResultKeys
from daskvine.compiler import Compiler
from daskvine.graph import Graph, flatten_keys, to_task_spec_graph
from daskvine.program_state import collect_program_state


class Objects:
    """Takes the place of the manager's table of shared objects: names them by their order."""

    def __init__(self) -> None:
        self.count = 0

    def acquire(self, _content: bytes) -> str:
        """Name an object."""
        self.count += 1
        return f"object-{self.count}"

    def release(self, names: Any) -> None:
        """Forget objects."""


def write_file(path: Path, branches: int) -> None:
    """Write a file with a tree of so many branches, and 100,000 entries in some of them."""
    import numpy as np
    import uproot

    with uproot.recreate(path) as file:
        file.mktree("Events", {f"b{n}": "f4" for n in range(branches)})
        file["Events"].extend({f"b{n}": np.zeros(1000, "f4") for n in range(branches)})


def graph_of(path: Path, vertices: int, *, open_files: bool) -> Graph:
    """Make a graph of about so many vertices: two for each partition."""
    import dask
    import uproot

    with dask.config.set({"awkward.optimization.enabled": False}):
        events = uproot.dask(
            {str(path): "Events"}, open_files=open_files, steps_per_file=max(1, min(900, vertices // 3))
        )
        total: Any = [events["b1"] + n for n in range(max(1, vertices // 2700))]
        graph = {}
        for one in total:
            graph.update(one.__dask_graph__())
        keys = [key for one in total for key in one.__dask_keys__()]
        return Graph(to_task_spec_graph(graph), flatten_keys(keys))


def measure(graph: Graph) -> tuple[float, float]:
    """Time naming and compiling, in seconds of processor time, so that other work on the machine counts little."""
    start = time.process_time()
    around = collect_program_state(os.environ)
    recipes = ResultKeys(graph, around.digest, lambda _key: True, around.resources)
    names = [recipes.key_for(key) for key in graph.vertices]
    named = time.process_time()
    assert None not in names
    results = {key: str(number) for number, key in enumerate(graph.vertices)}
    compiler = Compiler(graph, results, Objects(), in_library=True, wrapper=None)  # type: ignore[arg-type]
    for key in graph.vertices:
        compiler.compile(key)
    return named - start, time.process_time() - named


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--branches", type=int, default=1500)
    parser.add_argument("--vertices", type=int, default=20_000)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nano.root"
        write_file(path, settings.branches)
        sys.stdout.write(f"{'files':>8} {'vertices':>9} {'naming':>9} {'compiling':>10}" + "\n")
        for open_files in (False, True):
            for vertices in (settings.vertices // 4, settings.vertices):
                graph = graph_of(path, vertices, open_files=open_files)
                naming, compiling = measure(graph)
                kind = "open" if open_files else "closed"
                sys.stdout.write(
                    f"{kind:>8} {len(graph.vertices):>9} {naming:>8.2f}s {compiling:>9.2f}s" + "\n"
                )


if __name__ == "__main__":
    main()
