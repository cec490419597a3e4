"""Runs a redis-server, and answers ``check`` with the digest of its data, ``churn`` with ``same``.

Arguments: the program, and the path of a socket. ``churn`` removes all data and writes it again.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time

KEYS = 20000


class Redis:
    """A connection to the server."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._answers = self._socket.makefile("rb")

    def ask(self, *lines: str) -> list[str]:
        """Send commands, return the first line of each answer."""
        for at in range(0, len(lines), 500):
            self._socket.sendall("".join(f"{line}\r\n" for line in lines[at : at + 500]).encode())
        return [self._answers.readline().decode().strip() for _ in lines]

    def digest(self) -> str:
        """The digest of all data."""
        return self.ask("DEBUG DIGEST")[0]

    def fill(self) -> None:
        """Write strings and lists of many sizes."""
        for begin in range(0, KEYS, 500):
            self.ask(*(f"SET key{n} {'v' * (n % 700)}{n}" for n in range(begin, begin + 500)))
            self.ask(
                *(f"RPUSH list{n % 100} {n} {'w' * (n % 90)}" for n in range(begin, begin + 50))
            )

    def churn(self) -> str:
        """Remove all, write it again, several times."""
        before = self.digest()
        for _ in range(3):
            self.ask("FLUSHALL", "MEMORY PURGE")
            self.fill()
        return "same" if self.digest() == before else "the digest has changed"


def main() -> None:
    """Serve."""
    program, path = sys.argv[1:]
    options = {"unixsocket": path, "port": "0", "save": "", "enable-debug-command": "yes"}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    null = subprocess.DEVNULL
    server = subprocess.Popen([program, *words], stdin=null, stdout=null, stderr=null)
    redis = None
    while redis is None:
        try:
            redis = Redis(path)
        except OSError:
            assert server.poll() is None
            time.sleep(0.01)
    redis.fill()
    print("ready", flush=True)
    for line in sys.stdin:
        print(redis.churn() if line == "churn\n" else redis.digest(), flush=True)


if __name__ == "__main__":
    main()
