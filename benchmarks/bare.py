"""What there is without a scheduler: the ceiling for everybody on this machine, on this day."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import data
from benchmarks.contenders import Contestant
from benchmarks.jobs import Job, Prepare
from benchmarks.pipeline import Pipeline
from benchmarks.sizes import SLOTS, Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Bare:
    """Processes, and nobody who decides."""

    def calls(self) -> contextlib.AbstractContextManager[Prepare]:
        return _pipeline(SLOTS, 1, lambda size: size.calls)

    def batched(self) -> contextlib.AbstractContextManager[Prepare]:
        return _pipeline(SLOTS, 32, lambda size: 5 * size.calls)

    def chain(self) -> contextlib.AbstractContextManager[Prepare]:
        return _pipeline(1, 1, lambda size: size.hops)

    @contextlib.contextmanager
    def transfer(self) -> Iterator[Prepare]:
        """Time a sendfile process and this one, which writes the data to a new file."""
        with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
            folder, ports = Path(name), dict[int, int]()

            def prepare(size: Size, _part: str) -> Job:
                if size.file_mb not in ports:
                    source = data.write_noise(folder / f"source{size.file_mb}", size.file_mb)
                    ports[size.file_mb] = stack.enter_context(data.sender(source))
                target = folder / "target"
                target.unlink(missing_ok=True)
                port, expected = ports[size.file_mb], size.file_mb * data.MB
                return Job(expected / 1e9, lambda: data.receive(port, target), expected)

            yield prepare

    compared = transfer  # nothing compares, nobody waits

    @contextlib.contextmanager
    def load(self) -> Iterator[Prepare]:
        """Time plain pickle loading an array."""
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "array"
            yield lambda size, _part: Job(1, lambda: data.grown_by_pickle(path, size.array_mb), measures=True)

    @contextlib.contextmanager
    def adl(self) -> Iterator[Prepare]:
        """Each process computes the query on its share of the files, with the synchronous scheduler."""
        with contextlib.ExitStack() as stack:
            team = [
                stack.enter_context(contextlib.closing(Contestant("synchronous", "adl")))
                for _ in range(SLOTS)
            ]
            for member in team:
                member.ready()

            def prepare(size: Size, part: str) -> Job:
                shares = [paths for n in range(SLOTS) if (paths := size.paths[n::SLOTS])]
                busy = team[: len(shares)]
                for member, paths in zip(busy, shares, strict=True):
                    member.prepare(replace(size, paths=paths), part)

                def run() -> list[Any]:
                    for member in busy:
                        member.start()
                    results = [member.outcome().result for member in busy]
                    return [sum(histograms) for histograms in zip(*results, strict=True)]

                return Job(1, run)

            yield prepare


@contextlib.contextmanager
def _pipeline(slots: int, in_flight: int, count: Callable[[Size], int]) -> Iterator[Prepare]:
    with contextlib.closing(Pipeline(slots)) as pipeline:

        def prepare(size: Size, _part: str) -> Job:
            calls = count(size)
            return Job(calls, lambda: pipeline.run(calls, in_flight), calls * (calls + 1) // 2)

        yield prepare
