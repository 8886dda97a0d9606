"""``python -m vinecore.make``: the command ``vine_make``."""

from __future__ import annotations

from vinecore.make.cli import main

if __name__ == "__main__":
    main()
