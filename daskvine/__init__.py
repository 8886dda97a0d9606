"""daskvine: a dask scheduler that leaves data on the workers and keeps functions loaded in long-lived libraries."""

from __future__ import annotations

from daskvine.manager import DaskVine
from daskvine.tree_reduction import daskvine_merge

__all__ = ["DaskVine", "__version__", "daskvine_merge"]

__version__ = "0.1.0"
