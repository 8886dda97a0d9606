"""Parsl: a chain, a fan-in, an exception and files, on threads and through its executor for TaskVine."""

import json
import sys
from pathlib import Path

import parsl
from parsl import File, bash_app, python_app
from parsl.config import Config
from parsl.executors.taskvine import TaskVineExecutor, TaskVineFactoryConfig, TaskVineManagerConfig
from parsl.executors.threads import ThreadPoolExecutor

TIMEOUT_S = 200


@python_app
def double(x, parsl_resource_specification=None):
    return 2 * x


@python_app
def add(*numbers, parsl_resource_specification=None):
    return sum(numbers)


@python_app
def fail(x, parsl_resource_specification=None):
    raise ValueError(f"bad {x}")


@python_app
def read(inputs=(), parsl_resource_specification=None):
    return open(inputs[0].filepath).read()


@bash_app
def write(text, outputs=(), parsl_resource_specification=None):
    return f"printf {text} > {outputs[0].filepath}"


def compute(options):
    chain = 1
    for _ in range(4):
        chain = double(chain, **options)
    total = add(*[double(n, **options) for n in range(6)], chain, **options)
    failed = fail(3, **options)
    found = [chain.result(TIMEOUT_S), total.result(TIMEOUT_S), repr(failed.exception(TIMEOUT_S))]
    if options.get("parsl_resource_specification", {}).get("exec_mode") != "serverless":
        written = write("hello", outputs=[File(str(Path.cwd() / "written.txt"))], **options)
        found.append(read(inputs=[written.outputs[0]], **options).result(TIMEOUT_S))
    return found


if __name__ == "__main__":
    mode, *where = sys.argv[1:]
    specification = {"cores": 1, "memory": 200, "disk": 200}
    if mode == "threads":
        executor, options = ThreadPoolExecutor(), {}
    else:
        if mode == "serverless":
            specification["exec_mode"] = "serverless"
        options = {"parsl_resource_specification": specification}
        settings = {"port": int(where[0])} if where else {"port": 0, "project_name": "of-parsl"}
        executor = TaskVineExecutor(
            label="vine",
            worker_launch_method="manual" if where else "factory",
            manager_config=TaskVineManagerConfig(shared_fs=True, **settings),
            factory_config=TaskVineFactoryConfig(
                min_workers=1, max_workers=1, cores=2, memory=2000, disk=2000
            ),
        )
    parsl.load(Config(executors=[executor]))
    found = compute(options)
    parsl.dfk().cleanup()
    print(json.dumps(found))
