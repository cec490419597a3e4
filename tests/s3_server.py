"""A local S3 server for tests."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of a bucket that does not exist yet; the environment names the server."""
    server = pytest.importorskip("moto.server", reason="S3 needs moto[s3] and flask-cors")
    pytest.importorskip("s3fs", reason="S3 needs s3fs")
    served = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("AWS_ACCESS_KEY_ID", "testing")
            patched.setenv("AWS_SECRET_ACCESS_KEY", "testing")
            patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patched.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            yield f"s3://jobs-{secrets.token_hex(4)}"  # servers share buckets
    finally:
        served.stop()
