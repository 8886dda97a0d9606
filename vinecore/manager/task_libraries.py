"""The settings of a task that a library runs, or that is a library. Names and meanings are TaskVine's."""

from __future__ import annotations

from vinecore import validators


class TaskLibrarySettings:
    """The library that a task requires or provides."""

    _library_required = _library_provided = ""
    _function_slots: int | None = None
    _exec_mode = ""

    def set_library_required(self, library: str) -> None:
        """Have a library run the task: the command is the name of one of its functions.

        The function is called without arguments in the sandbox of the task, so it reads inputs and
        writes outputs there. `FunctionCall` passes arguments and returns a value.

        Parameters
        ----------
        library : str
            The name of an installed library.

        Raises
        ------
        TypeError, ValueError
            It is not a text, or empty.
        """
        self._library_required = validators.label("library", library)

    def get_library_required(self) -> str | None:
        """Return the name of the library that runs the task.

        Returns
        -------
        str or None
            None if no library was set.
        """
        return self._library_required or None

    def needs_library(self, library: str) -> None:
        """Have a library run the task, as `set_library_required`.

        Parameters
        ----------
        library : str
            The name of an installed library.

        Raises
        ------
        TypeError, ValueError
            It is not a text, or empty.
        """
        self.set_library_required(library)

    def set_library_provided(self, library_name: str) -> None:
        """Make the task a library for `Manager.install_library`: its command starts the program.

        The program keeps to the protocol of docs/library-programs.md.

        Parameters
        ----------
        library_name : str
            The name of the library, which the program tells.

        Raises
        ------
        TypeError, ValueError
            It is not a text, or empty.
        """
        self._library_provided = validators.label("library_name", library_name)

    def provides_library(self, library: str) -> None:
        """Make the task a library, as `set_library_provided`.

        Parameters
        ----------
        library : str
            The name of the library.

        Raises
        ------
        TypeError, ValueError
            It is not a text, or empty.
        """
        self.set_library_provided(library)

    def get_library_provided(self) -> str | None:
        """Return the name of the library that the task is.

        Returns
        -------
        str or None
            None if it is none.
        """
        return self._library_provided or None

    def get_libray_provided(self) -> str | None:
        """Return the name of the library that the task is, as `get_library_provided`.

        Returns
        -------
        str or None
            None if it is none.
        """
        return self.get_library_provided()

    def set_function_slots(self, nslots: int) -> None:
        """Set the number of calls that run at the same time in a library that the task provides.

        Parameters
        ----------
        nslots : int
            Number of slots; the default is one for each core.

        Raises
        ------
        TypeError, ValueError
            It is not a whole number of 1 or more.
        """
        self._function_slots = validators.slots("nslots", nslots)

    def set_function_exec_mode_from_string(self, exec_mode: str) -> None:
        """Set whether calls have processes of their own, as `FunctionCall.set_exec_method`.

        The program of a library tells its mode itself, so a task that provides one is not changed.

        Parameters
        ----------
        exec_mode : {"fork", "direct"}
            "fork" for a process of its own.

        Raises
        ------
        TypeError, ValueError
            It is neither.
        """
        self._exec_mode = validators.exec_mode("exec_mode", exec_mode)
