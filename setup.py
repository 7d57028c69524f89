"""Compiles the native operators where there is a C compiler. Everything else is in pyproject.toml.

``EDGEMEM_NATIVE=0`` leaves them out: the wheel is then the same on every machine.
"""

import os
import re
import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

PACKAGE = Path("edgemem/runtimes/native")
NATIVE = runpy.run_path(str(PACKAGE / "build.py"))
LIBRARY = PACKAGE / NATIVE["LIBRARY"]


class BuildLibrary(build_ext):
    """Compiles a plain shared library, which no Python version is tied to."""

    def get_ext_filename(self, fullname):
        """The library's path, below the folder that holds the packages."""
        return str(Path(*fullname.split(".")[:-1], LIBRARY.name))

    def build_extension(self, ext):
        """Compile it, or say why not: the package works without."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.unlink(missing_ok=True)  # it may be of another processor
        reason = NATIVE["build"](target)
        if reason is not None:
            self.warn(f"edgemem is installed without its native operators, and runs its standard graphs: {reason}")


class PlatformWheel(bdist_wheel):
    """A wheel for every Python 3 on the processor and the oldest glibc that the library needs."""

    def get_tag(self):
        """Python, ABI and platform, as the file's name has them."""
        if self.root_is_pure:
            return super().get_tag()
        return "py3", "none", platform_of(Path(self.get_finalized_command("build_ext").build_lib, LIBRARY))


def platform_of(library):
    """The platform of a compiled library, by the newest symbol of glibc that it uses."""
    processor = NATIVE["processor"](NATIVE["compiler"]())
    symbols = re.findall(rb"GLIBC_2\.(\d+)", library.read_bytes()) if library.exists() else []
    return f"manylinux_2_{max(17, *map(int, symbols))}_{processor}" if symbols else f"linux_{processor}"


wanted = os.environ.get("EDGEMEM_NATIVE") != "0" and NATIVE["missing"]() is None
setup(
    ext_modules=[Extension("edgemem.runtimes.native.library", sources=[], optional=True)] if wanted else [],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
