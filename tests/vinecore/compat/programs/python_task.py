"""Python functions as tasks, with a result that stays on the worker, and a failure."""

import ndcctools.taskvine as vine


def square(x, offset=0):
    return x * x + offset


def add(a, b):
    return a + b


def fail():
    raise ValueError("no such thing")


with vine.Manager(0) as m, vine.Factory("local", manager=m):
    kept = vine.PythonTask(square, 5)
    kept.enable_temp_output()
    m.submit(kept)
    m.submit(vine.PythonTask(fail))
    for x in range(4):
        m.submit(vine.PythonTask(square, x, offset=10))
    results = []
    while not m.empty():
        task = m.wait(5)
        if task and task.id != kept.id:
            results.append(str(task.output) if task.successful() else f"{task.successful()} failed")
    print(sorted(results), kept.successful())

# prints: ['10', '11', '14', '19', 'False failed'] True
