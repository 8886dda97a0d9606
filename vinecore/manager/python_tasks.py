"""Tasks that are Python functions: in a process of their own, or calls of a library."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from vinecore import validators
from vinecore.cache_level import parse_cache_level
from vinecore.errors import FunctionCallNoResult, PythonTaskNoResult
from vinecore.manager.arguments import dump_arguments
from vinecore.manager.files import File
from vinecore.manager.tasks import Task
from vinecore.protocol.serialization import values
from vinecore.resources.amounts import UNSPECIFIED
from vinecore.scheduler.specs import TaskSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from vinecore.manager.interfaces import TaskHost

DISCARD_RESULT = {"once": True}
NOT_LOADED = object()
NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})


class PythonTask(Task):
    """A call of a Python function in a process of its own.

    Parameters
    ----------
    function : callable
        The function, which is sent by value, once to each worker.
    *args, **kwargs : object
        Its arguments. A `File` among them is replaced by the value that it holds.

    Raises
    ------
    TypeError
        ``function`` cannot be called.

    Examples
    --------
    >>> m.submit(PythonTask(pow, 2, 10))  # doctest: +SKIP
    >>> print(m.wait().output)
    """

    _output_file: File | None = None
    _output_level = ""
    _temp_output = _raw = False
    _value: Any = NOT_LOADED
    _problem: Exception | None = None  # of a result that could not be loaded here
    _no_result_class: type[PythonTaskNoResult] = PythonTaskNoResult

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if not callable(function):
            msg = f"{function!r} cannot be called: give the function itself, then its arguments"
            raise TypeError(msg)
        self._function, self._args, self._kwargs = function, args, kwargs

    def set_command(self, command: str) -> None:
        """Reject the call: the task runs its function.

        Parameters
        ----------
        command : str
            Any command.

        Raises
        ------
        TypeError
            Always.
        """
        msg = f"a PythonTask runs its function, and no command: use Task({command!r})"
        raise TypeError(msg)

    def set_library_required(self, library: str) -> None:
        """Reject the call: the task has a process of its own.

        Parameters
        ----------
        library : str
            Any library.

        Raises
        ------
        TypeError
            Always.
        """
        msg = f"a PythonTask has a process of its own: use FunctionCall({library!r}, ...)"
        raise TypeError(msg)

    @property
    def called_function(self) -> Callable[..., Any] | None:
        """The function that the task calls; None for one of a library."""
        return self.__dict__.get("_function")

    def set_library_provided(self, library_name: str) -> None:
        """Reject the call: a command is needed that starts a program.

        Parameters
        ----------
        library_name : str
            Any name.

        Raises
        ------
        TypeError
            Always.
        """
        msg = f"the function of {type(self).__name__} cannot be a library: use Task(command, library_provided={library_name!r}), or m.create_library_from_functions"
        raise TypeError(msg)

    def enable_temp_output(self) -> None:
        """Leave the result on the worker, as `output_file`, for arguments of further tasks."""
        self._temp_output = True

    def disable_temp_output(self) -> None:
        """Bring the result to the manager (the default)."""
        self._temp_output = False

    def set_output_cache(self, cache: int | str = False) -> None:
        """Make the result, which comes to the manager, a file for further tasks: `output_file`.

        Parameters
        ----------
        cache : bool, int or str
            How long workers keep it, as for `Manager.declare_file`.

        Raises
        ------
        ValueError
            There is no such cache level.
        """
        self._output_level = parse_cache_level(cache)

    @property
    def output_file(self) -> File | None:
        """The file with the result, as an input of further tasks.

        After the submission of a task with `enable_temp_output` it is on workers. Otherwise it is
        also at the manager: after the submission of a task with `set_output_cache`, and else when
        the task has succeeded. Its `source` is then a path. What it has is a pickle of the value,
        or the bytes of a task with `disable_output_serialization`. (Arrays of 4 KB and more follow
        the pickle: give the file as an argument of another task to have it loaded.)
        """
        ended = self.outcome
        if self._output_file is None and ended is not None and ended.outcome == "success":
            assert self.id is not None
            assert self._manager is not None
            content = ended.payload
            if not content and self._value is not NOT_LOADED:
                # it was released when it was loaded
                content = bytes(self._value) if self._raw else values.dumps(self._value)
            self._output_file = self._manager.declare_ended_output(self.id, content)
        return self._output_file

    def _declare_output(self, manager: TaskHost, result: str) -> None:
        """Declare the result as a file, if it is to be one."""
        self._output_file = None
        if self._temp_output:
            self._output_file = manager.declare_result(result)
        elif self._output_level:
            self._output_file = manager.declare_output(result, self._output_level)

    def disable_output_serialization(self) -> None:
        """Write the bytes that the function returns to the output unchanged."""
        self._raw = True

    @property
    def output(self) -> Any:
        """The value that the function returned, or the exception that it raised.

        If the function did not come to its end it is a `PythonTaskNoResult`, or for a call a
        `FunctionCallNoResult`. None before the end. A result that is on a worker is brought to the
        manager.
        """
        ended = self.outcome
        if ended is None:
            return None
        if ended.outcome != "success":
            error = self.error()
            if ended.payload:
                # of the function, or of what its library has loaded
                return error
            lacking = self._no_result_class(str(error))
            lacking.__cause__ = error
            return lacking
        self._load()
        return self._value if self._problem is None else self._problem

    def successful(self) -> bool:
        """Return whether the function has returned a value that can be loaded here.

        Returns
        -------
        bool
            A result that stays on a worker is not loaded for this.
        """
        return super().successful() and self._problem_of_result() is None

    def error(self) -> BaseException | None:
        """Return the reason why there is no value, as an exception.

        Returns
        -------
        BaseException or None
            None if the task succeeded, or has not ended.
        """
        return super().error() or self._problem_of_result()

    def _title(self) -> str:
        return f"task {self.id} ({getattr(self._function, '__qualname__', type(self._function).__name__)})"

    def _problem_of_result(self) -> Exception | None:
        if self.outcome is not None and self.outcome.outcome == "success" and not self._temp_output:
            with contextlib.suppress(FileNotFoundError):  # it went with the manager
                self._load()
        return self._problem

    def _load(self) -> None:
        """Load the result, once."""
        if self._value is NOT_LOADED and self._problem is None:
            assert self.id is not None
            assert self.manager is not None
            assert self.outcome is not None
            self._value, self._problem = self.manager.load_result(
                self.id, self.outcome, self._output_file, raw=self._raw
            )

    def _dump_arguments(self) -> tuple[bytes, tuple[str, ...]]:
        """Serialize the arguments; return them with the cache names of the files among them."""
        return dump_arguments(self._args, self._kwargs)

    def make_spec(self, manager: TaskHost, number: int) -> TaskSpec:
        """Describe the task for the scheduler; function and arguments are serialized.

        Parameters
        ----------
        manager : TaskHost
            The manager that runs the task.
        number : int
            The number of the task.

        Returns
        -------
        TaskSpec
            The task as the scheduler gets it.
        """
        function = manager.declare_shared(self._function)
        payload, inputs = self._dump_arguments()
        options = self._common_options(manager)
        self._value, self._problem = NOT_LOADED, None
        if self._raw:
            options["raw"] = True
        result = manager.result_name(number)
        self._declare_output(manager, result)
        if self._output_file is None:
            options["once"] = True
        return self._spec(number, function=function, shared=(function,), inputs=inputs, payload=payload, result=result,
                          wants_result=not self._temp_output, options=options)  # fmt: skip


class FunctionCall(PythonTask):
    """A call of a function of an installed library, in one of its slots.

    Parameters
    ----------
    library : str
        The name of the library.
    function : str
        The name of the function.
    *args, **kwargs : object
        Its arguments. A `File` among them is replaced by the value that it holds.

    Raises
    ------
    TypeError, ValueError
        A name is not a text, or empty.

    Notes
    -----
    A call with inputs or outputs runs in a sandbox of its own, where it finds its inputs and those of
    its library; another call runs in the folder of its library.

    A call takes one slot of its library, and may use what the library has. With ``set_cores``,
    ``set_memory``, ``set_disk`` or ``set_gpus``, `Manager.submit` rejects a call that needs more
    than its library; they have no other effect.
    """

    _no_result_class = FunctionCallNoResult

    def __init__(self, library: str, function: str, *args: Any, **kwargs: Any) -> None:
        if type(library) is not str or type(function) is not str:
            library, function = validators.label("library", library), validators.label("function", function)
        self._library, self._name, self._args, self._kwargs = library, function, args, kwargs

    def _title(self) -> str:
        return f"task {self.id} ({self._name} of the library {self._library})"

    def add_environment(self, *_arguments: Any) -> NoReturn:
        """Reject the call: a call runs in the environment of its library.

        Raises
        ------
        TypeError
            Always, with the method of the library.
        """
        refuse_for_call("add_environment", "it runs in its library's: library.add_environment(file)")

    def add_starch_package(self, *_arguments: Any) -> NoReturn:
        """Reject the call: a call runs in the environment of its library.

        Raises
        ------
        TypeError
            Always, with the method of the library.
        """
        refuse_for_call(
            "add_starch_package", "it runs in its library's environment: library.add_environment(file)"
        )

    def set_command(self, command: str) -> None:
        """Set the function.

        Parameters
        ----------
        command : str
            The name of a function of the library.

        Raises
        ------
        TypeError, ValueError
            It is not a text, or empty.
        """
        self._name = validators.label("command", command)

    def set_library_required(self, library: str) -> None:
        """Set the library.

        Parameters
        ----------
        library : str
            The name of an installed library.

        Raises
        ------
        TypeError, ValueError
            It is not a text, or empty.
        """
        self._library = validators.label("library", library)

    def get_library_required(self) -> str:
        """Return the name of the library.

        Returns
        -------
        str
            As given to the constructor, or to `set_library_required`.
        """
        return self._library

    def set_fn_args(self, args: Iterable[Any] = (), kwargs: Mapping[str, Any] = NO_ARGUMENTS) -> None:
        """Set the arguments of the function.

        Parameters
        ----------
        args : iterable of object
            The positional arguments.
        kwargs : dict of str to object
            The keyword arguments.
        """
        self._args, self._kwargs = tuple(args), dict(kwargs)

    def set_function_slots(self, nslots: int) -> NoReturn:
        """Reject the call: a call has one slot.

        Parameters
        ----------
        nslots : int
            Any number.

        Raises
        ------
        TypeError
            Always, with the method of the library.
        """
        refuse_for_call("set_function_slots", f"its library has slots: library.set_function_slots({nslots})")

    def add_nopen(self, manager: Any) -> NoReturn:
        """Reject the call: the processes of a library run already.

        Parameters
        ----------
        manager : Manager
            Any manager.

        Raises
        ------
        TypeError
            Always, with the method of the library.
        """
        refuse_for_call("add_nopen", "LD_PRELOAD counts when its library starts: library.set_env_var")

    def set_exec_method(self, remote_task_exec_method: str) -> None:
        """Set whether this call has a process of its own.

        Parameters
        ----------
        remote_task_exec_method : {"fork", "direct"}
            "fork" for a child process, "direct" for the process of the slot. The default is the
            ``exec_mode`` of the library.

        Raises
        ------
        TypeError, ValueError
            It is neither.
        """
        self._exec_mode = validators.exec_mode("remote_task_exec_method", remote_task_exec_method)

    def make_spec(self, manager: TaskHost, number: int) -> TaskSpec:
        """Describe the call for the scheduler; its arguments are serialized.

        Parameters
        ----------
        manager : TaskHost
            The manager that runs the call.
        number : int
            The number of the task.

        Returns
        -------
        TaskSpec
            The task as the scheduler gets it.

        Raises
        ------
        ValueError
            The library is not installed, has no such function, or has fewer resources than the call
            needs.
        """
        library = manager.full_library_name(self._library, self._name)
        if self._request is not UNSPECIFIED:
            manager.check_share(self._library, self._request)
        payload, inputs = self._dump_arguments()
        result = manager.result_name(number)
        self._value, self._problem = NOT_LOADED, None
        wanted: tuple[str, ...] = (result,)
        options: dict[str, Any] = DISCARD_RESULT
        self._declare_output(manager, result)
        if self._output_file is not None:
            wanted, options = () if self._temp_output else wanted, {}
        if self._raw:
            options = {**options, "raw": True}
        if self._time_max is not None:
            options = {**options, "time_max": self._time_max}
        if self._variables:
            options = {**options, "env": self._variables}
        outputs: tuple[str, ...] = ()
        if self._exec_mode:
            options = {**options, "fork": self._exec_mode == "fork"}
        if self._inputs_with_names or self._outputs:
            options = {**options, **self._common_options(manager)}
            outputs = tuple(file.cache_name for file in self.outputs)
            wanted += tuple(file.cache_name for file in self.outputs if file.kind in ("file", "buffer"))
        return TaskSpec(number, f"{self._name} (task {number})", result, 0, library, self._name, payload, (), inputs, self._inputs, outputs, wanted,
                        self.category, priority=-self.priority, retries=self._retries, options=options, conditions=self.make_conditions())  # fmt: skip


def refuse_for_call(setter: str, instead: str) -> NoReturn:
    """Raise the error for a setter that function calls do not have, with the alternative."""
    msg = f"{setter} is not for a function call: {instead}. A PythonTask has a process, a folder and resources of its own"
    raise TypeError(msg)
