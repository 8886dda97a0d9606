"""coffea: a processor over NanoAOD files through `Runner`, with its iterative executor and its executor for TaskVine."""

import json
import sys

import hist
import ndcctools.taskvine as vine
from coffea import processor
from coffea.nanoevents import NanoAODSchema
from coffea.processor import IterativeExecutor, Runner, TaskVineExecutor


class Spectrum(processor.ProcessorABC):
    def process(self, events):
        filled = hist.Hist.new.Reg(20, 0, 200).Double()
        filled.fill(events.MET.pt)
        with open("extra.txt") as extra:
            return {
                events.metadata["dataset"]: {"events": len(events), "met": filled, "extra": {extra.read()}}
            }

    def postprocess(self, accumulator):
        return accumulator


def compute(executor, files):
    run = Runner(executor, schema=NanoAODSchema, chunksize=1000)
    found = run(files, processor_instance=Spectrum(), treename="Events")
    return {
        name: [one["events"], [float(value) for value in one["met"].values(flow=True)], sorted(one["extra"])]
        for name, one in found.items()
    }


if __name__ == "__main__":
    files = json.loads(sys.argv[1])
    expected = compute(IterativeExecutor(status=False), files)
    executor = TaskVineExecutor(
        port=0, manager_name="of-coffea", status=False, ssl=True, cores=1, memory=900, disk=500, retries=2,
        treereduction=3, extra_input_files=["extra.txt"], filepath=".", resource_monitor="measure",
        fast_terminate_workers=5,
    )  # fmt: skip
    workers = vine.Factory("local", manager_name="of-coffea", ssl=True)
    workers.min_workers = 2
    workers.max_workers = 2
    workers.cores = 1
    workers.memory = 2000
    workers.disk = 4000
    with workers:
        found = compute(executor, files)
    print(json.dumps([found, expected]))
