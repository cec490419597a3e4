"""``pack``, ``unpack``, ``seal``, ``verify``: storage and transport of image sets."""

from __future__ import annotations

import contextlib
import os
from typing import Any, BinaryIO, Literal

import click

from ..._integrity.manifest import seal, verify
from ...archive.pack import pack, unpack
from ...errors import CriuError, OptionError, Problem
from .. import parameters, streams
from ..command import Call, Command
from ..exit_codes import Exit
from ..text import safe, size

EXITS = (Exit.IMAGES, Exit.UNSUPPORTED)

_INSIDE = parameters.option(
    "--inside",
    default="",
    metavar="DIR",
    help="The directory of the images in the archive; in Podman's archives it is 'checkpoint'.",
    show_default=False,
)


@Command(
    "pack",
    help="Write the image set in DIRECTORY as one archive; '-' is standard output.\n\n"
    "To pack a set with its parents, name the directory that contains all of them. Images "
    "contain the memory of processes, including secrets: with --encrypt-to only the holders "
    "of a key can read them.",
    examples=[
        "pycriu-native pack ckpt ckpt.tar.zst --compress zstd",
        "pycriu-native pack ckpt - --encrypt-to age1… | ssh HOST pycriu-native unpack - ckpt "
        "--identity key",
    ],
    exits=EXITS,
    params=[
        parameters.directory_argument(),
        click.Argument(["archive"], type=click.Path(dir_okay=False, allow_dash=True)),
        parameters.compress_option(
            "zstd is faster than gzip and gives a smaller file; none is fastest."
        ),
        parameters.encrypt_to_option("it"),
        parameters.OVERWRITE,
        _INSIDE,
    ],
).runs
def _pack(call: Call, directory: str, archive: str, overwrite: bool, **settings: Any) -> Exit | int:
    """Pack a directory. ``settings`` are the other arguments of ``pack``."""
    if archive != streams.STANDARD:
        parameters.check_new(archive, overwrite)
    try:
        with _stream(archive, "wb") as target:
            total = pack(directory, target, **settings)
    except OSError as error:
        if archive != streams.STANDARD or error.filename is not None:
            raise
        why = f"standard output cannot be written: {error.strerror}"
        return call.out.failed(CriuError(why, verb="pack"), Exit.OUTPUT)
    if archive == streams.STANDARD:
        call.out.hint(f"packed {size(total)}")
        return Exit.DONE
    written = os.stat(archive).st_size
    body = {"directory": directory, "archive": archive, "bytes": total, "archive_bytes": written}
    text = f"packed {size(total)} of {directory} into {archive}: {size(written)}"
    return call.out.result(body, safe(text))


@Command(
    "unpack",
    help="Extract an archive of images into a new DIRECTORY; '-' is standard input.\n\n"
    "Compression and encryption are detected. Archives of Podman, CRI-O and Kubernetes need "
    "--inside checkpoint. A failure removes what was extracted.",
    examples=[
        "pycriu-native unpack ckpt.tar.zst ckpt",
        "pycriu-native unpack podman.tar.gz ckpt --inside checkpoint",
    ],
    exits=EXITS,
    params=[
        click.Argument(["archive"], type=click.Path(dir_okay=False, allow_dash=True)),
        parameters.directory_argument(),
        parameters.identity_option(),
        parameters.option(
            "--limit",
            type=click.IntRange(min=0),
            metavar="BYTES",
            help="Limit for the total size of the files. Default: the free space of the disk.",
        ),
        _INSIDE,
    ],
).runs
def _unpack(
    call: Call, archive: str, directory: str, identity: tuple[str, ...], **settings: Any
) -> Exit:
    """Extract an archive. ``settings`` are the other arguments of ``unpack``."""
    with _stream(archive, "rb") as source:
        keys = [key for path in identity for key in keys_of(path)]
        total = unpack(source, directory, decrypt_with=keys, **settings)
    body = {"archive": archive, "directory": directory, "bytes": total}
    return call.out.result(body, safe(f"unpacked {size(total)} into {directory}"))


def _stream(
    name: str, mode: Literal["rb", "wb"]
) -> contextlib.AbstractContextManager[str | BinaryIO]:
    """A standard stream for ``-``, else the file's name."""
    return streams.standard(mode) if name == streams.STANDARD else contextlib.nullcontext(name)


def keys_of(path: str) -> list[str]:
    """The private keys in a file: one a line of age, or one of ssh. ``OptionError`` without any."""
    with open(path, errors="replace") as file:
        text = file.read()
    if "PRIVATE KEY" in text:
        return [text]
    keys = [line for line in text.split() if line.startswith("AGE-SECRET-KEY-")]
    if not keys:
        rule = "a file with an age identity (AGE-SECRET-KEY-…) or an ssh private key is accepted"
        raise OptionError([Problem("decrypt_with", path, rule)])
    return keys


@Command(
    "seal",
    help="Write a manifest of the image set in DIRECTORY, and print its SHA-256.\n\n"
    "The files are synced to disk first. Store the digest in another place, for 'verify'.",
    examples=["pycriu-native seal ckpt", "pycriu-native seal ckpt --json | jq .result.sha256"],
    exits=EXITS,
    params=[parameters.directory_argument()],
).runs
def _seal(call: Call, directory: str) -> Exit:
    digest = seal(directory)
    return call.out.answer({"directory": directory, "sha256": digest}, digest)


@Command(
    "verify",
    help="Check the image set in DIRECTORY against its manifest, and the manifest against "
    "DIGEST.\n\n"
    "If a file was added, removed or changed, it is named, and the exit status is 6. Without "
    "DIGEST, a change of the manifest itself is not detected.",
    examples=["pycriu-native verify ckpt", "pycriu-native verify ckpt DIGEST"],
    exits=EXITS,
    params=[
        parameters.directory_argument(),
        click.Argument(["digest"], required=False),
    ],
).runs
def _verify(call: Call, directory: str, digest: str | None) -> Exit:
    verify(directory, digest)
    body = {"directory": directory, "sha256": digest}
    return call.out.result(body, safe(f"{directory} matches its manifest"))
