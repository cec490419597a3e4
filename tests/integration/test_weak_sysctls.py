"""weak_sysctls: a restore on a kernel that lacks a network setting of the images.

A container's network namespace is saved with its settings of /proc/sys/net. If another kernel lacks
one of them, CRIU refuses the restore; with ``weak_sysctls=True`` it ignores the setting. This
kernel has all saved settings, so these tests restore with a CRIU for which a small preloaded
library hides one.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pycriu_native import CriuError, CriuOpts, Worker, restore

from .support.containers import Container, container
from .support.processes import is_alive

SETTING = "/proc/sys/net/unix/max_dgram_qlen"

HIDE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define HIDING(function)                                                                   \
	int function(int directory, const char *path, int flags, unsigned int mode)          \
	{                                                                                    \
		const char *hidden = getenv("HIDDEN");                                         \
		if (hidden && strstr(path, hidden)) {                                          \
			errno = ENOENT;                                                          \
			return -1;                                                               \
		}                                                                              \
		int (*real)(int, const char *, int, unsigned int) = dlsym(RTLD_NEXT, #function);  \
		return real(directory, path, flags, mode);                                     \
	}

HIDING(openat)
HIDING(openat64)
HIDING(__openat_2)
HIDING(__openat64_2)
"""

CC = shutil.which("cc")
pytestmark = pytest.mark.skipif(CC is None, reason="needs a C compiler")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Container]:
    """A container in which one setting has an unusual value."""
    with container(tmp_path / "box") as box:
        box.run("sh", "-c", f"echo 321 > {SETTING}")
        yield box


@pytest.fixture
def lacking(tmp_path: Path) -> Worker:
    """A CRIU for which the setting does not exist."""
    (tmp_path / "hide.c").write_text(HIDE)
    assert CC is not None
    library = tmp_path / "hide.so"
    subprocess.run([CC, "-shared", "-fPIC", "-o", library, tmp_path / "hide.c"], check=True)
    return Worker(env={"LD_PRELOAD": str(library), "HIDDEN": SETTING.removeprefix("/proc/")})


@pytest.mark.cures("sysctl")
def test_a_missing_setting_is_left_out(box: Container, images: Path, lacking: Worker) -> None:
    """Without the option the restore is refused with the setting's name; with it the container
    runs.
    """
    box.dump(CriuOpts(images_directory=images, external=box.given_on_dump))
    opts = CriuOpts(images_directory=images, root=box.root, external=box.given_on_restore)
    with pytest.raises(CriuError, match="weak_sysctls=True") as caught:
        restore(opts, via=lacking)
    assert "weak_sysctls" in caught.value.options
    assert not is_alive(box.pid)
    box.pid = restore(replace(opts, weak_sysctls=True), via=lacking).pid
    assert box.runs_on()
    assert box.run("cat", SETTING) != "321\n"


def test_an_existing_setting_is_restored(box: Container, images: Path) -> None:
    """The option does not affect existing settings."""
    box.dump(CriuOpts(images_directory=images, external=box.given_on_dump))
    opts = CriuOpts(images_directory=images, root=box.root, external=box.given_on_restore)
    box.pid = restore(replace(opts, weak_sysctls=True)).pid
    assert box.run("cat", SETTING) == "321\n"
