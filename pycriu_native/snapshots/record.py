"""``snapshot.json`` in the directory of a snapshot: the description of its program and host."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .._support.json_values import check_fields
from .._system.regular_file import open_regular
from ..errors import ImagesError
from ..results import Version

NAME = "snapshot.json"
UNPUBLISHED = f"{NAME}.partial"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class MappedFile:
    """A file that the processes have mapped, which has to be unchanged for a start."""

    path: str
    size: int
    """In bytes."""
    mtime_ns: int
    """Time of the last change, in nanoseconds since the epoch."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """The machine that a snapshot was taken on."""

    machine_id: str
    """/etc/machine-id; empty if there is none."""
    architecture: str
    kernel: str
    """The kernel's release."""
    cpu_flags: tuple[str, ...]
    """The features of the processor, or those that a start needs, by their names in
    /proc/cpuinfo."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The description of a snapshot."""

    created: str
    """Time of the snapshot: ISO 8601, UTC."""
    command: tuple[str, ...]
    """The command line of the root process."""
    pid: int
    """The root process's pid in its pid namespace, equal in all copies."""
    processes: int
    """Number of saved processes."""
    guest_key: str | None
    """The key (``inherit_fds``) of the socket to the copy; None: the program does not use
    :mod:`pycriu_native.guest` or its protocol."""
    guest_fd: int | None
    """The number of its descriptor in the root process."""
    stream_keys: tuple[str | None, str | None, str | None]
    """The keys of standard input, output and error; None: the stream cannot be replaced. A socket
    can be replaced by any descriptor, a pipe by one that can be reopened."""
    criu: str
    """The release of CRIU that took it."""
    host: Host
    files: tuple[MappedFile, ...] = field(repr=False)
    threads: int = 0
    """Threads of the root process; 0: unknown."""
    forks: bool = False
    """Whether the program calls :func:`pycriu_native.guest.wait`: it forks copies of itself on
    request (:meth:`.Snapshot.zygote`), and receives descriptors (``pass_fds``)."""
    descriptors: tuple[int, ...] = ()
    """The open descriptors of the root process."""
    processor: str = ""
    """The processor level that the program was limited to; empty: none."""

    def write(self, directory: str | os.PathLike[str]) -> None:
        """Write it into a snapshot's directory, which is none until :func:`publish`."""
        path = os.path.join(directory, UNPUBLISHED)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            json.dump({"format": FORMAT, **asdict(self)}, file, indent=1)

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> Record:
        """Read the record of a directory. ``ImagesError`` if it is missing or invalid."""
        path = os.path.join(directory, NAME)
        try:
            with open(open_regular(path)) as file:
                values = json.load(file)
            result = cls._from(values)
            result._check()
            return result
        except FileNotFoundError:
            message = f"{os.fspath(directory)} has no complete snapshot: {path} is missing"
        except OSError as error:
            message = f"{path} cannot be read: {error.strerror}"
        except KeyError as error:
            message = f"{path} is not a record of a snapshot: it has no {error}"
        except (ValueError, TypeError, RecursionError) as error:
            message = f"{path} is not a record of a snapshot: {error}"
        raise ImagesError(message)

    @classmethod
    def _from(cls, values: Any) -> Record:
        if not isinstance(values, Mapping):
            raise ValueError("a JSON object is accepted")
        fields = dict(values)
        if (found := fields.pop("format")) != FORMAT:
            raise ValueError(f"format {found!r}; this release reads format {FORMAT}")
        host = dict(fields.pop("host"))
        host["cpu_flags"] = tuple(host["cpu_flags"])
        files = tuple(MappedFile(**each) for each in fields.pop("files"))
        fields["command"] = tuple(fields["command"])
        fields["descriptors"] = tuple(fields.get("descriptors", ()))
        first, second, third = fields.pop("stream_keys")
        return cls(host=Host(**host), files=files, stream_keys=(first, second, third), **fields)

    def _check(self) -> None:
        """``TypeError`` for a member of another type, ``ValueError`` for an impossible value."""
        check_fields(self)
        Version.parse(self.criu)
        if not 0 < self.pid < 2**31:
            raise ValueError(f"pid {self.pid}")


def publish(directory: str | os.PathLike[str]) -> None:
    """Let a directory with a written record be a snapshot."""
    os.rename(os.path.join(directory, UNPUBLISHED), os.path.join(directory, NAME))
