"""``inspect``, ``diff``, ``check-images``, ``decode``, ``encode``: images (extra ``[images]``)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from ...enums import Verb
from ...errors import ImagesError
from ...findings import Severity, lines
from .. import command, json_form
from ..command import Call, Command
from ..errors import in_flags
from ..exit_codes import Exit
from ..text import columns, safe, size

if TYPE_CHECKING:
    from ...images import ImageSet, Process

EXITS = (Exit.IMAGES, Exit.UNSUPPORTED)


def _images() -> ModuleType:
    with command.extra("images"):
        from ... import images
    return images


# ---- inspect ----


def _inspect(
    call: Call,
    directory: str,
    pid: int | None,
    tree: bool,
    memory: bool,
    files: bool,
    environment: bool,
    search: str | None,
) -> Exit:
    images = _images()
    result: ImageSet = images.inspect(directory)
    chosen = result.processes if pid is None else (result.process(pid),)
    code = Exit.DONE if result.complete else Exit.NO
    if search is not None:
        return _search(call, chosen, search)
    if call.out.as_json:
        return call.out.result(result if pid is None else chosen[0], "", code=code)
    parts = [] if memory or files or environment else [_overview(call, images, result, tree, pid)]
    for process in chosen:
        if process.state != "zombie":
            parts += _details(images, result, process, memory, files, environment)
    return call.out.answer(None, "\n\n".join(parts), code=code)


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


def _details(
    images: ModuleType,
    found: ImageSet,
    process: Process,
    memory: bool,
    files: bool,
    environment: bool,
) -> Iterator[str]:
    head = f"process {process.pid} ({safe(process.name)})\n"
    if memory:
        yield head + images.render_memory(process)
    if files:
        yield head + images.render_files(found, process)
    if environment:
        yield head + "\n".join(safe(each) for each in process.environment or ())


def _search(call: Call, processes: Sequence[Process], text: str) -> Exit:
    """Find a text in the memory. The exit status is NO if it is not found."""
    result: list[dict[str, Any]] = []
    for process in processes:
        if process.pagemap is not None:
            for each in process.memory.search(os.fsencode(text)):
                mapping = each.mapping
                result.append(
                    {
                        "pid": process.pid,
                        "address": each.address,
                        "kind": str(mapping.kind),
                        "path": mapping.path,
                    }
                )
    rows = [
        (str(each["pid"]), f"{each['address']:#x}", each["kind"], safe(each["path"] or ""))
        for each in result
    ]
    message = (
        "\n".join(columns([("pid", "address", "kind", "file"), *rows])) if rows else "not found"
    )
    return call.out.answer(result, message, code=Exit.DONE if result else Exit.NO)


# ---- diff, decode, encode, check-images ----


def _diff(call: Call, before: str, after: str, no_memory: bool) -> Exit:
    images = _images()
    result = images.diff(before, after, memory=not no_memory)
    code = Exit.NO if result else Exit.DONE
    return call.out.answer(result, images.render_diff(result), code=code)


def _decode(call: Call, image: str) -> Exit:
    result = _images().decode(image)
    return call.out.answer(
        result, json.dumps(json_form.plain(result), indent=2, ensure_ascii=False)
    )


def _encode(call: Call, described: str, image: str) -> Exit:
    # Bytes that are not UTF-8 are lone surrogates, which JSON keeps.
    with click.open_file(described, encoding="utf-8", errors="surrogateescape") as file:
        try:
            result = json.load(file)
        except ValueError as error:
            raise ImagesError(f"{described} is not JSON: {error}") from None
    if isinstance(result, dict):
        result = result.get("result", result)  # of decode --json
    if not isinstance(result, dict):
        raise ImagesError(f"{described} is not an image in the form that decode prints")
    data = _images().encode(result)
    from ..._integrity.dump_record import record_size
    from ..._integrity.manifest import opened_directory
    from ...archive.pack import written_beside  # no other command here writes

    with written_beside(Path(image)) as file:  # mode 0600, as images have
        file.write(data)
    with opened_directory(Path(image).parent) as directory:
        record_size(directory, Path(image).name)
    body = {"image": image, "bytes": len(data)}
    return call.out.result(body, safe(f"wrote {size(len(data))} to {image}"))


def _check_images(call: Call, directory: str) -> Exit:
    images = _images()
    result = images.check_images(directory, call.opts, via=call.via)
    bad = any(each.severity is Severity.STOPS for each in result)
    text = [in_flags(safe(line)) for line in lines(result, _HEADINGS)]
    text.append("a restore here would fail" if bad else "no obstacle to a restore here was found")
    body = {"restorable": not bad, "findings": result}
    return call.out.answer(body, "\n".join(text), code=Exit.NO if bad else Exit.DONE)


_HEADINGS: dict[str, str] = {
    Severity.STOPS: "stops the restore",
    Severity.WARNING: "may fail or differ",
    Severity.NOTE: "for information",
}


def _directory(name: str = "directory") -> click.Argument:
    return click.Argument([name], type=click.Path(file_okay=False))


COMMANDS = {
    "inspect": Command(
        "inspect",
        function=_inspect,
        help="Show the contents of the images in DIRECTORY.\n\n"
        "The CRIU that wrote them, their size, the processes, and missing images; with an option "
        "also memory, files or environment. The exit status is 11 if the set is not complete, or "
        "--search finds nothing. Nothing is restored, and no CRIU is needed.",
        examples=[
            "pycriu-native inspect ckpt",
            "pycriu-native inspect ckpt --tree",
            "pycriu-native inspect ckpt --pid 4242 --memory --files",
            "pycriu-native inspect ckpt --search 'BEGIN PRIVATE KEY'",
            "pycriu-native inspect ckpt --json | jq '.result.processes[].command'",
        ],
        exits=(*EXITS, Exit.NO),
        params=[
            _directory(),
            click.Option(["-p", "--pid"], type=command.Pid(), help="This process only."),
            click.Option(["--tree"], is_flag=True, help="Everything, as a tree."),
            click.Option(["--memory"], is_flag=True, help="The mappings of each process."),
            click.Option(["--files"], is_flag=True, help="The descriptors of each process."),
            click.Option(["--environment"], is_flag=True, help="The environment of each process."),
            click.Option(
                ["--search"], metavar="TEXT", help="The places in memory where this text is."
            ),
        ],
    ),
    "diff": Command(
        "diff",
        function=_diff,
        help="Show what changed from the images in BEFORE to those in AFTER, page by page.\n\n"
        "The exit status is 0 if nothing changed, and 11 if something changed.",
        examples=[
            "pycriu-native diff ckpt/1 ckpt/2",
            "pycriu-native diff ckpt/1 ckpt/2 --json | jq .result.pages_changed",
        ],
        exits=(*EXITS, Exit.NO),
        params=[
            _directory("before"),
            _directory("after"),
            click.Option(["--no-memory"], is_flag=True, help="Do not read the pages: faster."),
        ],
    ),
    "decode": Command(
        "decode",
        function=_decode,
        help="Print an image FILE as JSON, in the fields of CRIU's own messages.",
        examples=[
            "pycriu-native decode ckpt/core-4242.img",
            "pycriu-native decode ckpt/pstree.img | jq '.entries[].pid'",
        ],
        exits=EXITS,
        params=[click.Argument(["image"], metavar="FILE", type=click.Path(dir_okay=False))],
    ),
    "encode": Command(
        "encode",
        function=_encode,
        help="Write the image FILE that JSON describes, in the form that decode prints.\n\n"
        "Unchanged messages keep the bytes that CRIU wrote. JSON may be '-', the standard input. "
        "An existing image is overwritten: change a copy of the set.",
        examples=[
            "pycriu-native decode ckpt/core-4242.img > core.json",
            "pycriu-native encode core.json copy/core-4242.img",
        ],
        exits=EXITS,
        params=[
            click.Argument(
                ["described"], metavar="JSON", type=click.Path(dir_okay=False, allow_dash=True)
            ),
            click.Argument(["image"], metavar="FILE", type=click.Path(dir_okay=False)),
        ],
    ),
    "check-images": Command(
        "check-images",
        function=_check_images,
        verb=Verb.RESTORE,
        help="Check a restore of DIRECTORY on this machine, without a restore.\n\n"
        "Pids, files, sockets, mounts, the processor, CRIU's release. Give the options of the "
        "restore: what they solve is not an obstacle. The exit status is 11 if a restore would "
        "fail. Nothing is changed.",
        examples=[
            "pycriu-native check-images ckpt",
            "pycriu-native check-images ckpt --tcp-established --json | jq .result.findings",
        ],
        exits=(*EXITS, Exit.NO, Exit.NO_CRIU),
        params=[_directory()],
    ),
}
