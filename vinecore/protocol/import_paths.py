"""What Python processes of ours are to import from, without telling all that they start.

``PYTHONPATH`` is inherited. What a worker and its libraries need in it, among that the standard library of their own Python, would break another Python that a task
starts. So the variable is lent for the start of a process, with what the user has in it beside, and given back by that process as soon as it runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

USER_PYTHONPATH = "VINE_PYTHONPATH"
"""What the user has in ``PYTHONPATH``; empty for nothing."""


def lend_python_path(paths: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Give the variables with which a process starts that imports from these paths.

    Parameters
    ----------
    variables
        As the user has them.
    """
    return {**variables, "PYTHONPATH": paths, USER_PYTHONPATH: variables.get("PYTHONPATH", "")}


def restore_python_path() -> None:
    """Have ``PYTHONPATH`` be the user's again for all that this process starts."""
    own = os.environ.pop(USER_PYTHONPATH, None)
    if own:
        os.environ["PYTHONPATH"] = own
    elif own is not None:
        os.environ.pop("PYTHONPATH", None)
