"""``install-criu``: installs a CRIU that works on the running kernel, from Debian's packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import click

from ...errors import CriuError, OptionError, Problem, UnsupportedError
from ..command import Call, Command
from ..exit_codes import Exit
from ..parameters import flag, option

SCRIPT = Path(__file__).parents[1] / "install-criu"
USAGE = 2
"""Exit status of the script for wrong arguments, which it names."""
UNABLE = 3
"""Exit status of the script if CRIU is installed but cannot checkpoint on this machine."""


@Command(
    "install-criu",
    help="Find or install a CRIU that works on the running kernel, from Debian's packages.\n\n"
    "It uses an installed CRIU if that works, else the packages of the system, else a newer "
    "build of Debian with its libraries in a separate directory, where pycriu_native finds it. "
    "It needs root, and Debian or Ubuntu; on another system it prints the command that "
    "installs CRIU there. The exit status is 11 if CRIU is installed but this machine cannot "
    "checkpoint; the reason is printed.",
    examples=[
        "pycriu-native install-criu --dry-run",
        "pycriu-native install-criu",
        "pycriu-native install-criu --suite forky",
        "pycriu-native install-criu --uninstall",
    ],
    exits=(Exit.FAILED, Exit.UNSUPPORTED, Exit.NO),
    params=[
        option(
            "--prefix",
            type=click.Path(file_okay=False),
            metavar="DIR",
            help="The separate directory (default: /opt/pycriu-native). For another one, set "
            "CRIU_PROGRAM=DIR/bin/criu so that it is found.",
        ),
        option(
            "--suite",
            metavar="NAME",
            help="Install the CRIU of this Debian suite there, and replace an installed one.",
        ),
        flag("--dry-run", help="Print what would be done."),
        flag("--uninstall", help="Remove what an earlier run installed."),
    ],
).runs
def _install(
    call: Call, prefix: str | None, suite: str | None, dry_run: bool, uninstall: bool
) -> Exit:
    bash = shutil.which("bash")
    if bash is None:
        raise UnsupportedError([Problem("bash", None, "install-criu needs the program bash")])
    words = [bash, str(SCRIPT)]
    words += ["--prefix", prefix] if prefix else []
    words += ["--suite", suite] if suite else []
    words += ["--dry-run"] if dry_run else []
    words += ["--uninstall"] if uninstall else []
    captured = subprocess.PIPE if call.out.as_json else None
    with tempfile.TemporaryDirectory() as directory:
        record = os.path.join(directory, "record")
        run = subprocess.run(
            [*words, "--record", record],
            stdout=subprocess.DEVNULL if call.out.quiet and not captured else captured,
            stderr=captured,
            text=True,
            check=False,
        )
        result = _read(record)
    if run.returncode == USAGE:
        rule = (run.stderr or "").strip() or "an argument is not accepted, as the script says above"
        raise OptionError([Problem("install-criu", None, rule)])
    if run.returncode not in (0, UNABLE):
        # Without --json the script has already printed its messages.
        reason = (run.stderr or "").strip() or f"it ended with status {run.returncode}"
        raise CriuError(reason, verb="install-criu")
    code = Exit.NO if run.returncode else Exit.DONE
    if not call.out.as_json:
        return code
    return call.out.result(
        {**result, "output": (run.stdout + run.stderr).splitlines()}, "", code=code
    )


def _read(record: str) -> dict[str, str | None]:
    """Program, version and library directory of the chosen CRIU; None if there is none."""
    values: dict[str, str | None] = dict.fromkeys(("program", "version", "libdir"))
    if os.path.exists(record):
        for line in Path(record).read_text().splitlines():
            key, _, value = line.partition("=")
            if (name := key.removeprefix("CRIU_").lower()) in values:
                values[name] = value
    return values
