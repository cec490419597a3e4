"""``check-images``: whether images can be restored here (extra ``[images]``)."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import click

from ...enums import CgroupMode, Verb
from ...findings import Severity, lines
from ..command import Call, Command
from ..errors import in_flags
from ..exit_codes import Exit
from ..image_sets import archive_text, images_package, set_in
from ..text import safe

if TYPE_CHECKING:
    from ...images import ImageSet
    from ...options.criu_opts import CriuOpts

_HEADINGS: dict[str, str] = {
    Severity.STOPS: "stops the restore",
    Severity.WARNING: "may fail or differ",
    Severity.NOTE: "for information",
}


@Command(
    "check-images",
    verb=Verb.RESTORE,
    help="Check whether DIRECTORY, or an archive, can be restored on this machine.\n\n"
    "The checks cover pids, files, sockets, mounts, the processor and CRIU's release. Give the "
    "options of the restore: they are taken into account. The exit status is 11 if a restore "
    "would fail. Nothing is restored or changed.",
    examples=[
        "pycriu-native check-images ckpt",
        "pycriu-native check-images ckpt --tcp-established --json | jq .result.findings",
        "pycriu-native check-images podman.tar.gz --root alpine-root",
    ],
    exits=(Exit.IMAGES, Exit.UNSUPPORTED, Exit.NO, Exit.NO_CRIU),
    params=[click.Argument(["directory"], type=click.Path())],
).runs
def _check_images(call: Call, directory: str) -> Exit:
    images = images_package()
    with set_in(directory, whole=True) as (place, archive, top):
        found: ImageSet = images.inspect(place)
        opts = call.opts
        text = []
        if archive is not None:
            text.append(archive_text(archive, changes=False))
            if archive.is_container:
                opts = _container_opts(found, opts, top)
        result = images.check_images(found, opts, via=call.via)
    if archive is not None:  # the directory that it was unpacked into is gone
        of_all = {"path": os.path.abspath(directory)}
        result = tuple(
            dataclasses.replace(each, **of_all) if each.path == found.directory else each
            for each in result
        )
    bad = any(each.severity is Severity.STOPS for each in result)
    text += [in_flags(safe(line)) for line in lines(result, _HEADINGS)]
    text.append("a restore here would fail" if bad else "no obstacle to a restore here was found")
    body = {"restorable": not bad, "findings": result}
    if archive is not None:
        body["archive"] = archive
    return call.out.answer(body, "\n".join(text), code=Exit.NO if bad else Exit.DONE)


def _container_opts(found: ImageSet, opts: CriuOpts, unpacked: str) -> CriuOpts:
    """The options, with those that ``ContainerCheckpoint.restoring`` adds."""
    from ...oci.checkpoint_archive import host_mounts

    host = host_mounts(unpacked)
    own = {each.external: each.point for each in found.mounts if each.point not in host}
    mounts = [pair for pair in own.items() if pair[0]]
    more: dict[str, Any] = {"ext_mounts": [*mounts, *(opts.ext_mounts or ())]}
    if opts.manage_cgroups_mode is None:
        more["manage_cgroups_mode"] = CgroupMode.SOFT
    return dataclasses.replace(opts, **more)
