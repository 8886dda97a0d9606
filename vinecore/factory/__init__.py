"""Ask for workers."""

from __future__ import annotations

from vinecore.factory.factory import Factory

__all__ = ["Factory"]
