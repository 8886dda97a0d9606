"""Every option of ``DaskVine.get``, in one table that is also the record of the chosen values.

The fields of `Options` are the table. `_declare_option` declares each one with its default, the accepted
values, its meaning, the function that checks a value, and the older spellings that are still accepted.
Reading, validating, suggesting the nearest name after a typing error and the documentation (`describe`) all
come from these declarations, so an option cannot be accepted and undocumented, or documented and unknown.

The names, defaults and meanings are those of TaskVine's ``DaskVine.get``, except where a meaning says more.
The functions that check a single value are in `daskvine.validators`.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from daskvine import older_spellings, validators
from vinecore.manager.policy_methods import PLACEMENT_POLICIES
from vinecore.resources import categories
from vinecore.validators import suggest_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from vinecore.manager.files import File

__all__ = ["Option", "Options", "describe", "table"]

logger = logging.getLogger("daskvine")

TASK_MODES = ("tasks", "function-calls")
PRIORITY_MODES = (
    "random",
    "depth-first",
    "breadth-first",
    "longest-category-first",
    "shortest-category-first",
    "FIFO",
    "LIFO",
    "largest-input-first",
)
RESOURCES = ("cores", "memory", "disk", "gpus")

# Options of other dask schedulers and of former TaskVines, with the option that has their effect here.
_REPLACEMENTS = {
    "num_workers": "vertices run on all connected workers; start workers with DaskVine.local(workers=...), "
    "a factory or vine_worker",
    "pool": "vertices run on the manager's workers, never in a pool of this process; leave it out",
    "priority": "task_priority_mode sets the order of vertices",
}


@dataclass(frozen=True)
class Option:
    """One row of the table.

    Attributes
    ----------
    name : str
        The canonical name.
    default : object
        The value of the option if it is not given.
    accepts : str
        The accepted values, in words; part of every error about the option.
    meaning : str
        The effect of the option.
    check : Callable[[Any], Any]
        Returns the canonical form of a value, or raises TypeError or ValueError with the reason.
    aliases : tuple[str, ...]
        Older spellings.
    combine : Callable[[list[Any]], Any]
        Makes one value of the checked values of several spellings.
    requires : str or None
        The only ``task_mode`` in which the option has an effect.
    no_warning : bool
        Whether the log, instead of a warning, says that the option has no effect, because working code gives it
        often without effect.
    """

    name: str
    default: object
    accepts: str
    meaning: str
    check: validators.Check
    aliases: tuple[str, ...] = ()
    combine: Callable[[list[Any]], Any] = validators.single_spelling
    requires: str | None = None
    no_warning: bool = False

    def read(self, given: Mapping[str, object]) -> Any:
        """Return the checked value among the given keywords, or the default."""
        chosen = {
            name: given[name] for name in self.spellings if given.get(name, self.default) is not self.default
        }
        values = [self._check_value(spelling, value) for spelling, value in chosen.items()]
        return self.combine(values) if values else self.default

    @property
    def spellings(self) -> tuple[str, ...]:
        """The canonical name and the older ones."""
        return (self.name, *self.aliases)

    def _check_value(self, spelling: str, value: object) -> Any:
        try:
            return self.check(value)
        except (TypeError, ValueError) as error:
            msg = f"get() option {spelling!r} takes {self.accepts}; got {value!r}"
            detail = str(error)
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{msg}: {detail}" if detail else msg) from None


def _declare_option(default: object, accepts: str, meaning: str, check: validators.Check, **more: Any) -> Any:
    """Declare a field of `Options`: the default comes first, as in an assignment."""
    return field(default=default, metadata={"row": (default, accepts, meaning, check), "more": more})


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of one ``get``, checked, under their canonical names.

    Made by `parse`. The meaning of every field is in the table that `describe` renders.
    """

    environment: File | str | None = _declare_option(
        None,
        "a File, or the path of a packed environment",
        "Packed environment in which vertices run; a path is declared with `declare_poncho`.",
        validators.environment,
    )
    extra_files: Mapping[File, str] | None = _declare_option(
        None,
        "a dict {File: name in the sandbox}",
        "Files that every vertex has in its working folder.",
        validators.extra_files,
    )
    worker_transfers: bool = _declare_option(
        True,
        "True or False",
        "Whether intermediate results stay on the workers and move between them. With False each result is brought to the "
        "manager. If several spellings are given, False in one of them wins.",
        validators.boolean,
        aliases=("lazy_transfers", "peer_transfers"),
        combine=all,
    )
    env_vars: Mapping[str, str | Callable[..., str]] | None = _declare_option(
        None,
        "a dict {name: text, or a function (manager, task) that returns text}",
        "Environment variables of every vertex.",
        validators.env_vars,
    )
    checkpoint_fn: Callable[..., bool] | None = _declare_option(
        None,
        "a function (dag, key)",
        "Called for each vertex that is not a target. If it returns True, the result is copied to the manager, "
        "where it survives the loss of a worker.",
        validators.function,
    )
    resources: Mapping[str, float] | None = _declare_option(
        None,
        "a dict with any of cores, memory (MB), disk (MB), gpus",
        "Resources that one vertex gets, and may use at most.",
        validators.resources(RESOURCES),
        requires="tasks",
    )
    resources_mode: str | None = _declare_option(
        None,
        validators.describe_choices(categories.MODES),
        "How allocations are learnt from measured usage. By default a vertex gets `resources`, or a whole worker.",
        validators.one_of(categories.MODES),
        requires="tasks",
        no_warning=True,
    )
    task_mode: str = _declare_option(
        "tasks",
        validators.describe_choices(TASK_MODES),
        "Whether each vertex has a process and a sandbox of its own, or is a call of a library that is started once on "
        "each worker.",
        validators.one_of(TASK_MODES),
    )
    lib_extra_functions: tuple[Callable[..., Any], ...] | None = _declare_option(
        None,
        "a list of functions",
        "Functions of the library besides the one that runs vertices, for `FunctionCall`.",
        validators.functions,
        requires="function-calls",
    )
    lib_resources: Mapping[str, float] | None = _declare_option(
        None,
        "a dict with any of cores, slots (1 or more), memory (MB), disk (MB), gpus",
        "Total resources of a library, and the number of calls that it runs at the same time (by default one per core).",
        validators.resources((*RESOURCES, "slots")),
        requires="function-calls",
    )
    lib_command: str | None = _declare_option(
        None,
        "a command line as text",
        "Command that is put before the command line that starts the library.",
        validators.text,
        requires="function-calls",
    )
    lib_modules: tuple[str, ...] | None = _declare_option(
        None,
        "a list of modules or module names",
        "Modules that the library imports once, before its slots are forked. If several spellings are given, they are "
        "merged.",
        validators.modules,
        aliases=("import_modules", "hoisting_modules"),
        combine=validators.merge_spellings,
        requires="function-calls",
    )
    task_priority_mode: str | None = _declare_option(
        None,
        validators.describe_choices(PRIORITY_MODES),
        "Which ready vertex runs first. The default is dask's static order: depth first.",
        validators.one_of(PRIORITY_MODES),
    )
    scheduling_mode: str = _declare_option(
        "files",
        validators.describe_choices(PLACEMENT_POLICIES),
        "Which worker a vertex is sent to: the one with most bytes of its inputs, the fastest so far, a random one, "
        "the one with most free resources, the one with most free disk, the first that fits.",
        validators.one_of(PLACEMENT_POLICIES),
    )
    retries: int | None = _declare_option(
        None,
        "an integer, 0 or more",
        "How often a vertex runs again that has raised an exception, or whose worker, process or sandbox failed. "
        "By default an exception is raised at once, and a vertex whose worker failed runs again up to 4 times. "
        "`dask.annotate(retries=n)` sets it for single vertices; dask drops annotations of arrays and bags: see "
        "[remedies](processes.md#annotations).",
        validators.integer(least=0),
    )
    submit_per_cycle: int | None = _declare_option(
        None,
        "an integer; below 1 is no limit",
        "Number of vertices that are submitted together.",
        validators.positive_or_none,
    )
    max_pending: int | None = _declare_option(
        None,
        "an integer; below 1 is no limit",
        "Number of submitted vertices without a result at which the submission pauses.",
        validators.positive_or_none,
    )
    verbose: bool = _declare_option(
        False, "True or False", "Print the worker of each vertex.", validators.boolean
    )
    show_output: bool = _declare_option(
        True,
        "True or False",
        "Show the output, log records and warnings of vertices, with their keys; of a long output the end.",
        validators.boolean,
    )
    env_per_task: bool = _declare_option(
        False,
        "True or False",
        "Whether each task unpacks its own copy of the environment, which has to be a path.",
        validators.boolean,
        requires="tasks",
    )
    progress_disable: bool = _declare_option(
        False, "True or False", "Whether the progress display is switched off.", validators.boolean
    )
    progress_label: str = _declare_option(
        "[green]tasks", "text", "Label of the progress bar.", validators.text
    )
    reconstruct: bool | None = _declare_option(
        None,
        "True, False or None",
        "Whether wide merges run as trees. True: those of `daskvine_merge`, dask-histogram and coffea's `accumulate`, and "
        "sums of lists. False: none. By default those of dask-histogram and `accumulate` with more than 8 inputs.",
        validators.boolean,
    )
    merge_size: int = _declare_option(
        2,
        "an integer, 2 or more",
        "Number of inputs of each merge of these trees, with `reconstruct=True`.",
        validators.integer(least=2),
    )
    wrapper: Callable[..., Any] | None = _declare_option(
        None,
        "a function (vertex, arguments) that returns (extra, result)",
        "Called on the worker to run each vertex; `extra` is passed to `wrapper_proc`.",
        validators.function,
    )
    wrapper_proc: Callable[[Any], object] = _declare_option(
        print,
        "a function of one argument",
        "Called in the program with the `extra` that `wrapper` has returned.",
        validators.function,
    )
    reuse: bool | Callable[..., Any] | None = _declare_option(
        None,
        "True, False, or a function (key) that returns whether the vertex always makes the same",
        "With True, a vertex with the code, arguments, inputs, environment and packages of an earlier computation does not "
        "run again if workers still have its result ([reuse.md](reuse.md)). Results stay on the workers until their disk "
        "space is needed. If it is not given, a manager with `resume=True` continues an interrupted graph only.",
        validators.boolean_or_function,
    )
    prune_depth: int = _declare_option(
        1,
        "an integer, 0 or more",
        "After how many generations of consumers an intermediate result is deleted; 0 keeps it to the end of the "
        "computation. A larger number makes the recovery of a lost file cheaper.",
        validators.integer(least=0),
    )

    @classmethod
    def parse(cls, kwargs: Mapping[str, Any]) -> Options:
        """Check the keywords of one ``get``.

        Parameters
        ----------
        kwargs : Mapping[str, Any]
            Options in any accepted spelling.

        Returns
        -------
        Options
            The checked values.

        Raises
        ------
        TypeError
            For an unknown option, with the nearest one, and for a value of a wrong type.
        ValueError
            For any other value that the option does not take.

        Warns
        -----
        FutureWarning
            For each spelling of an earlier TaskVine, with the one of today.
        UserWarning
            For most options that have no effect in the chosen ``task_mode``; the log has the others.
        """
        kwargs = older_spellings.replace(kwargs)
        rows = table()
        _refuse_unknown(kwargs, rows)
        options = cls(**{row.name: row.read(kwargs) for row in rows})
        if options.env_per_task and not isinstance(options.environment, str):
            msg = f"get() option 'env_per_task' needs environment to be a path; got {options.environment!r}"
            raise ValueError(msg)
        _warn_without_effect(kwargs, rows, options)
        return options


