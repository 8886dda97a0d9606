"""The part of `Manager` that sets what the tasks of a category get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vinecore import validators
from vinecore.manager.status_methods import StatusMethods
from vinecore.resources.amounts import ResourceRequest
from vinecore.resources.categories import QUANTA, parse_mode
from vinecore.resources.summaries import read_summaries
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

    def set_category_resources_max(self, category: str | None, rmd: Any) -> None:
        """Set the maximum resources of the tasks of a category.

        It is also the request of tasks that have none.

        Parameters
        ----------
        category : str or None
            The name of the category; None for the default one.
        rmd : dict of str to float, or object
            Any of cores, memory (MB), disk (MB) and gpus, as items or as attributes.

        Raises
        ------
        TypeError, ValueError
            There is no such resource, or a value is not a number of 0 or more.
        """
        most = validators.request("rmd", rmd)
        self._server.post_event(
            events.CategorySet(validators.category("category", category), None, most, None, None)
        )

    def set_category_resources_min(self, category: str | None, rmd: Any) -> None:
        """Set the minimum resources of the tasks of a category.

        Parameters
        ----------
        category : str or None
            The name of the category; None for the default one.
        rmd : dict of str to float, or object
            Any of cores, memory (MB), disk (MB) and gpus, as items or as attributes.

        Raises
        ------
        TypeError, ValueError
            There is no such resource, or a value is not a number of 0 or more.
        """
        least = validators.request("rmd", rmd)
        self._server.post_event(
            events.CategorySet(validators.category("category", category), None, None, least, None)
        )

    def set_resources_max(self, rmd: Any) -> None:
        """Set the maximum resources of tasks without a category.

        Parameters
        ----------
        rmd : dict of str to float, or object
            As for `set_category_resources_max`.

        Raises
        ------
        TypeError, ValueError
            There is no such resource, or a value is not a number of 0 or more.
        """
        self.set_category_resources_max(None, rmd)

    def set_resources_min(self, rmd: Any) -> None:
        """Set the minimum resources of tasks without a category.

        Parameters
        ----------
        rmd : dict of str to float, or object
            As for `set_category_resources_min`.

        Raises
        ------
        TypeError, ValueError
            There is no such resource, or a value is not a number of 0 or more.
        """
        self.set_category_resources_min(None, rmd)

    def set_category_first_allocation_guess(self, category: str | None, rmd: Any) -> None:
        """Set what tasks of a category get before enough of them are measured.

        It has an effect in the modes that learn. What it leaves out is as the maximum says.

        Parameters
        ----------
        category : str or None
            The name of the category; None for the default one.
        rmd : dict of str to float, or object
            As for `set_category_resources_max`.

        Raises
        ------
        TypeError, ValueError
            There is no such resource, or a value is not a number of 0 or more.
        """
        guess = validators.request("rmd", rmd)
        self._server.post_event(
            events.CategorySet(validators.category("category", category), None, None, None, guess)
        )

    def set_category_max_concurrent(self, category: str | None, max_concurrent: int) -> None:
        """Set how many tasks of a category may run at once.

        Calls of a library are limited by its slots instead.

        Parameters
        ----------
        category : str or None
            The name of the category; None for the default one.
        max_concurrent : int
            Number of tasks; negative for any number.

        Raises
        ------
        TypeError, ValueError
            It is no whole number, or the category is not a text.
        """
        most = validators.whole("max_concurrent", max_concurrent, -validators.MOST)
        name = validators.category("category", category)
        self._server.post_event(events.CategorySet(name, None, None, None, None, max_concurrent=most))

    def set_category_autolabel_resource(
        self, category: str | None, resource: str, autolabel: bool = True
    ) -> None:
        """Set whether a category learns a resource, in the modes that learn.

        Parameters
        ----------
        category : str or None
            The name of the category; None for the default one.
        resource : {"cores", "memory", "disk"}
            The resource. All three are learned by default.
        autolabel : bool
            Whether it is learned; else tasks get the maximum.

        Raises
        ------
        TypeError, ValueError
            The resource is not measured, or a value has a wrong type.
        """
        if resource not in QUANTA:
            validators.refuse("resource", resource, f"one of {', '.join(QUANTA)}")
        learned = {resource: validators.flag("autolabel", autolabel)}
        name = validators.category("category", category)
        self._server.post_event(events.CategorySet(name, None, None, None, None, learned=learned))

    def initialize_categories(self, filename: str | Path, rm: Any) -> None:
        """Let categories learn from the summaries of an earlier run.

        Parameters
        ----------
        filename : str or Path
            A file of JSON objects, one after another or in a list, as the resource monitor of
            TaskVine writes them: ``{"category": "fit", "wall_time": [12, "s"], "cores": [1,
            "cores"], "memory": [900, "MB"], "disk": [40, "MB"]}``. A number without a unit is
            possible, too.
        rm : dict of str to float, or object
            The maximum of each of these categories, as for `set_category_resources_max`.

        Raises
        ------
        OSError
            The file cannot be read.
        TypeError, ValueError
            It has no such summaries, or the maximum is none.
        """
        most = validators.request("rm", rm)
        measured = read_summaries(validators.path("filename", filename))
        for category, peaks in measured.items():
            self._server.post_event(events.CategorySet(category, None, most, None, None))
            self._server.post_event(events.UsageLearned(category, peaks))
