"""Pools of processes inside of tasks: their pickles take what the program has defined.

`multiprocessing` and `concurrent.futures.ProcessPoolExecutor` pickle functions and classes by name.
In a task those of the program's main module have no name that can be looked up: they have come by
value. They go on to the pool's processes by value, too, in each of the start methods.
"""

from __future__ import annotations

import pickle
import types
from typing import Any

from vinecore.protocol.import_hooks import call_when_imported
from vinecore.protocol.serialization.importable_names import is_found_by_name
from vinecore.protocol.serialization.pickling import cloudpickle_dumps


def prepare_pools() -> None:
    """Extend the pickler of `multiprocessing` in this process, as soon as that is imported."""
    call_when_imported("multiprocessing.reduction", _extend_pickler)


def _extend_pickler(reduction: Any) -> None:
    reduction.ForkingPickler.reducer_override = _reduce_by_value


def _reduce_by_value(_pickler: Any, obj: Any) -> Any:
    """Reduce a function or class that cannot be found by its name."""
    if not isinstance(obj, (types.FunctionType, type)) or is_found_by_name(obj):
        return NotImplemented
    return load_by_value, (cloudpickle_dumps(obj),)


def load_by_value(data: bytes) -> Any:
    """Load what was reduced by value; prepare the process, so that its own answers travel as well."""
    prepare_pools()
    return pickle.loads(data)
