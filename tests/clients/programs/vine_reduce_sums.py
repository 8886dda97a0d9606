"""vine_reduce: sums of numbers in files, on its own local workers and through its distributor for TaskVine."""

import json
import sys
from pathlib import Path

from vine_reduce import VineReduce, serialization


def read_numbers(chunk, _dataset, _distributor=None):
    lines = open(chunk.url).read().split()
    return [int(line) for line in lines[chunk.start : chunk.stop]]


def total(numbers):
    return sum(numbers)


def total_of_squares(numbers):
    return sum(number * number for number in numbers)


def compute(folder, distributor):
    datasets = {}
    for name, sizes in (("few", (30,)), ("many", (40, 25))):
        files = {}
        for number, size in enumerate(sizes):
            path = Path.cwd() / f"{name}-{number}.txt"
            path.write_text("\n".join(map(str, range(size))))
            files[str(path)] = size
        datasets[name] = {"metadata": {}, "files": files}
    VineReduce(
        processors={"sum": total, "squares": total_of_squares},
        input=datasets,
        chunk_to_args=read_numbers,
        chunksize=10,
        minimum_chunksize=1,
        reduction_size=2,
        results_dir=folder,
        distributor=distributor,
        progress=False,
    ).compute()
    found = {}
    for path in sorted(Path(folder).glob("*/*/*")):
        if path.is_file():
            key = "/".join(path.parts[-3:-1])
            found[key] = found.get(key, 0) + serialization.load(str(path))
    return found


if __name__ == "__main__":
    if sys.argv[1] == "local":
        print(json.dumps(compute("results", None)))
    else:
        import ndcctools.taskvine as vine
        from vine_reduce import TaskVineDistributor

        distributor = TaskVineDistributor(
            port=0, resources_processor={"cores": 1, "memory_mb": 200, "disk_mb": 200}
        )
        workers = vine.Factory("local", manager=distributor.manager)
        workers.min_workers = workers.max_workers = 1
        workers.cores = 2
        with workers:
            print(json.dumps(compute("results", distributor)))
