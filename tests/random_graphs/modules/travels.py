"""A module that is registered to travel by value."""

SHIFT = 9009


def shifted(total):
    return total + SHIFT
