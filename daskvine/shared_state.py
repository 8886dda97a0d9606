"""Share state among all computations of one manager: objects, registrations, folders, libraries, locks."""

from __future__ import annotations

import threading
from collections import Counter

from daskvine.compiler import SharedObjects
from daskvine.library_versions import LibraryVersions
from daskvine.program_folder import ProgramFolders
from daskvine.registrations import Registrations
from vinecore.manager.manager import Manager


class SharedState:
    """The state that outlives a single computation, of one manager.

    Attributes
    ----------
    objects
        Serialized objects that graphs have in common.
    registrations
        The registrations of this program with packages.
    folders
        The folders of this program.
    libraries
        The versions of the libraries that run vertices.
    adaptive_categories
        Names of the categories that were configured.
    computed_graphs
        How often each graph was computed, by a digest of what it makes.
    cache_key_lock
        Held by a computation whose results have cache keys: another one at the same time may make the same.
    workers_survive_manager
        Whether workers, and what they keep, may be there after the manager.
    workers_stop_with_manager
        Whether workers stop with their manager, and leave only what they keep for ever.
    """

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.objects = SharedObjects(manager)
        self.registrations = Registrations()
        self.folders = ProgramFolders()
        self.library_versions = LibraryVersions(manager.retire_library)
        self.adaptive_categories: set[str] = set()
        self.computed_graphs: Counter[str] = Counter()
        self.cache_key_lock = threading.Lock()
        self.workers_survive_manager = True
        self.workers_stop_with_manager = False
