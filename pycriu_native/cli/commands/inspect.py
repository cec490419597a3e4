"""``inspect``, ``diff``, ``check-images``, ``decode``, ``encode``: images (extra ``[images]``)."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from ...enums import CgroupMode, Verb
from ...errors import ImagesError
from ...findings import Severity, lines
from .. import command, json_form
from ..command import Call, Command
from ..errors import in_flags
from ..exit_codes import Exit
from ..option_parameters import ParamType
from ..text import columns, safe, size

if TYPE_CHECKING:
    from ...archive.container_checkpoint import ArchiveContents
    from ...images import ImageSet, Process
    from ...options.criu_opts import CriuOpts

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
    sockets: bool,
    mounts: bool,
    kind: tuple[str, ...],
    protection: str,
    read: tuple[int, int] | None,
    output: str | None,
    search: str | None,
    regex: bool,
    context: int,
) -> Exit:
    images = _images()
    with _set_in(directory) as (place, archive, _):
        result: ImageSet = images.inspect(place)
        chosen = tuple(
            _with_mappings(each, kind, protection)
            for each in (result.processes if pid is None else (result.process(pid),))
        )
        code = Exit.DONE if result.complete else Exit.NO
        if search is not None:
            return _search(call, chosen, _pattern(search, regex), context)
        if read is not None or output is not None:
            return _read(call, chosen, read, output)
        if sockets or mounts:
            return _alone(call, images, result, chosen, sockets, mounts)
        if call.out.as_json:
            body = result if pid is None else chosen[0]
            if archive is None:
                return call.out.result(body, "", code=code)
            return call.out.result({**body.to_dict(), "archive": archive}, "", code=code)
        own = memory or files or environment
        parts = [] if own else [_overview(call, images, result, tree, pid)]
        if archive is not None and not own:
            parts.insert(0, _of_archive(archive))
        for process in chosen:
            if process.state != "zombie":
                parts += _details(images, result, process, memory, files, environment)
        return call.out.answer(None, "\n\n".join(parts), code=code)


@contextmanager
def _set_in(
    place: str, *, whole: bool = False
) -> Iterator[tuple[str, ArchiveContents | None, str]]:
    """The directory of an image set: itself, or where an archive is unpacked meanwhile.

    The last value is the directory of all that was unpacked, which of a container's archive is
    more than the images if ``whole``.
    """
    if not os.path.isfile(place):
        yield place, None, place
        return
    from ...archive.container_checkpoint import archive_contents  # few sets are archives
    from ...archive.pack import unpack

    with command.extra("archive"), tempfile.TemporaryDirectory(prefix="pycriu-native-") as scratch:
        archive = archive_contents(place)
        top = f"{scratch}/set"
        if whole and archive.is_container:
            unpack(place, top)
            yield os.path.join(top, archive.inside), archive, top
        else:
            unpack(place, top, inside=archive.inside)
            yield top, archive, top


def _of_archive(archive: ArchiveContents, *, changes: bool = True) -> str:
    """The container of an archive, and the changes of its root file system."""
    rows = [
        ("container", archive.name),
        ("id", archive.id),
        ("image", archive.image),
        ("runtime", archive.runtime),
        ("engine", archive.engine),
        ("created", archive.created),
        ("checkpointed", archive.checkpointed),
        ("archive", f"{size(archive.size)}, images in {archive.inside or 'its top'}"),
    ]
    if archive.is_container and changes:
        total = size(sum(each for _, each in archive.changed))
        count = f"{len(archive.changed)} files, {total}; {len(archive.deleted)} deleted"
        rows.append(("changes of its files", count))
    lines = columns((name, safe(value)) for name, value in rows if value)
    if not changes:
        return "\n".join(lines)
    lines += [f"  changed {safe(name)} ({size(bytes_)})" for name, bytes_ in archive.changed]
    lines += [f"  deleted {safe(name)}" for name in archive.deleted]
    return "\n".join(lines)


def _with_mappings(process: Process, kinds: Sequence[str], protection: str) -> Process:
    """A process with those of its mappings that were chosen."""
    if not kinds and not protection:
        return process
    chosen = (
        each
        for each in process.mappings
        if (not kinds or str(each.kind) in kinds) and set(protection) <= set(each.protection)
    )
    return dataclasses.replace(process, mappings=tuple(chosen))


def _pattern(text: str, regex: bool) -> bytes | re.Pattern[bytes]:
    if not regex:
        return os.fsencode(text)
    try:
        return re.compile(os.fsencode(text))
    except re.error as error:
        raise click.BadParameter(f"{text!r} is no regular expression: {error}") from None


def _read(
    call: Call, processes: Sequence[Process], where: tuple[int, int] | None, output: str | None
) -> Exit:
    """Memory to a file, or as hexadecimal digits and text."""
    with_memory = [each for each in processes if each.pagemap is not None]
    if len(with_memory) != 1:
        raise click.UsageError("--pid names the process whose memory is read: there are more")
    memory = with_memory[0].memory
    if where is not None:
        pieces = iter([(where[0], memory.read(where[0], where[1] - where[0]))])
    else:
        pieces = ((at, data) for at, data, _, _ in memory.pieces() if data is not None)
    if output is None:
        data = b"".join(data for _, data in pieces)
        at = 0 if where is None else where[0]
        body = {"address": at, "data": data}
        return call.out.answer(body, "\n".join(_hex_dump(at, data)))
    from ...archive.pack import written_beside

    total = 0
    with written_beside(Path(output)) as file:
        for _, data in pieces:
            total += file.write(data)
    return call.out.result(
        {"file": output, "bytes": total}, safe(f"wrote {size(total)} to {output}")
    )


def _hex_dump(address: int, data: bytes) -> Iterator[str]:
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        text = "".join(chr(each) if 32 <= each < 127 else "." for each in row)
        yield f"{address + at:016x}  {row.hex(' '):<47}  {text}"


def _alone(
    call: Call,
    images: ModuleType,
    result: ImageSet,
    processes: Sequence[Process],
    sockets: bool,
    mounts: bool,
) -> Exit:
    """Sockets or mounts on their own."""
    body: dict[str, list[Any]] = {}
    parts = []
    if sockets:
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
    if mounts:
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


def _search(
    call: Call, processes: Sequence[Process], pattern: bytes | re.Pattern[bytes], context: int
) -> Exit:
    """Find a text in the memory. The exit status is NO if it is not found."""
    result: list[dict[str, Any]] = []
    for process in processes:
        if process.pagemap is None:
            continue
        memory = process.memory
        for each in memory.search(pattern):
            mapping = each.mapping
            row = {
                "pid": process.pid,
                "address": each.address,
                "kind": str(mapping.kind),
                "path": mapping.path,
            }
            if context or isinstance(pattern, re.Pattern):
                start = max(mapping.start, each.address - context)
                end = min(mapping.end, each.address + len(each.data) + context)
                try:
                    row["data"] = memory.read(start, end - start)
                except ImagesError:  # not all of it is in the images
                    row["data"] = each.data
            result.append(row)
    rows = [
        (
            str(each["pid"]),
            f"{each['address']:#x}",
            each["kind"],
            safe(each["path"] or ""),
            *([safe(os.fsdecode(each["data"]))] if "data" in each else []),
        )
        for each in result
    ]
    heads = ("pid", "address", "kind", "file", "data")[: len(rows[0]) if rows else 0]
    message = "\n".join(columns([heads, *rows])) if rows else "not found"
    return call.out.answer(result, message, code=Exit.DONE if result else Exit.NO)


# ---- diff, decode, encode, check-images ----


def _diff(call: Call, before: str, after: str, no_memory: bool) -> Exit:
    images = _images()
    result = images.diff(before, after, memory=not no_memory)
    code = Exit.NO if result else Exit.DONE
    return call.out.answer(result, images.render_diff(result), code=code)


def _decode(call: Call, image: str, output: str | None, info: bool, pretty: bool) -> Exit:
    with _image_file(image) as path:
        result = _images().decode(path, payload=not info, pretty=pretty)
    if info:
        body = {"magic": result["magic"], "entries": len(result["entries"])}
        return call.out.answer(body, f"{body['magic']}, entries: {body['entries']}")
    if pretty:
        text = json.dumps(result, indent=4)  # the layout of crit
    else:
        text = json.dumps(json_form.plain(result), indent=2, ensure_ascii=False)
    if output is None:
        return call.out.answer(result, text)
    from ...archive.pack import written_beside

    with written_beside(Path(output)) as file:
        file.write(text.encode(errors="surrogateescape") + b"\n")
    body = {"image": image, "file": output}
    return call.out.result(body, safe(f"wrote {output}"))


@contextmanager
def _image_file(image: str) -> Iterator[str]:
    """An image that has a name: the standard input is copied to a file."""
    if image != "-":
        yield image
        return
    with tempfile.TemporaryDirectory(prefix="pycriu-native-") as scratch:
        path = f"{scratch}/standard-input"
        with open(path, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield path


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
    with _set_in(directory, whole=True) as (place, archive, top):
        found: ImageSet = images.inspect(place)
        opts = call.opts
        text = []
        if archive is not None:
            text.append(_of_archive(archive, changes=False))
            if archive.is_container:
                opts = _as_container(found, opts, top)
        result = images.check_images(found, opts, via=call.via)
    bad = any(each.severity is Severity.STOPS for each in result)
    text += [in_flags(safe(line)) for line in lines(result, _HEADINGS)]
    text.append("a restore here would fail" if bad else "no obstacle to a restore here was found")
    body = {"restorable": not bad, "findings": result}
    if archive is not None:
        body["archive"] = archive
    return call.out.answer(body, "\n".join(text), code=Exit.NO if bad else Exit.DONE)


def _as_container(found: ImageSet, opts: CriuOpts, unpacked: str) -> CriuOpts:
    """The options, with those that a restore of a container's archive adds by itself."""
    from ...oci.checkpoint_archive import host_mounts

    host = host_mounts(unpacked)
    own = {each.external: each.point for each in found.mounts if each.point not in host}
    mounts = [pair for pair in own.items() if pair[0]]
    more: dict[str, Any] = {"ext_mounts": [*mounts, *(opts.ext_mounts or ())]}
    if opts.manage_cgroups_mode is None:
        more["manage_cgroups_mode"] = CgroupMode.SOFT
    return dataclasses.replace(opts, **more)


