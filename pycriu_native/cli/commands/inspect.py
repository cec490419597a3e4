"""``inspect``, ``diff``, ``check-images``, ``decode``, ``encode`` (extra ``[images]``)."""

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
from ..temporary_copies import named_as
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
    overwrite: bool,
    search: str | None,
    regex: bool,
    context: int,
) -> Exit:
    if output is not None:
        command.check_new(output, overwrite)
    images = _images()
    _check_filters(images, kind, protection)
    if search == "":
        raise click.BadParameter("at least one character is accepted", param_hint="--search")
    with _set_in(directory) as (place, archive, _):
        result: ImageSet = images.inspect(place)
        if archive is not None:  # instead of the temporary directory
            result = dataclasses.replace(result, directory=os.path.abspath(directory))
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
            return _sockets_and_mounts(call, images, result, chosen, sockets, mounts)
        if call.out.as_json:
            body = result if pid is None else chosen[0]
            if archive is None:
                return call.out.result(body, "", code=code)
            return call.out.result({**body.to_dict(), "archive": archive}, "", code=code)
        own = memory or files or environment
        parts = [] if own else [_overview(call, images, result, tree, pid)]
        if archive is not None and not own:
            parts.insert(0, _archive_text(archive))
        for process in chosen:
            if process.state != "zombie":
                parts += _details(images, result, process, memory, files, environment)
        return call.out.answer(None, "\n\n".join(parts), code=code)


@contextmanager
def _set_in(
    place: str, *, whole: bool = False
) -> Iterator[tuple[str, ArchiveContents | None, str]]:
    """The directory of an image set, and if ``place`` is an archive, its description.

    An archive is extracted to a temporary directory, the last value; with ``whole`` all of a
    container's archive, else only its images.
    """
    if not os.path.isfile(place):
        yield place, None, place
        return
    from ...archive.container_checkpoint import archive_contents  # few sets are archives
    from ...archive.pack import unpack

    with command.extra("archive"), tempfile.TemporaryDirectory(prefix="pycriu-native-") as scratch:
        archive = archive_contents(place)
        top = f"{scratch}/set"
        with named_as(f"{place}: ", f"{top}/"):
            if whole and archive.is_container:
                unpack(place, top)
                yield os.path.join(top, archive.inside), archive, top
            else:
                unpack(place, top, inside=archive.inside)
                yield top, archive, top


def _archive_text(archive: ArchiveContents, *, changes: bool = True) -> str:
    """The description of a container's archive, with the changes of its root file system."""
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


def _check_filters(images: ModuleType, kinds: Sequence[str], protection: str) -> None:
    """Refuse a kind that no mapping has, and letters that are no permission."""
    known = [str(each) for each in images.VmaKind]
    for each in kinds:
        if each not in known:
            rule = f"{each!r}: one of {', '.join(known)} is accepted"
            raise click.BadParameter(rule, param_hint="--kind")
    if not set(protection) <= set("rwxps"):
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


def _pattern(text: str, regex: bool) -> bytes | re.Pattern[bytes]:
    if not regex:
        return os.fsencode(text)
    try:
        return re.compile(os.fsencode(text))
    except re.error as error:
        raise click.BadParameter(f"{text!r} is not a regular expression: {error}") from None


def _read(
    call: Call, processes: Sequence[Process], where: tuple[int, int] | None, output: str | None
) -> Exit:
    """Write memory to a file, or print it as hexadecimal digits and text."""
    with_memory = [each for each in processes if each.pagemap is not None]
    if len(with_memory) != 1:
        raise click.UsageError("--read and --output need --pid: the images have several processes.")
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


def _sockets_and_mounts(
    call: Call,
    images: ModuleType,
    result: ImageSet,
    processes: Sequence[Process],
    sockets: bool,
    mounts: bool,
) -> Exit:
    """Print only the sockets or mounts."""
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
    """Search the memory for a text. Returns ``Exit.NO`` if it is not found."""
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
                except ImagesError:  # the images do not have all of this range
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
    text = "\n".join(columns([heads, *rows])) if rows else "not found"
    return call.out.answer(result, text, code=Exit.DONE if result else Exit.NO)


# ---- diff, decode, encode, check-images ----


def _diff(call: Call, before: str, after: str, no_memory: bool) -> Exit:
    images = _images()
    result = images.diff(before, after, memory=not no_memory)
    code = Exit.NO if result else Exit.DONE
    return call.out.answer(result, images.render_diff(result), code=code)


