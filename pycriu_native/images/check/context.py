"""The input of every check of images, and constructors for their findings."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from ..._calls import requirements
from ..._failures.log_excerpt import known
from ..._transport.base import Via
from ..._transport.worker import Worker
from ...errors import CriuError
from ...findings import Finding, Severity
from ...options.criu_opts import CriuOpts
from ...results import Version
from ..codec import decode
from ..model import File, ImageSet

Findings = Iterator[Finding]
"""What a check yields."""

F = TypeVar("F", bound=File)


@dataclass(frozen=True, slots=True)
class Context:
    """The images, the options of the restore and the connection to CRIU."""

    images: ImageSet
    opts: CriuOpts
    via: Via | None

    @property
    def host(self) -> set[str]:
        """Kinds of namespace that the restored processes share with this host."""
        return {each.kind for each in self.images.namespaces if each.host}

    def release(self) -> Version:
        """That of the program here. Raises ``CriuError``."""
        return requirements.program_version(self.via or Worker())

    def is_older_than(self, release: str) -> bool:
        """Whether the program here is older; False if there is none, which ``release`` reports."""
        with contextlib.suppress(CriuError):
            return self.release() < Version.parse(release)
        return False

    def entries(self, name: str) -> list[dict[str, Any]]:
        """The entries of an image as CRIU stores them. Raises ``ImagesError``."""
        entries: list[dict[str, Any]] = decode(f"{self.images.directory}/{name}")["entries"]
        return entries

    def files(self, kind: type[F]) -> list[F]:
        """The open files of this class."""
        return [each for each in self.images.files if isinstance(each, kind)]

    def is_inherited(self, key: str) -> bool:
        """Whether ``inherit_fds`` has this key."""
        keys = {str(getattr(each, "key", "")) for each in self.opts.inherit_fds or ()}
        return key in keys or key.lstrip("/") in keys

    def joins(self, kind: str) -> bool:
        """Whether ``join_ns`` has a namespace of this kind."""
        return any(str(getattr(each, "kind", "")) == kind for each in self.opts.join_ns or ())


def _finding(
    severity: Severity, subject: str | int, message: str, cure: str, *options: str
) -> Finding:
    """A finding on a pid, a path or another subject; ``check_images`` sets the id."""
    about: dict[str, Any] = {"subject": subject}
    if isinstance(subject, int):
        about = {"pid": subject}
    elif subject.startswith("/"):
        about = {"path": subject}
    return Finding(id="", severity=severity, message=message, cure=cure, options=options, **about)


stops = functools.partial(_finding, Severity.STOPS)
warning = functools.partial(_finding, Severity.WARNING)
note = functools.partial(_finding, Severity.NOTE)


def predicted(subject: str | int, failure: str, *options: str) -> Finding:
    """A failure of CRIU that the images predict."""
    entry = known(failure)
    return stops(subject, entry.cause, entry.cure, *options)
