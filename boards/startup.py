"""Makes a Python out of the interpreter in a wheel of cx_Freeze, for rehearse.sh.

It stands as ``__startup__`` and ``__init__python`` in the folder ``lib`` beside the interpreter, which calls ``run``.
All arguments are in ``sys.argv``. ``EMULATED_AS`` is the path under which the interpreter was called.
"""

import os
import sys


def run(*names: str) -> None:
    """Do what ``python [-I|-u|…] [-c CODE | -m MODULE | FILE | -] ARGUMENTS`` does."""
    home = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [home, os.path.join(home, "lib-dynload")]
    sys.executable = os.environ["EMULATED_AS"]
    setattr(sys, "_base_executable", sys.executable)  # noqa: B010
    import runpy
    import site

    site.main()  # finds the environment by pyvenv.cfg
    _, *arguments = sys.argv
    while arguments and arguments[0].startswith("-") and arguments[0] not in ("-", "-c", "-m"):
        arguments.pop(0)
    how: str = arguments[0] if arguments else "-"
    if how == "-m":
        sys.argv[:] = arguments[1:]
        sys.path.insert(0, os.getcwd())
        runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined]
    elif how in ("-c", "-"):
        sys.argv[:] = [how, *arguments[2 if how == "-c" else 1 :]]
        sys.path.insert(0, "")
        code = arguments[1] if how == "-c" else sys.stdin.read()
        exec(compile(code, "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv[:] = arguments
        sys.path.insert(0, os.path.dirname(os.path.abspath(how)))
        runpy.run_path(how, run_name="__main__")


def init() -> None:
    """Older interpreters call this before ``run``."""
