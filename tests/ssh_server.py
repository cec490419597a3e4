"""A local SFTP server for tests, in a separate process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SERVER = """
import asyncio, asyncssh, sys

class Open(asyncssh.SSHServer):
    def begin_auth(self, username):
        return False  # no user needs a key

async def main():
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Open, server_host_keys=[key], sftp_factory=True
    )
    print(server.get_port(), key.export_public_key().decode().strip(), flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@contextmanager
def ssh_server(home: Path) -> Iterator[str]:
    """The URL of a directory. In the context it is also ``HOME``, with the known host key."""
    pytest.importorskip("sshfs", reason="SSH needs sshfs")
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            port, _, key = server.stdout.readline().partition(" ")
            (home / ".ssh").mkdir()
            (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}")
            with pytest.MonkeyPatch.context() as patched:
                patched.setenv("HOME", str(home))
                yield f"ssh://jobs@127.0.0.1:{port}{home}"
        finally:
            server.kill()