_HEADINGS: dict[str, str] = {
    Severity.STOPS: "stops the restore",
    Severity.WARNING: "may fail or differ",
    Severity.NOTE: "for information",
}


class _Range(ParamType):
    """Addresses, as in /proc/PID/maps."""

    name = "range"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """``START-END`` or ``START+SIZE``, in hexadecimal digits."""
        result = re.fullmatch(
            r"(?:0x)?([0-9a-f]{1,16})([-+])(?:0x)?([0-9a-f]{1,16})", value.lower()
        )
        if result is None:
            self.fail(f"{value!r}: START-END or START+SIZE in hexadecimal digits is accepted")
        start, end = int(result[1], 16), int(result[3], 16)
        end = start + end if result[2] == "+" else end
        if end < start:
            self.fail(f"{value!r} ends before it begins")
        return start, end


def _directory(name: str = "directory") -> click.Argument:
    return click.Argument([name], type=click.Path(file_okay=False))


COMMANDS = {
    "inspect": Command(
        "inspect",
        function=_inspect,
        help="Show the contents of the images in DIRECTORY, or in an archive of them.\n\n"
        "The CRIU that wrote them, their size, the processes, and missing images; with an option "
        "also memory, files or environment. The exit status is 11 if the set is not complete, or "
        "--search finds nothing. Nothing is restored, and no CRIU is needed.",
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
        exits=(*EXITS, Exit.NO),
        params=[
            click.Argument(["directory"], type=click.Path()),
            click.Option(["-p", "--pid"], type=command.Pid(), help="This process only."),
            click.Option(["--tree"], is_flag=True, help="Everything, as a tree."),
            click.Option(["--memory"], is_flag=True, help="The mappings of each process."),
            click.Option(["--files"], is_flag=True, help="The descriptors of each process."),
            click.Option(["--environment"], is_flag=True, help="The environment of each process."),
            click.Option(["--sockets"], is_flag=True, help="The sockets alone."),
            click.Option(["--mounts"], is_flag=True, help="The mounts alone."),
            click.Option(
                ["--kind"],
                multiple=True,
                metavar="KIND",
                help="Memory of mappings of this kind only, as --memory shows it; may be repeated.",
            ),
            click.Option(
                ["--protection"],
                default="",
                metavar="LETTERS",
                help="Memory of mappings with these permissions only, such as 'rw'.",
            ),
            click.Option(
                ["--read"],
                type=_Range(),
                metavar="RANGE",
                help="Bytes of memory as hexadecimal digits and text: START-END or START+SIZE, "
                "hexadecimal.",
            ),
            click.Option(
                ["-o", "--output"],
                type=click.Path(dir_okay=False),
                metavar="FILE",
                help="Write the bytes of --read, or all memory in the images, to this file.",
            ),
            click.Option(
                ["--search"], metavar="TEXT", help="The places in memory where this text is."
            ),
            click.Option(
                ["--regex"], is_flag=True, help="The text of --search is a regular expression."
            ),
            click.Option(
                ["--context"],
                type=click.IntRange(0, 2**20),
                default=0,
                metavar="BYTES",
                help="Show what is found by --search, with this many bytes around it.",
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
        help="Print an image FILE as JSON, in the fields of CRIU's own messages.\n\n"
        "'-' is the standard input.",
        examples=[
            "pycriu-native decode ckpt/core-4242.img",
            "pycriu-native decode ckpt/pstree.img | jq '.entries[].pid'",
            "pycriu-native decode ckpt/mm-4242.img --pretty",
        ],
        exits=EXITS,
        params=[
            click.Argument(
                ["image"], metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True)
            ),
            click.Option(
                ["-o", "--output"],
                type=click.Path(dir_okay=False),
                metavar="JSON",
                help="Write to this file.",
            ),
            click.Option(["--info"], is_flag=True, help="The kind and the number of entries only."),
            click.Option(
                ["--pretty"],
                is_flag=True,
                help="Addresses, flags, devices and states as text, as crit prints them.",
            ),
        ],
    ),
    "encode": Command(
        "encode",
        function=_encode,
        help="Write the image FILE that JSON describes, in the form that decode prints, pretty or "
        "not, and crit.\n\n"
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
        help="Check a restore of DIRECTORY, or of an archive, on this machine.\n\n"
        "Pids, files, sockets, mounts, the processor, CRIU's release. Give the options of the "
        "restore: what they solve is not an obstacle. The exit status is 11 if a restore would "
        "fail. Nothing is restored or changed.",
        examples=[
            "pycriu-native check-images ckpt",
            "pycriu-native check-images ckpt --tcp-established --json | jq .result.findings",
            "pycriu-native check-images podman.tar.gz --root alpine-root",
        ],
        exits=(*EXITS, Exit.NO, Exit.NO_CRIU),
        params=[click.Argument(["directory"], type=click.Path())],
    ),
}
