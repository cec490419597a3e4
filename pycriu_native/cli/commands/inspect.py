"""``inspect``: the contents of images (extra ``[images]``)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from .. import parameters
from ..command import Call, Command
from ..exit_codes import Exit
from ..image_memory import address_range, pattern_of, read_memory, search_memory
from ..image_sets import archive_text, images_package, set_in
from ..text import columns, safe

if TYPE_CHECKING:
    from ...images import ImageSet, Process


@Command(
    "inspect",
    help="Show the contents of the images in DIRECTORY, or in an archive of them.\n\n"
    "By default the release of CRIU that wrote the images, their size, the processes and "
    "missing images are shown. The exit status is 11 if the set is incomplete, or if --search "
    "finds nothing. Nothing is restored, and no CRIU is needed.",
    examples=[
        "pycriu-native inspect ckpt",
        "pycriu-native inspect ckpt --tree",
        "pycriu-native inspect ckpt --pid 4242 --memory --files",
        "pycriu-native inspect ckpt --search 'BEGIN PRIVATE KEY'",
        "pycriu-native inspect ckpt --search 'token=[0-9a-f]+' --regex --context 16",
        "pycriu-native inspect ckpt --pid 4242 --read 7f0000001000+40",
        "pycriu-native inspect ckpt --pid 4242 --kind heap -o heap.bin",
        "pycriu-native inspect podman.tar.gz",
        "pycriu-native inspect ckpt --json | jq '.result.processes[].command'",
    ],
    exits=(Exit.IMAGES, Exit.UNSUPPORTED, Exit.NO),
    params=[
        click.Argument(["directory"], type=click.Path()),
        parameters.option(
            "-p", "--pid", metavar="PID", help="Show only this process.", **parameters.PID
        ),
        parameters.flag("--tree", help="Show the whole set as a tree."),
        parameters.flag("--memory", help="Show the mappings of each process."),
        parameters.flag("--files", help="Show the descriptors of each process."),
        parameters.flag("--environment", help="Show the environment of each process."),
        parameters.flag("--sockets", help="Show only the sockets."),
        parameters.flag("--mounts", help="Show only the mounts."),
        parameters.option(
            "--kind",
            multiple=True,
            metavar="KIND",
            help="Only mappings of this kind, as --memory shows it; may be repeated.",
        ),
        parameters.option(
            "--protection",
            default="",
            metavar="LETTERS",
            help="Only mappings with these permissions, such as 'rw'.",
            show_default=False,
        ),
        parameters.option(
            "--read",
            type=address_range,
            metavar="RANGE",
            help="Print memory as hexadecimal digits and text. RANGE is START-END or "
            "START+SIZE in hexadecimal digits.",
        ),
        parameters.file_option(
            "-o",
            "--output",
            help="Write the bytes of --read, or all memory in the images, to this file.",
        ),
        parameters.OVERWRITE,
        parameters.option(
            "--search", metavar="TEXT", help="Print the addresses of this text in memory."
        ),
        parameters.flag("--regex", help="TEXT of --search is a regular expression."),
        parameters.option(
            "--context",
            type=click.IntRange(0, 2**20),
            default=0,
            metavar="BYTES",
            help="Print the text that --search finds, with this many bytes before and after.",
            show_default=False,
        ),
    ],
).runs
def _inspect(
    call: Call,
    directory: str,
    pid: int | None,
    kind: tuple[str, ...],
    protection: str,
    read: tuple[int, int] | None,
    output: str | None,
    overwrite: bool,
    search: str | None,
    regex: bool,
    context: int,
    **views: bool,
) -> Exit:
    """Show what ``views`` names, the flags of the command line: memory, files, ..."""
    if search is not None and (read is not None or output is not None):
        raise click.UsageError("--search and --read or --output: one is accepted.")
    if search is None and (regex or context):
        raise click.UsageError("--regex and --context are accepted with --search only.")
    if output is not None:
        parameters.check_new(output, overwrite)
    images = images_package()
    _check_filters(images, kind, protection)
    if search == "":
        raise click.BadParameter("at least one character is accepted", param_hint="--search")
    with set_in(directory) as (place, archive, _):
        result: ImageSet = images.inspect(place)
        if archive is not None:  # instead of the temporary directory
            result = dataclasses.replace(result, directory=os.path.abspath(directory))
        chosen = tuple(
            _with_mappings(each, kind, protection)
            for each in (result.processes if pid is None else (result.process(pid),))
        )
        code = Exit.DONE if result.complete else Exit.NO
        if search is not None:
            return search_memory(call, chosen, pattern_of(search, regex), context)
        if read is not None or output is not None:
            return read_memory(call, chosen, read, output)
        if views["sockets"] or views["mounts"]:
            return _sockets_and_mounts(call, images, result, chosen, views)
        if call.out.as_json:
            body: Any = result if pid is None else chosen[0]
            if archive is not None:
                body = {**body.to_dict(), "archive": archive}
            return call.out.result(body, "", code=code)
        renderers: dict[str, Callable[[Process], str]] = {
            "memory": images.render_memory,
            "files": lambda process: images.render_files(result, process),
            "environment": lambda process: "\n".join(map(safe, process.environment or ())),
        }
        parts = [
            f"process {process.pid} ({safe(process.name)})\n{render(process)}"
            for process in chosen
            if process.state != "zombie"
            for name, render in renderers.items()
            if views[name]
        ]
        if not any(views[name] for name in renderers):
            parts += [] if archive is None else [archive_text(archive)]
            parts.append(_overview(call, images, result, views["tree"], pid))
        return call.out.answer(None, "\n\n".join(parts), code=code)


def _check_filters(images: ModuleType, kinds: Sequence[str], protection: str) -> None:
    """Refuse a kind that no mapping has, and letters that are no permission."""
    known = [str(each) for each in images.VmaKind]
    for each in kinds:
        if each not in known:
            rule = f"{each!r}: one of {', '.join(known)} is accepted"
            raise click.BadParameter(rule, param_hint="--kind")
    if not set(protection) <= set("rwxps-"):
        rule = f"{protection!r}: the letters r, w, x, p (private) and s (shared) are accepted"
        raise click.BadParameter(rule, param_hint="--protection")


def _with_mappings(process: Process, kinds: Sequence[str], protection: str) -> Process:
    """The process with only the mappings of these kinds and with these permissions."""
    if not kinds and not protection:
        return process
    chosen = (
        each
        for each in process.mappings
        if (not kinds or str(each.kind) in kinds) and set(protection) <= set(each.protection)
    )
    return dataclasses.replace(process, mappings=tuple(chosen))


def _sockets_and_mounts(
    call: Call,
    images: ModuleType,
    result: ImageSet,
    processes: Sequence[Process],
    views: Mapping[str, bool],
) -> Exit:
    body: dict[str, list[Any]] = {}
    parts = []
    if views["sockets"]:
        by_id = {each.id: each for each in result.files if each.type.endswith("SK")}
        found = [
            (process.pid, each.fd, by_id[each.file])
            for process in processes
            for each in process.descriptors
            if each.file in by_id
        ]
        body["sockets"] = [{"pid": pid, "fd": fd, **file.to_dict()} for pid, fd, file in found]
        heads = ("pid", "fd", "socket")
        parts.append(images.render_table(heads, [(pid, fd, file.label) for pid, fd, file in found]))
    if views["mounts"]:
        body["mounts"] = [each.to_dict() for each in result.mounts]
        rows = [
            (each.point, each.type, each.source, each.options, each.external or "")
            for each in result.mounts
        ]
        parts.append(
            images.render_table(("mount point", "type", "source", "options", "external"), rows)
        )
    return call.out.answer(body, "\n\n".join(parts))


def _overview(call: Call, images: ModuleType, found: ImageSet, tree: bool, pid: int | None) -> str:
    width = call.out.width
    if tree:
        return str(images.render_tree(found, width=width))
    if pid is None:
        processes = images.render_processes(found, width=max(20, width - 50))
        return f"{images.render_summary(found)}\n\n{processes}"
    process = found.process(pid)
    rows = [
        ("pid", f"{pid}, child of {process.parent}, {process.state}"),
        ("command", " ".join(process.command or (f"[{process.name}]",))),
        ("program", process.executable or ""),
        ("directory", process.cwd or ""),
        ("threads", ", ".join(f"{each.tid} {each.name}" for each in process.threads)),
    ]
    return "\n".join(columns((name, safe(value)) for name, value in rows if value))
