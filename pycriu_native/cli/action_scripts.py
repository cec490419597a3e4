"""``--action-script``: programs that run at each notification of CRIU."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .._calls.notification import Notification
from ..errors import CriuError
from ..options.criu_opts import CriuOpts
from .parameters import file_option

ACTION_SCRIPT = file_option(
    "--action-script",
    multiple=True,
    help="Program to run on each notification of CRIU; the variable CRTOOLS_SCRIPT_ACTION is "
    "the notification's name. If it fails, CRIU undoes its work. May be repeated.",
)


def run_scripts(scripts: Sequence[str], opts: CriuOpts, notification: Notification) -> None:
    """Run the scripts, with the environment variables that CRIU sets for action scripts."""
    import shlex  # few runs have scripts
    import subprocess

    env = dict(os.environ, CRTOOLS_SCRIPT_ACTION=str(notification.action))
    env["CRTOOLS_IMAGE_DIR"] = os.path.abspath(str(opts.images_directory or opts.images_dir))
    if notification.pid is not None:
        env["CRTOOLS_INIT_PID"] = str(notification.pid)
    for script in scripts:
        try:
            code = subprocess.run([script], env=env, check=False).returncode
        except OSError as error:
            raise CriuError(
                f"the action script {script!r} cannot be run: {error.strerror}"
            ) from None
        if code:
            raise CriuError(
                f"the action script {shlex.quote(script)} ended with {code} at "
                f"{notification.action}, and CRIU has undone its work"
            )
