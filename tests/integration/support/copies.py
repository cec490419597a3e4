"""A program that is saved once, in a separate pid namespace, and restored several times."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from pycriu_native import CriuOpts, dump, restore_child
from pycriu_native._transport.base import Via
from pycriu_native._transport.worker import Worker

from .processes import children_of, eventually

NO_RSEQ = {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
"""Without this the kernel writes the number of the processor into the memory of each thread."""


@dataclass(frozen=True)
class Saved:
    """The images of a program, and the pipes that it had for standard input and output."""

    images: Path
    keys: tuple[str, str]


def save(command: Sequence[str], images: Path, *, env: Mapping[str, str] | None = None) -> Saved:
    """Start a program, and dump it once it has written the line "ready"."""
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", "setsid", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **NO_RSEQ, **(env or {})},
    ) as outer:
        assert outer.stdout is not None
        pid = 0
        try:
            (pid,) = eventually(lambda: children_of(outer.pid), "its start")
            assert outer.stdout.readline() == b"ready\n"
            here = f"/proc/{pid}/fd"
            keys = os.readlink(f"{here}/0"), os.readlink(f"{here}/1")
            dump(pid, CriuOpts(images_directory=images))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid or outer.pid, signal.SIGKILL)
    return Saved(images, keys)


class Copy:
    """One restored copy, a child of this process."""

    def __init__(self, saved: Saved, images: Path, via: Via) -> None:
        work = images.parent / "work"
        work.mkdir(exist_ok=True)
        theirs_in, self._input = os.pipe()
        self._output, theirs_out = os.pipe()
        self.pid = 0
        try:
            inherited = list(zip((theirs_in, theirs_out), saved.keys, strict=True))
            opts = CriuOpts(
                images_directory=images,
                work_directory=work,
                inherit_fds=inherited,
            )
            self.pid = restore_child(opts, via=via).pid
        except BaseException:
            self.close()
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)

    def ask(self, line: str) -> str:
        """Write a line, and return the line of the response."""
        os.write(self._input, line.encode() + b"\n")
        response = b""
        while not response.endswith(b"\n"):
            data = os.read(self._output, 65536)
            assert data, "it has ended"
            response += data
        return response.decode().rstrip("\n")

    def close(self) -> None:
        """Kill and reap it."""
        os.close(self._input)
        os.close(self._output)
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@contextlib.contextmanager
def copy(saved: Saved, images: Path | None = None, via: Via | None = None) -> Iterator[Copy]:
    """Restore a copy, by default from the images of the dump, and kill it at the end."""
    result = Copy(saved, saved.images if images is None else images, via or Worker())
    try:
        yield result
    finally:
        result.close()


Page = tuple[int, str, int]
"""Address, protection, and the hash of the contents."""

PAGE = os.sysconf("SC_PAGESIZE")
ZEROS = bytes(PAGE)


def memory_of(pid: int) -> set[Page]:
    """Every page of a sleeping process, except pages of zeros and unchanged pages of files."""
    result: set[Page] = set()
    size = 2**20
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            place, protection, *_, name = [*line.split(maxsplit=5), ""][:6]
            start, end = (int(each, 16) for each in place.split("-"))
            if name.startswith("[v") or (name.startswith("/") and "w" not in protection):
                continue
            for at in range(start, end, size):
                data = _read(memory, at, min(size, end - at))
                if data == bytes(len(data)):
                    continue
                for offset in range(0, len(data), PAGE):
                    page = data[offset : offset + PAGE]
                    if page != ZEROS:
                        result.add((at + offset, protection, hash(page)))
    return result


def _read(memory: FileIO, at: int, size: int) -> bytes:
    """Bytes of memory; zeros for a page behind the end of a mapped file."""
    memory.seek(at)
    try:
        return memory.read(size)
    except OSError:
        if size == PAGE:
            return ZEROS
        return b"".join(_read(memory, each, PAGE) for each in range(at, at + size, PAGE))


def mappings_of(pid: int) -> list[tuple[int, int, str]]:
    """Start, end and protection of mappings; adjacent ones are merged, as the kernel may do."""
    result: list[tuple[int, int, str]] = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        place, protection = line.split()[:2]
        start, end = (int(each, 16) for each in place.split("-"))
        if result and result[-1][1:] == (start, protection):
            start = result.pop()[0]
        result.append((start, end, protection))
    return result
