"""The claim of a restore job: a file in the images directory that only one run can create.

It is created with O_EXCL, which is atomic also on file systems that hosts share (open(2); NFS from
version 3 on), and named after the job. It stays if the job has restored the processes, or may have.
A run whose restore was undone removes it, so that an engine can run the job again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime

from .._system.descriptors import opened_directory, where
from .._system.process_identity import ProcessIdentity
from .._system.regular_file import create_regular, read_regular
from ..errors import CriuError, ImagesError, OptionError, Problem, RestoreClaimedError, ResumedError
from ..options.criu_opts import CriuOpts
from ..options.values import descriptor_number
from .dump_marker import CLAIM

LARGEST = 4096


@contextlib.contextmanager
def claimed(opts: CriuOpts, token: str) -> Iterator[None]:
    """Claim these images for a job; an exception without ``result`` in the block ends the claim.

    Raises ``RestoreClaimedError`` if another run has claimed them, ``ImagesError`` if the file
    cannot be created.
    """
    directory = opts.images_directory
    if directory is None:
        rule = "the claim of the job is created there: set it, or set fence=False"
        raise OptionError([Problem("images_directory", None, rule)], verb="restore")
    try:
        place = directory if isinstance(directory, str) else descriptor_number(directory)
        opened = opened_directory(place)
    except OSError as error:
        raise _unusable(str(place), error) from None
    with opened as at:
        name = f"{CLAIM}{token}"
        _take(at, name)
        try:
            yield
        except BaseException as error:
            # With a result the processes run, and after a ResumedError they have run.
            if not (hasattr(error, "result") or isinstance(error, ResumedError)):
                with contextlib.suppress(FileNotFoundError):  # the images were removed meanwhile
                    os.unlink(name, dir_fd=at)
            raise


def _unusable(place: str, error: OSError) -> CriuError:
    return ImagesError(
        f"restore refused: no claim can be created in {place}: {error.strerror}; make it writable, "
        "or set fence=False for a job that is never run twice",
        verb="restore",
        errno=error.errno,
    )


def _take(at: int, name: str) -> None:
    place = where(at)
    try:
        fd = create_regular(name, dir_fd=at)
    except FileExistsError:
        raise _taken(at, name, place) from None
    except OSError as error:
        raise _unusable(place, error) from None
    owner = {
        "host": os.uname().nodename,
        **asdict(ProcessIdentity.of(os.getpid())),
        "time": datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds"),
    }
    try:
        with open(fd, "w") as file:
            file.write(json.dumps(owner) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.fsync(at)
    except OSError as error:
        os.unlink(name, dir_fd=at)
        raise _unusable(place, error) from None


def _taken(at: int, name: str, place: str) -> RestoreClaimedError:
    who = "another run, whose pid and host are not in the claim"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        owner = json.loads(read_regular(name, LARGEST, dir_fd=at))
        who = f"pid {owner['pid']} on {owner['host']} (boot id {owner['boot_id']})"
        who += f" at {owner['time']}"
    cause = f"this job was claimed by {who}: the processes were restored, or may have been"
    cure = (
        f"make sure that they do not run anywhere, then remove {place}/{name}, or make a new "
        "RestoreJob"
    )
    return RestoreClaimedError(
        f"restore refused: {cause}; {cure}",
        verb="restore",
        cause=cause,
        cure=cure,
        options=["images_directory"],
    )
