"""Settings of a program's process that decide what code computes there, for its calls elsewhere.

- what NumPy does about floating-point errors (`numpy.seterr`), the context of `decimal`, the options of pandas;
- the recursion limit, where it is raised, and how many digits an integer may have as text;
- variables of the environment that the program has set or removed since some moment.

Only what differs from the defaults is collected, as flat dictionaries of plain values; nothing of a package that is not imported.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Mapping
from typing import Any

from vinecore.protocol.library_context import MISSING

PACKAGES = {
    "numpy": "numpy",
    "decimal": "decimal",
    "pandas": "pandas",
    "interpreter": "sys",
    "variables": "os",
}
"""What has to be imported before settings of a kind can be put in place."""
DEFAULT_NUMPY_ERRORS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
DEFAULT_DECIMAL_CONTEXT = {
    "prec": 28, "rounding": "ROUND_HALF_EVEN", "Emin": -999999, "Emax": 999999, "capitals": 1, "clamp": 0,
    "traps": "DivisionByZero InvalidOperation Overflow",
}  # fmt: skip
PANDAS_PREFIXES = ("compute.", "display.", "future.", "io.", "mode.", "styler.")
"""Beginnings of the names of options that count; those of plots are for a program with a screen."""
DEFAULT_RECURSION_LIMIT = 1000
PROCESS_VARIABLES = (
    "_", "PWD", "OLDPWD", "SHLVL", "TMPDIR", "TEMP", "TMP", "PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "HOME", "USER", "LOGNAME",
    "HOSTNAME", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
"""Variables that say where a process is and what it may use: each has its own."""
TOOL_PREFIXES = ("VINE_", "CONDA_", "PYTEST_")


def collect_settings(before: Mapping[str, str], chosen: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Find the settings of this process that are not the usual ones, by kind.

    Parameters
    ----------
    before
        Variables of the environment as they were at the moment from which on changes count.
    chosen
        Variables that do not count, because calls get them otherwise.
    """
    found = {
        "numpy": _numpy_errors(),
        "decimal": _decimal_context(),
        "pandas": _pandas_options(),
        "interpreter": _interpreter_settings(),
        "variables": _changed_variables(before, chosen),
    }
    return {kind: content for kind, content in found.items() if content}


def _numpy_errors() -> dict[str, Any]:
    numpy: Any = sys.modules.get("numpy")
    if not hasattr(numpy, "geterrcall"):
        return {}
    errors = {name: what for name, what in numpy.geterr().items() if DEFAULT_NUMPY_ERRORS.get(name) != what}
    return {"call": numpy.geterrcall(), **errors} if {"call", "log"} & {*errors.values()} else errors


def _decimal_context() -> dict[str, Any]:
    decimal: Any = sys.modules.get("decimal")
    if not hasattr(decimal, "getcontext"):
        return {}
    context = decimal.getcontext()
    return {
        name: now
        for name, usual in DEFAULT_DECIMAL_CONTEXT.items()
        if (now := _read_decimal(context, name)) != usual
    }


def _read_decimal(context: Any, name: str) -> Any:
    if name == "traps":
        return " ".join(sorted(signal.__name__ for signal, traps in context.traps.items() if traps))
    return getattr(context, name)


def _pandas_options() -> dict[str, Any]:
    config: Any = sys.modules.get("pandas._config.config")
    registered = getattr(config, "_registered_options", {})
    found = {}
    for name, option in registered.items():
        value = _read_pandas_option(config, name)
        if (
            name.startswith(PANDAS_PREFIXES)
            and value != option.defval
            and isinstance(value, (str, int, float, type(None)))
        ):
            found[name] = value
    return found


def _read_pandas_option(config: Any, name: str) -> Any:
    found = config._global_config  # noqa: SLF001 - to ask for each by its name warns of those that are old
    for part in name.split("."):
        found = found.get(part, MISSING) if isinstance(found, dict) else MISSING
    return found


def _interpreter_settings() -> dict[str, Any]:
    found: dict[str, Any] = {}
    if sys.getrecursionlimit() > DEFAULT_RECURSION_LIMIT:
        found["recursion"] = sys.getrecursionlimit()
    digits = getattr(sys, "get_int_max_str_digits", None)
    if digits is not None and digits() != sys.int_info.default_max_str_digits:
        found["digits"] = digits()
    return found


def _changed_variables(before: Mapping[str, str], chosen: Collection[str]) -> dict[str, Any]:
    now = dict(os.environ)
    changed = (name for name in {**before, **now} if before.get(name) != now.get(name))
    return {
        name: now.get(name)
        for name in sorted(changed)
        if name not in chosen and name not in PROCESS_VARIABLES and not name.startswith(TOOL_PREFIXES)
    }


def apply_setting(kind: str, name: str, value: Any) -> Any:
    """Put one setting in place here; give what was there. `MISSING` is a setting that this process has not."""
    return MISSING if value is MISSING else SETTERS[kind](name, value)


def _set_numpy(name: str, value: Any) -> Any:
    numpy = sys.modules["numpy"]
    return numpy.seterrcall(value) if name == "call" else numpy.seterr(**{name: value})[name]


def _set_decimal(name: str, value: Any) -> Any:
    context = sys.modules["decimal"].getcontext()
    before = _read_decimal(context, name)
    if name != "traps":
        setattr(context, name, value)
        return before
    chosen = value.split()
    for signal in context.traps:
        context.traps[signal] = signal.__name__ in chosen
    return before


def _set_pandas_option(name: str, value: Any) -> Any:
    config: Any = sys.modules["pandas._config.config"]
    before = _read_pandas_option(config, name)
    try:
        config.set_option(name, value)
    except (KeyError, ValueError):  # another pandas, which has no such option
        return MISSING
    return before


def _set_interpreter(name: str, value: Any) -> Any:
    if name == "recursion":
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(value)
        return before
    if not hasattr(sys, "set_int_max_str_digits"):
        return MISSING
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(value)
    return before


def _set_variable(name: str, value: Any) -> Any:
    before = os.environ.get(name)
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
    if name == "TZ":
        time.tzset()
    return before


SETTERS = {
    "numpy": _set_numpy,
    "decimal": _set_decimal,
    "pandas": _set_pandas_option,
    "interpreter": _set_interpreter,
    "variables": _set_variable,
}
