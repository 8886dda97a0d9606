"""An executor whose futures are arguments of further calls, which wait for them on the workers."""

import ndcctools.taskvine as vine


def add(a, b):
    return a + b


def total(numbers):
    return sum(numbers)


def fail():
    raise ValueError("no such thing")


executor = vine.FuturesExecutor(port=0, batch_type="local", opts={"min-workers": 1, "max-workers": 1})
first = executor.submit(add, 1, 2)
second = executor.submit(add, first, 10)
task = executor.future_task(add, second, 100)
task.set_cores(1)
third = executor.submit(task)
failed = executor.submit(fail)
done, not_done = vine.futures.wait([first, second, third])
print(len(done), len(not_done), third.result(), type(failed.exception()).__name__)
print(sorted(future.result() for future in vine.futures.as_completed([first, second])))
print(executor.map(abs, [-1, -2, 3], chunk_size=2).result())
print(executor.reduce(total, range(10), chunk_size=4, fn_arity=5).result())
print(executor.allpairs(add, [1, 2], [10, 20], chunk_size=2).result())
library = executor.create_library_from_functions("adds", add, add_env=False)
executor.install_library(library)
print(executor.submit(executor.future_funcall("adds", "add", 5, 6)).result())

# prints: 3 0 113 ValueError
# prints: [3, 13]
# prints: [1, 2, 3]
# prints: 45
# prints: [[11, 21], [12, 22]]
# prints: 11
