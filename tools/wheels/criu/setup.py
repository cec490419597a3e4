"""Refuses to make a wheel without the program, as pip would from the source archive."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithProgram(build_py):
    """Copies the program that was built before."""

    def run(self) -> None:
        """End with the cure where there is none."""
        if not Path("src/pycriu_native_criu/bin/criu").exists():
            sys.exit(
                "pycriu-native-criu has no wheel for this machine, and its criu is built by "
                "tools/wheels/build of pycriu-native only: install criu from your distribution"
            )
        super().run()


setup(cmdclass={"build_py": BuildWithProgram})
