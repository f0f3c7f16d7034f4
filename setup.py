"""What pyproject.toml cannot say: the native engine is compiled, and a wheel is for one platform but any Python.

Not here: how it is compiled (scripts/build_native.py).
"""

import platform
import sys
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "scripts"))  # a build runs this file without its folder on the path

import build_native  # noqa: E402


class BuildNative(Command):
    """Build the library into what is installed; for an editable install into the source tree."""

    user_options = ()
    editable_mode = False

    def initialize_options(self) -> None:
        """Begin with nothing, as setuptools asks."""
        self.build_lib = None

    def finalize_options(self) -> None:
        """Take the folder that `build` writes to."""
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        """Build, or warn, or stop where CODEGEN2_REQUIRE_NATIVE is 1."""
        root = ROOT if self.editable_mode else Path(self.build_lib)
        try:
            build_native.install_into(build_native.library_path(root), ROOT)
        except build_native.BuildError as e:
            sys.exit(build_native.explain(e))

    def get_source_files(self) -> list[str]:
        """Return what an sdist needs to build the library."""
        files = [*build_native.source_files(ROOT), Path(build_native.__file__)]
        return [p.relative_to(ROOT).as_posix() for p in files]

    def get_outputs(self) -> list[str]:
        """Return what is installed."""
        return [str(build_native.library_path(Path(self.build_lib)))]

    def get_output_mapping(self) -> dict[str, str]:
        """Return what is installed, by where it lies in the source tree."""
        here = build_native.library_path(ROOT).relative_to(ROOT)
        return {self.get_outputs()[0]: here.as_posix()} if self.editable_mode else {}


class Build(build):
    """Build the library after the rest."""

    sub_commands = [*build.sub_commands, ("build_native", None)]  # noqa: RUF012


class PlatformWheel(bdist_wheel):
    """Tag a wheel py3-none-PLATFORM: the library is loaded by ctypes and knows no Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return (Python, ABI, platform)."""
        return "py3", "none", build_native.wheel_platform(super().get_tag()[2], platform.machine())


class PlatformDistribution(Distribution):
    """Say that there is a library, so that files go where a platform's own go."""

    def has_ext_modules(self) -> bool:
        """Say yes, though no module of Python is compiled."""
        return True


setup(
    distclass=PlatformDistribution,
    cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": PlatformWheel},
)
