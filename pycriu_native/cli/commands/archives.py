"""``pack``, ``unpack``, ``seal``, ``verify``: image sets that are kept or moved."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import BinaryIO, Literal

import click

from ..._integrity.manifest import seal, verify
from ...archive.pack import pack, unpack
from .. import command, streams
from ..command import Call, Command, compress_option, encrypt_to_option, identity_option
from ..exit_codes import Exit
from ..text import safe, size

EXITS = (Exit.IMAGES, Exit.UNSUPPORTED)


def _pack(
    call: Call,
    directory: str,
    archive: str,
    inside: str,
    compress: str,
    encrypt_to: tuple[str, ...],
) -> Exit:
    with command.extra("archive"), _stream(archive, "wb") as target:
        total = pack(
            directory,
            target,
            inside=inside,
            compress=compress,  # type: ignore[arg-type]
            encrypt_to=encrypt_to,
        )
    if archive == "-":
        call.out.hint(f"packed {size(total)}")
        return Exit.DONE
    written = os.stat(archive).st_size
    body = {"directory": directory, "archive": archive, "bytes": total, "archive_bytes": written}
    response = f"packed {size(total)} of {directory} into {archive}: {size(written)}"
    return call.out.result(body, safe(response))


def _unpack(
    call: Call,
    archive: str,
    directory: str,
    inside: str,
    identity: tuple[str, ...],
    limit: int | None,
) -> Exit:
    with command.extra("archive"), _stream(archive, "rb") as source:
        keys = [key for path in identity for key in keys_of(path)]
        total = unpack(source, directory, inside=inside, decrypt_with=keys, limit=limit)
    body = {"archive": archive, "directory": directory, "bytes": total}
    return call.out.result(body, safe(f"unpacked {size(total)} into {directory}"))


def _stream(
    name: str, mode: Literal["rb", "wb"]
) -> contextlib.AbstractContextManager[str | BinaryIO]:
    """A standard stream for ``-``, else the name."""
    return streams.standard(mode) if name == streams.STANDARD else contextlib.nullcontext(name)


def keys_of(path: str) -> Iterator[str]:
    """The identities in a file: an age file has one a line, an ssh key is one."""
    with open(path) as file:
        text = file.read()
    if "PRIVATE KEY" in text:
        yield text
    else:
        yield from (line for line in text.split() if line.startswith("AGE-SECRET-KEY-"))


def _seal(call: Call, directory: str) -> Exit:
    digest = seal(directory)
    return call.out.answer({"directory": directory, "sha256": digest}, digest)


def _verify(call: Call, directory: str, digest: str | None) -> Exit:
    verify(directory, digest)
    body = {"directory": directory, "sha256": digest}
    return call.out.result(body, safe(f"{directory} is as it was sealed"))


_INSIDE = click.Option(
    ["--inside"],
    default="",
    metavar="DIR",
    help="The directory of the archive that the images are in; Podman's is 'checkpoint'.",
)

COMMANDS = {
    "pack": Command(
        "pack",
        function=_pack,
        help="Write the image set in DIRECTORY as one archive; '-' is standard output.\n\n"
        "A chain of parents is packed by the directory that holds all of it. Images hold the "
        "memory of processes, their secrets included: --encrypt-to keeps them to the holders of "
        "a key.",
        examples=[
            "pycriu-native pack ckpt ckpt.tar.zst --compress zstd",
            "pycriu-native pack ckpt - --encrypt-to age1… | ssh HOST pycriu-native unpack - ckpt "
            "--identity key",
        ],
        exits=EXITS,
        params=[
            click.Argument(["directory"], type=click.Path(file_okay=False)),
            click.Argument(["archive"], type=click.Path(dir_okay=False, allow_dash=True)),
            compress_option("zstd is faster and smaller than gzip, none fastest."),
            encrypt_to_option("it"),
            _INSIDE,
        ],
    ),
    "unpack": Command(
        "unpack",
        function=_unpack,
        help="Read an archive of images into DIRECTORY, which is made; '-' is standard input.\n\n"
        "Compression and encryption are recognised, and archives of Podman, CRI-O and Kubernetes "
        "too (--inside checkpoint). After a failure nothing is left.",
        examples=[
            "pycriu-native unpack ckpt.tar.zst ckpt",
            "pycriu-native unpack podman.tar.gz ckpt --inside checkpoint",
        ],
        exits=EXITS,
        params=[
            click.Argument(["archive"], type=click.Path(dir_okay=False, allow_dash=True)),
            click.Argument(["directory"], type=click.Path(file_okay=False)),
            identity_option(),
            click.Option(
                ["--limit"],
                type=click.IntRange(min=0),
                metavar="BYTES",
                help="The most that its files may take. Default: what is free on the disk.",
            ),
            _INSIDE,
        ],
    ),
    "seal": Command(
        "seal",
        function=_seal,
        help="Write a manifest of the whole image set in DIRECTORY, and print its SHA-256.\n\n"
        "What it lists is synced to disk first. Keep the digest elsewhere, for verify.",
        examples=["pycriu-native seal ckpt", "pycriu-native seal ckpt --json | jq .result.sha256"],
        exits=EXITS,
        params=[click.Argument(["directory"], type=click.Path(file_okay=False))],
    ),
    "verify": Command(
        "verify",
        function=_verify,
        help="Hold the image set in DIRECTORY against its manifest, and that against DIGEST.\n\n"
        "It ends with 6, and names each file, if something was added, removed or changed. Without "
        "DIGEST, accidents are found, but not whoever has changed the manifest as well.",
        examples=["pycriu-native verify ckpt", "pycriu-native verify ckpt DIGEST"],
        exits=EXITS,
        params=[
            click.Argument(["directory"], type=click.Path(file_okay=False)),
            click.Argument(["digest"], required=False),
        ],
    ),
}
