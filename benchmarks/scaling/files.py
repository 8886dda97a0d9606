"""How many files, connections among them, a process may have open."""

from __future__ import annotations

import resource


def allow(count: int) -> None:
    """Have this process open so many files, as far as the system lets it.

    Raises
    ------
    OSError
        It does not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        msg = f"{count} open files are needed, and this system allows {hard} (ulimit -Hn): take fewer workers"
        raise OSError(msg)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