def table() -> list[Option]:
    """Return one row for each option, in the order of the documentation."""
    return [Option(f.name, *f.metadata["row"], **f.metadata["more"]) for f in fields(Options)]


def describe() -> str:
    """Return the table of options as Markdown."""
    lines = ["| option | default | takes | meaning |", "| --- | --- | --- | --- |"]
    for row in table():
        names = f"`{row.name}`" + "".join(f"<br>`{alias}`" for alias in row.aliases)
        default = "`print`" if row.default is print else f"`{row.default!r}`"
        only = f" Only with `task_mode={row.requires!r}`." if row.requires else ""
        lines.append(f"| {names} | {default} | {row.accepts} | {row.meaning}{only} |")
    return "\n".join(lines) + "\n"


def _refuse_unknown(kwargs: Iterable[str], rows: list[Option]) -> None:
    known = [spelling for row in rows for spelling in row.spellings]
    for name in kwargs:
        if name in known:
            continue
        hint = _REPLACEMENTS.get(name)
        raise TypeError(
            f"get() got an unknown option {name!r}" + (f": {hint}" if hint else suggest_name(name, known))
        )


def _warn_without_effect(kwargs: Mapping[str, Any], rows: list[Option], options: Options) -> None:
    for row in rows:
        if row.requires is None or row.requires == options.task_mode:
            continue
        for spelling in row.spellings:
            if not kwargs.get(spelling):
                continue
            text = (
                f"get() option {spelling!r} has no effect with task_mode={options.task_mode!r}; "
                f"it belongs to task_mode={row.requires!r}"
            )
            if row.no_warning:
                logger.info(text)
            else:
                warnings.warn(text, stacklevel=3)
