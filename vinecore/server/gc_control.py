"""Python's garbage collector, told to pass over the records of many tasks."""

from __future__ import annotations

import gc

# Objects more than before, when the collector looks through the new ones while others are frozen.
YOUNG_THRESHOLD = 50_000
# Files more than before, when all objects that there are now are frozen.
FREEZE_GROWTH = 5_000


class ObjectFreezer:
    """Freezes the objects of this process while the scheduler has many records.

    None of these records is garbage before its graph is closed. The collector would look through all of them again
    and again as they become more: with a million tasks that takes as long as all else, and seconds at a time.
    """

    def __init__(self) -> None:
        self._frozen_files = 0
        self._thresholds = gc.get_threshold()

    def update(self, files: int) -> None:
        """Freeze what there is now if there are many more files than before, and thaw it if half of them have gone."""
        if files > self._frozen_files + FREEZE_GROWTH:
            if not self._frozen_files:
                self._thresholds = gc.get_threshold()
                gc.set_threshold(max(YOUNG_THRESHOLD, self._thresholds[0]), *self._thresholds[1:])
            gc.collect(1)
            gc.freeze()
            self._frozen_files = files
        elif 2 * files < self._frozen_files:
            self.thaw()

    def thaw(self) -> None:
        """Let the collector visit all objects again; do nothing if none is frozen."""
        if self._frozen_files:
            gc.unfreeze()
            gc.set_threshold(*self._thresholds)
            self._frozen_files = 0
