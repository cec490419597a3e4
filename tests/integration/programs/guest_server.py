"""A program for snapshots, which responds to each line of its input with its state."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import uuid
from typing import Any

from pycriu_native import guest


def answer(question: str, *arguments: Any) -> Any:
    """The response to one request."""
    if question == "identity":
        return {
            "arguments": sys.argv[1:],
            "variable": os.environ.get("SNAPSHOT_TEST"),
            "directory": os.getcwd(),
            "pid": os.getpid(),
            "parent": os.getppid(),
            "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
            "hostname": socket.gethostname(),
            "links": [name for _, name in socket.if_nameindex()],
            "cgroup": open("/proc/self/cgroup").read(),
            "stdin": os.readlink("/proc/self/fd/0"),
        }
    if question == "random":
        import ssl

        return [random.random(), uuid.uuid4().hex, ssl.RAND_bytes(16).hex()]
    if question == "exit":
        sys.exit(arguments[0])
    if question == "kill":
        os.kill(os.getpid(), arguments[0])
    if question == "loopback":
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname()).close()
        return True
    if question == "orphan":
        command = ["sh", "-c", "sleep 1000 >/dev/null & echo $!"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return int(done.stdout)
    if question == "write":
        os.write(arguments[0], arguments[1].encode())
        return os.get_inheritable(arguments[0])
    if question == "errors":
        print(arguments[0], file=sys.stderr, flush=True)
        return None
    if question == "wait":
        guest.wait()
    if question == "sleep":
        time.sleep(arguments[0])
        return None
    raise ValueError(question)


def main() -> None:
    """Wait for a snapshot, then answer until the input ends."""
    import ssl

    ssl.RAND_bytes(1)
    random.seed(1)
    start = guest.wait()
    assert start is not None
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(31))
    for line in sys.stdin:
        print(json.dumps([start.number, answer(*json.loads(line))]), flush=True)


if __name__ == "__main__":
    main()
