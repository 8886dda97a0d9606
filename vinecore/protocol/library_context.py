"""Variables that a library's context function has made, for `load_variable_from_library`."""

from __future__ import annotations

from typing import Any

context_variables: dict[str, Any] = {}
MISSING = object()
registered: dict[str, dict[Any, Any]] = {}
"""What was in registries of packages before something of the program's was put there, by kind; `MISSING` where there was nothing."""
registered_ns = [0]
"""When the program had registered that, by its clock."""
