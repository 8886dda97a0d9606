"""The part of `Manager` that sets what the tasks of a category get."""

from __future__ import annotations

from vinecore import validators
from vinecore.manager.status_methods import StatusMethods
from vinecore.resources.amounts import ResourceRequest
from vinecore.resources.categories import parse_mode
from vinecore.scheduler import events


class CategoryMethods(StatusMethods):
    """The resources of tasks that are alike."""

    def set_category_mode(self, category: str | None, mode: str | int) -> None:
        """Set how a category learns the resources of its tasks.

        Parameters
        ----------
        category : str or None
            The name of the category; None for the default one.
        mode : str or int
            "fixed", "max", "min waste", "max throughput", or a bucketing mode, as in
            ``vinecore.resources.categories.MODES``; or the number of the mode there.

        Raises
        ------
        TypeError, ValueError
            There is no such mode, or the category is not a text.

        References
        ----------
        The modes have the sources that `vinecore.resources.allocation_models` names.
        """
        known = parse_mode(mode if isinstance(mode, int) else validators.text("mode", mode))
        self._server.post_event(
            events.CategorySet(validators.category("category", category), known, None, None, None)
        )

    def define_category(self, category: str, mode: str, maximum: ResourceRequest) -> None:
        """Set the mode and the maximum of a category in one event.

        Parameters
        ----------
        category : str
            The name of the category.
        mode : str
            As for `set_category_mode`.
        maximum : ResourceRequest
            As for `set_category_resources_max`.

        Raises
        ------
        ValueError
            There is no such mode.
        """
        self._server.post_event(events.CategorySet(category, parse_mode(mode), maximum, None, None))

    def set_category_resources_max(self, category: str, resources: dict[str, float]) -> None:
        """Set the maximum resources of the tasks of a category.

        It is also the request of tasks that have none.

        Parameters
        ----------
        category : str or None
            The name of the category; None for the default one.
        resources : dict of str to float
            Any of cores, memory (MB), disk (MB) and gpus.

        Raises
        ------
        TypeError, ValueError
            There is no such resource, or a value is not a number of 0 or more.
        """
        most = validators.request("resources", resources)
        self._server.post_event(
            events.CategorySet(validators.category("category", category), None, most, None, None)
        )

    def set_category_resources_min(self, category: str, resources: dict[str, float]) -> None:
        """Set the minimum resources of the tasks of a category.

        Parameters
        ----------
        category : str or None
            The name of the category; None for the default one.
        resources : dict of str to float
            Any of cores, memory (MB), disk (MB) and gpus.

        Raises
        ------
        TypeError, ValueError
            There is no such resource, or a value is not a number of 0 or more.
        """
        least = validators.request("resources", resources)
        self._server.post_event(
            events.CategorySet(validators.category("category", category), None, None, least, None)
        )
