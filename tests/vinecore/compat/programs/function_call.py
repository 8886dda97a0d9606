"""Calls of a library with a context that is loaded once."""

import ndcctools.taskvine as vine


def load(base):
    return {"base": base, "table": list(range(100))}


def look_up(index):
    from ndcctools.taskvine.utils import load_variable_from_library

    return load_variable_from_library("base") + load_variable_from_library("table")[index]


def divide(a, b):
    import math

    return math.floor(a / b)


with vine.Manager(0, name="calls-of-a-library") as m, vine.Factory("local", manager=m):
    library = m.create_library_from_functions(
        "lookup", look_up, divide, add_env=False, library_context_info=[load, [1000], {}]
    )
    library.set_function_slots(1)
    m.install_library(library)
    for index in range(5):
        m.submit(vine.FunctionCall("lookup", "look_up", index))
        m.submit(vine.FunctionCall("lookup", "divide", 100, index + 1))
    results = []
    while not m.empty():
        task = m.wait(5)
        if task:
            results.append(task.output)
    print(sorted(results), m.check_library_exists("lookup"))

# prints: [20, 25, 33, 50, 100, 1000, 1001, 1002, 1003, 1004] True
