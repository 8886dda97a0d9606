"""Found through PYTHONPATH by children of a program that uses `vinecore.compat`."""

from __future__ import annotations

import importlib
import sys

from vinecore import compat

# the module that the importing statement gets is the one that stands there when this ends
del sys.modules[__name__]
compat.install()
importlib.import_module(__name__)
