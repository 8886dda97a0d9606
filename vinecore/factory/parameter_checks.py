"""Checks of the parameters of a factory that concern several of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def check_manager(*given: Any) -> None:
    """Make sure that exactly one way to the manager is given.

    Raises
    ------
    ValueError
    """
    if sum(one is not None for one in given) != 1:
        msg = "give the manager that the workers are for: Factory('local', manager=m), or manager_host_port='HOST:PORT', or manager_name='NAME'"
        raise ValueError(msg)


def check_workspace(workspace: str | Path | None, keep: bool) -> None:
    """Make sure that a folder that is kept has a name.

    Raises
    ------
    ValueError
    """
    if keep and workspace is None:
        msg = "keep_workspace=True needs a workspace that later workers can name: add workspace='my-folder'"
        raise ValueError(msg)


def check_dask_options(batch_type: str, client: Any, scheduler: str | None) -> None:
    """Make sure that a Dask cluster is given to a factory that uses one.

    Raises
    ------
    ValueError
    """
    if batch_type != "dask" and not (client is None and scheduler is None):
        msg = f"client and dask_scheduler are for 'dask', not for {batch_type!r}"
        raise ValueError(msg)
