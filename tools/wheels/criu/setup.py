"""Refuses to build a wheel without the program, which pip would do from the source archive."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithProgram(build_py):
    """Requires the program, which tools/wheels/build has built."""

    def run(self) -> None:
        """Copy the files; exit with an error message if the program is missing."""
        if not Path("src/pycriu_native_criu/bin/criu").exists():
            sys.exit(
                "pycriu-native-criu has no wheel for this machine, and only tools/wheels/build of "
                "pycriu-native builds its criu: install criu from your distribution"
            )
        super().run()


setup(cmdclass={"build_py": BuildWithProgram})
