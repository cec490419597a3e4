"""A replacement of ``criu``: started as ``PROGRAM swrk FD``, it runs a script.

The script is ``PROGRAM.json``, a list of steps: ``["send", HEX]``, ``["send-with-fd", HEX]``,
``["receive"]``, ``["wait-for-end"]``, ``["exit", STATUS]``, ``["kill"]``, ``["stop"]``,
``["touch", PATH]``, ``["sleep", SECONDS]``, ``["fork-and-hold"]``,
``["fork-and-finish", PATH]``, ``["fork-and-stop", PATH]``, ``["wait-for-child"]``.
Received messages go to ``PROGRAM.received``, one hexadecimal line each. The program uses only the
standard library, because it runs without the environment of the tests.
"""

import array
import json
import os
import resource
import signal
import socket
import sys
import time

LARGEST = 8 * 2**20


def run_steps(steps: list[list[str]], sock: socket.socket, received: str) -> None:
    """Run the script."""
    for step, *arguments in steps:
        match step:
            case "send":
                sock.send(bytes.fromhex(arguments[0]))
            case "send-with-fd":
                reader, writer = os.pipe()
                os.write(writer, b"from the other side")
                os.close(writer)
                rights = array.array("i", [reader])
                data = bytes.fromhex(arguments[0])
                sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            case "receive":
                with open(received, "a") as log:
                    log.write(sock.recv(LARGEST).hex() + "\n")
            case "touch":
                open(arguments[0], "a").close()
            case "sleep":
                time.sleep(float(arguments[0]))
            case "wait-for-end":
                sock.recv(LARGEST)
            case "exit":
                os._exit(int(arguments[0]))
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "fork-and-hold":
                # A child in this process group that keeps the socket open after its parent's end.
                if os.fork() == 0:
                    while True:
                        time.sleep(60)
            case "fork-and-finish" | "fork-and-stop":
                # A child that does the work, as in a pre-dump.
                if os.fork() == 0:
                    if step == "fork-and-stop":
                        os.kill(os.getpid(), signal.SIGSTOP)
                    time.sleep(0.2)
                    open(arguments[0], "a").close()
                    os._exit(0)
            case "wait-for-child":
                os.wait()


if __name__ == "__main__":
    # An interrupted call sets the worker's file size limit if the worker ignores SIGXFSZ.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with open(sys.argv[0] + ".json") as script:
        run_steps(
            json.load(script), socket.socket(fileno=int(sys.argv[2])), sys.argv[0] + ".received"
        )
