"""A function for each element of sequences, in tasks and in a library, and a reduction."""

import ndcctools.taskvine as vine


def double(x):
    return 2 * x


def multiply(pair):
    return pair[0] * pair[1]


def double_all(numbers):
    return [2 * x for x in numbers]


with vine.Manager(0) as m, vine.Factory("local", manager=m):
    print(m.map(double, range(10), chunksize=3))
    print(m.pair(multiply, [1, 2, 3], [10, 20], chunksize=2))
    print(m.tree_reduce(max, [3, 9, 2, 7, 5], chunksize=2))
    library = m.create_library_from_functions("doubles", double_all, add_env=False)
    m.install_library(library)
    print(m.remote_map("double_all", range(5), "doubles", "numbers", chunksize=2))

# prints: [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
# prints: [10, 20, 20, 40, 30, 60]
# prints: 9
# prints: [0, 2, 4, 6, 8]
