"""The queries of the demo on pilots: nodes that have neither the packages nor the data.

As a command, ``python -m tests.cluster.adl_job FILE ADDRESS...``: compute the queries with dask's own synchronous scheduler, in a process that imports nothing
else, and write what comes out and which packages that has taken.
"""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.cluster import environment_archive
from tests.harness.http_servers import web_server

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS = ("daskvine", "vinecore", "vineworker")
NOT_NEEDED = {"pyarrow", "scipy"}  # large, and imported only where they are found
STEPS = 2


class Queries(NamedTuple):
    """What is to be computed, what has to come out, and where it can be."""

    addresses: list[str]
    expected: dict[str, tuple[Any, ...]]
    environment: Path

    def differing(self, m: Any) -> list[str]:
        """Compute all of them with a manager; give the names of those that are not what they should be, in any bin."""
        from daskvine.demo.cli import MODULES
        from daskvine.demo.queries import open_events
        from daskvine.demo.runner import differing, run_queries

        options = {
            "task_mode": "function-calls",
            "environment": self.environment,
            "import_modules": list(MODULES),
        }
        events = open_events(self.addresses, STEPS)
        results = list(run_queries(m.get, events, progress_disable=True, **options))
        assert {result.query.name for result in results} == self.expected.keys()
        return differing(results, self.expected)


@contextlib.contextmanager
def queries(folder: Path) -> Iterator[Queries]:
    """Everything that it takes, as long as a web server has the data."""
    from daskvine.demo.nanoaod import write_dataset

    paths = write_dataset(folder / "data", files=2, events=1500, seed=7)
    with web_server(folder / "data") as server:
        addresses = [f"{server.url}/{path.name}" for path in paths]
        result = folder / "expected"
        subprocess.run([sys.executable, "-m", __name__, str(result), *addresses], check=True, timeout=300)
        expected, modules = pickle.loads(result.read_bytes())
        yield Queries(
            addresses,
            expected,
            environment_archive.write(folder / "hep.tar", [*(modules - NOT_NEEDED), *OURS]),
        )


def _compute(result: Path, addresses: list[str]) -> None:
    import dask

    from daskvine.demo.queries import open_events
    from daskvine.demo.runner import run_queries

    done = run_queries(dask.get, open_events(addresses, STEPS))
    expected = {each.query.name: each.histograms for each in done}
    packages = sysconfig.get_path("purelib")
    modules = {
        name.partition(".")[0]
        for name, module in sys.modules.items()
        if (getattr(module, "__file__", None) or "").startswith(packages)
    }
    result.write_bytes(pickle.dumps((expected, modules)))


if __name__ == "__main__":
    _compute(Path(sys.argv[1]), sys.argv[2:])
