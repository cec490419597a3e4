"""Error lines that CRIU prints in successful calls, in environments of containers, are not causes.

Each case is a dump and a restore that succeed with CRIU's longest log. None of its lines may count
as an error; otherwise it would be reported as the cause of an unknown failure.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from .support.processes import PATIENCE

CYCLE = """
import json, os, signal, subprocess, sys
from pycriu_native import CriuOpts, dump, restore
from pycriu_native._failures.log_excerpt import error_lines

target = subprocess.Popen(
    ["sh", "-c", sys.argv[2]], start_new_session=True, stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
)
target.stdout.readline()
target.stdout.close()
opts = CriuOpts(images_directory=sys.argv[1], log_level=4)
dump(target.pid, opts)
target.wait()
os.kill(restore(opts).pid, signal.SIGKILL)
logs = [open(f"{sys.argv[1]}/{verb}.log", errors="replace").read() for verb in ("dump", "restore")]
print(json.dumps([[len(text.splitlines()) > 20, error_lines(text)] for text in logs]))
"""

SLEEPS = "echo ready; exec sleep 1000 >/dev/null"
IN_NETWORK = f"exec unshare --net sh -c 'ip link set lo up; {SLEEPS}'"


@pytest.mark.parametrize(
    ("surroundings", "target"),
    [
        ("true", SLEEPS),
        ("mount -t tmpfs none /dev/net", SLEEPS),
        ("true", IN_NETWORK),
        ("mount -t tmpfs none /dev/net", IN_NETWORK),
        ("mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys", IN_NETWORK),
        ("mount -t tmpfs none /sys", SLEEPS),
        ("mount -t tmpfs -o ro none /run", SLEEPS),
    ],
    ids=["host", "no tun", "network", "no tun, network", "sysctls", "no sysfs", "run"],
)
def test_a_call_that_works_has_no_errors(
    surroundings: str, target: str, images: Path, tmp_path: Path
) -> None:
    """The error lines extracted from both logs are empty."""
    script = tmp_path / "cycle.py"
    script.write_text(textwrap.dedent(CYCLE))
    message = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-ec",
         f'{surroundings}; exec "$@"', "sh", sys.executable, str(script), str(images), target],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert message.returncode == 0, message.stderr
    assert message.stdout == "[[true, []], [true, []]]\n"


@pytest.mark.cures("loopback-down")
def test_loopback_is_down(images: Path) -> None:
    """CRIU tests TCP in its network namespace, which fails if loopback is down; the
    cure names it.
    """
    code = f"""
        import subprocess, pycriu_native as criu
        own = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        target = subprocess.Popen(["sleep", "1000"], start_new_session=True, **own)
        try:
            criu.dump(target.pid, criu.CriuOpts(images_directory={str(images)!r}))
        except criu.CriuError as error:
            print(error.cause, "|", error.cure)
            subprocess.run(error.cure.partition(" in that")[0].split(), check=True)
            criu.dump(target.pid, criu.CriuOpts(images_directory={str(images)!r}))
            print("dumped")
        finally:
            target.kill()
        """
    message = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "sh", "-ec",
         'mount -t tmpfs none /run; exec "$@"', "sh", sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    assert "loopback interface is down" in message.stdout, message.stderr
    assert "ip link set lo up" in message.stdout
    assert message.stdout.endswith("\ndumped\n")


@pytest.mark.cures("kerndat-tmp")
def test_tmp_is_read_only() -> None:
    """CRIU tests the kernel with a mount in /tmp, unless it has a cache; the cure names /tmp."""
    code = """
        import subprocess, pycriu_native as criu
        own = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        target = subprocess.Popen(["sleep", "1000"], start_new_session=True, **own)
        opts = criu.CriuOpts(images_directory="/run/images")
        try:
            criu.dump(target.pid, opts)
        except criu.ProgramError as error:
            print(error.cause)
            cure = error.cure.partition(": ")[2].partition(", or")[0]
            subprocess.run(["sh", "-c", cure], check=True)
            criu.dump(target.pid, opts)
            print("dumped")
        finally:
            target.kill()
        """
    message = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-ec",
         'mount -t tmpfs none /run; mount --bind /tmp /tmp; mount -o remount,bind,ro /tmp; "$@"',
         "sh", sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert message.stdout.startswith("CRIU cannot make a directory in /tmp"), message.stderr
    assert message.stdout.endswith("\ndumped\n"), message.stderr
