"""The programs of benchmarks.snapshots, each with libraries that load slowly."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

COLD, FORKED, CRIU_RESTORE = "cold start", "forkserver with preload", "criu restore"
WITH_NAMESPACES = "criu restore, and its namespaces"
PLAIN, SHARED = "start, share_memory=False", "start, share_memory=True"
POOLED, ZYGOTE = "start, WorkerPool", "zygote"
"""The ways to start a program, as the results name them."""

ANSWER = b"answer\n"

PROGRAM = """
import os
import bench_module
from pycriu_native import guest
guest.wait()
bench_module.answer(lambda data: os.write(1, data))
input()
"""

PLAIN_ANSWER = """
def answer(send):
    send(b"answer\\n")
"""

TORCH = """
import torch
torch.set_num_threads(1)
model = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(16)])

def answer(send):
    with torch.no_grad():
        model(torch.ones(1, 512)).sum().item()
    send(b"answer\\n")
"""

UVICORN = """
import socket
import uvicorn

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"answer"})

config = uvicorn.Config(app, lifespan="off", log_level="critical")
config.load()

def answer(send):
    with socket.create_server(("127.0.0.1", 0)) as server:
        send(b"port %d\\n" % server.getsockname()[1])
        uvicorn.Server(config).run(sockets=[server])
"""

NODE = """
const fs = require("fs");
const loaded = require("module").builtinModules.filter((name) => !name.startsWith("_"));
for (const name of loaded) try { require(name); } catch {}
const fd = Number(process.env.PYCRIU_NATIVE_GUEST_FD);
if (fd) {
    fs.writeSync(fd, "ready\\n");
    const line = Buffer.alloc(65536);
    if (!fs.readSync(fd, line)) process.exit(1);
}
fs.writeSync(1, "answer\\n");
fs.readSync(0, Buffer.alloc(1));
"""

JAVA = """
import java.io.*;
import java.net.URI;
import java.util.List;
import javax.tools.*;

public class Warm {
    public static void main(String[] arguments) throws Exception {
        var source = new SimpleJavaFileObject(URI.create("string:///A.java"),
                JavaFileObject.Kind.SOURCE) {
            public CharSequence getCharContent(boolean ignore) {
                return "class A { int f(java.util.List<String> l) { return l.size(); } }";
            }
        };
        var compiler = ToolProvider.getSystemJavaCompiler();
        var options = List.of("-proc:none", "-d", arguments[0]);
        if (!compiler.getTask(null, null, null, options, null, List.of(source)).call())
            throw new Error();
        String number = System.getenv("PYCRIU_NATIVE_GUEST_FD");
        if (number != null) {
            var descriptor = new FileDescriptor();
            var field = FileDescriptor.class.getDeclaredField("fd");
            field.setAccessible(true);
            field.setInt(descriptor, Integer.parseInt(number));
            new FileOutputStream(descriptor).write("ready\\n".getBytes());
            if (new FileInputStream(descriptor).read(new byte[65536]) <= 0)
                System.exit(1);
        }
        System.out.println("answer");
        System.in.read();
    }
}
"""
"""Compiles a class, to load the compiler."""


@dataclass(frozen=True)
class Program:
    """A program that parks itself, and writes a line when it can respond."""

    name: str
    source: str
    modules: tuple[str, ...] = ()
    """Required Python packages; empty for another language."""
    tools: tuple[str, ...] = ()
    """Required programs."""

    def lacking(self) -> list[str]:
        """The missing packages and programs."""
        result = [each for each in self.modules if importlib.util.find_spec(each) is None]
        return result + [each for each in self.tools if shutil.which(each) is None]

    def command(self, directory: Path) -> list[str]:
        """Write the files of the program to the directory, and return its command line."""
        if self.modules:
            (directory / "bench_module.py").write_text(self.source)
            return [sys.executable, "-c", PROGRAM]
        if "node" in self.tools:
            (directory / "warm.js").write_text(self.source)
            return ["node", str(directory / "warm.js")]
        (directory / "Warm.java").write_text(self.source)
        opened = "--add-opens=java.base/java.io=ALL-UNNAMED"
        options = ["-XX:+UseSerialGC", "-XX:-UsePerfData", "-Xmx256m", opened]
        return ["java", *options, str(directory / "Warm.java"), str(directory)]


def _imports(*names: str) -> str:
    return f"import {', '.join(names)}\n{PLAIN_ANSWER}"


_LIBRARY = ("asyncio", "email.mime.text", "http.server", "sqlite3", "unittest.mock")

PROGRAMS = (
    Program("small", _imports("json"), ("json",)),
    Program("standard library", _imports(*_LIBRARY), ("asyncio",)),
    Program("numpy", _imports("numpy"), ("numpy",)),
    Program("numpy, pandas", _imports("numpy", "pandas"), ("numpy", "pandas")),
    Program("PyTorch", TORCH, ("torch",)),
    Program("uvicorn", UVICORN, ("uvicorn",)),
    Program("Node", NODE, tools=("node",)),
    Program("JVM", JAVA, tools=("java", "javac")),
)


def read_answer(output: IO[bytes]) -> None:
    """Wait for the response of a program; that of a server is its first HTTP response."""
    check_answer(output.readline())


def check_answer(line: bytes) -> None:
    """Like :func:`read_answer`, for the line that the program wrote."""
    if line.startswith(b"port "):
        with socket.create_connection(("127.0.0.1", int(line[5:]))) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            with connection.makefile("rb") as response:
                line = ANSWER if b"answer" in response.read() else b""
    if line != ANSWER:
        raise RuntimeError(f"the program answered {line!r}")