def _decode(
    call: Call, image: str, output: str | None, overwrite: bool, info: bool, pretty: bool
) -> Exit:
    if output is not None:
        command.check_new(output, overwrite)
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
    """The path of an image file; standard input is copied to a temporary file."""
    if image != "-":
        yield image
        return
    with tempfile.TemporaryDirectory(prefix="pycriu-native-") as scratch:
        path = f"{scratch}/standard-input"
        with open(path, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        with named_as("standard input", path):
            yield path


def _encode(call: Call, described: str, image: str) -> Exit:
    # JSON can represent bytes that are not UTF-8 as lone surrogates.
    with click.open_file(described, encoding="utf-8", errors="surrogateescape") as file:
        try:
            result = json.load(file)
        except (ValueError, RecursionError) as error:
            raise ImagesError(f"{described} is not JSON: {error}") from None
    if isinstance(result, dict):
        result = result.get("result", result)  # of decode --json
    if not isinstance(result, dict):
        raise ImagesError(f"{described} is not an image in the form that decode prints")
    data = _images().encode(result)
    from ..._integrity.dump_record import record_again
    from ..._integrity.manifest import opened_directory
    from ...archive.pack import written_beside

    with written_beside(Path(image)) as file:  # mode 0600, as images have
        file.write(data)
    with opened_directory(Path(image).parent) as directory:
        record_again(directory, Path(image).name)
    body = {"image": image, "bytes": len(data)}
    return call.out.result(body, safe(f"wrote {size(len(data))} to {image}"))


def _check_images(call: Call, directory: str) -> Exit:
    images = _images()
    with _set_in(directory, whole=True) as (place, archive, top):
        found: ImageSet = images.inspect(place)
        opts = call.opts
        text = []
        if archive is not None:
            text.append(_archive_text(archive, changes=False))
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


_HEADINGS: dict[str, str] = {
    Severity.STOPS: "stops the restore",
    Severity.WARNING: "may fail or differ",
    Severity.NOTE: "for information",
}


class _Range(ParamType):
    """A range of addresses, as in /proc/PID/maps."""

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


COMMANDS = {
    "inspect": Command(
        "inspect",
        function=_inspect,
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
        exits=(*EXITS, Exit.NO),
        params=[
            click.Argument(["directory"], type=click.Path()),
            command.option("-p", "--pid", type=command.Pid(), help="Show only this process."),
            command.flag("--tree", help="Show the whole set as a tree."),
            command.flag("--memory", help="Show the mappings of each process."),
            command.flag("--files", help="Show the descriptors of each process."),
            command.flag("--environment", help="Show the environment of each process."),
            command.flag("--sockets", help="Show only the sockets."),
            command.flag("--mounts", help="Show only the mounts."),
            command.option(
                "--kind",
                multiple=True,
                metavar="KIND",
                help="Only mappings of this kind, as --memory shows it; may be repeated.",
            ),
            command.option(
                "--protection",
                default="",
                metavar="LETTERS",
                help="Only mappings with these permissions, such as 'rw'.",
                show_default=False,
            ),
            command.option(
                "--read",
                type=_Range(),
                metavar="RANGE",
                help="Print memory as hexadecimal digits and text. RANGE is START-END or "
                "START+SIZE in hexadecimal digits.",
            ),
            command.file_option(
                "-o",
                "--output",
                help="Write the bytes of --read, or all memory in the images, to this file.",
            ),
            command.overwrite_option(),
            command.option(
                "--search", metavar="TEXT", help="Print the addresses of this text in memory."
            ),
            command.flag("--regex", help="TEXT of --search is a regular expression."),
            command.option(
                "--context",
                type=click.IntRange(0, 2**20),
                default=0,
                metavar="BYTES",
                help="Print the text that --search finds, with this many bytes before and after.",
                show_default=False,
            ),
        ],
    ),
    "diff": Command(
        "diff",
        function=_diff,
        help="Show the differences between the images in BEFORE and in AFTER, page by page.\n\n"
        "The exit status is 0 if there is none, else 11.",
        examples=[
            "pycriu-native diff ckpt/1 ckpt/2",
            "pycriu-native diff ckpt/1 ckpt/2 --json | jq .result.pages_changed",
        ],
        exits=(*EXITS, Exit.NO),
        params=[
            command.directory_argument("before"),
            command.directory_argument("after"),
            command.flag("--no-memory", help="Do not read the pages: faster."),
        ],
    ),
    "decode": Command(
        "decode",
        function=_decode,
        help="Print an image FILE as JSON, with the names of fields in CRIU's messages.\n\n"
        "'-' is standard input.",
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
            command.option(
                "-o",
                "--output",
                type=click.Path(dir_okay=False),
                metavar="JSON",
                help="Write to this file.",
            ),
            command.overwrite_option(),
            command.flag("--info", help="Print only the kind and number of entries."),
            command.flag(
                "--pretty", help="Print addresses, flags, devices and states as text, as crit does."
            ),
        ],
    ),
    "encode": Command(
        "encode",
        function=_encode,
        help="Write the image FILE from JSON, which 'decode', 'decode --pretty' or crit has "
        "printed.\n\n"
        "Unchanged messages keep the bytes that CRIU wrote. JSON can be '-', standard input. An "
        "existing FILE is replaced: work on a copy of the image set.",
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
        help="Check whether DIRECTORY, or an archive, can be restored on this machine.\n\n"
        "The checks cover pids, files, sockets, mounts, the processor and CRIU's release. Give the "
        "options of the restore: they are taken into account. The exit status is 11 if a restore "
        "would fail. Nothing is restored or changed.",
        examples=[
            "pycriu-native check-images ckpt",
            "pycriu-native check-images ckpt --tcp-established --json | jq .result.findings",
            "pycriu-native check-images podman.tar.gz --root alpine-root",
        ],
        exits=(*EXITS, Exit.NO, Exit.NO_CRIU),
        params=[click.Argument(["directory"], type=click.Path())],
    ),
}
