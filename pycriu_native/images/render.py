"""Image sets and their differences as text.

Text in images comes from the dumped processes, so control characters are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .._support.kernel_text import escaped as safe
from .._support.sizes import size_text as human
from .difference import Change, Difference, MappingChange, PageChange, ProcessChange, files_by_fd
from .memory_mapping import Value
from .model import File, ImageSet, Process


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def render_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns of text under headings; numbers to the right. Ends without a newline."""
    listed = list(rows)
    texts = [headings, *([safe(str(cell)) for cell in row] for row in listed)]
    columns = []
    for number, cells in enumerate(zip(*texts, strict=True)):
        width = max(map(len, cells))
        to_right = listed and all(isinstance(row[number], int | float) for row in listed)
        columns.append([cell.rjust(width) if to_right else cell.ljust(width) for cell in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def render_summary(images: ImageSet) -> str:
    """The set in a few lines: CRIU release, size, missing images."""
    made = f"CRIU {images.criu}" if images.criu else "CRIU"
    if not images.criu and images.criu_at_least:
        made += f" {images.criu_at_least} or later"
    if images.kernel:
        made += f", kernel {images.kernel}"
    sizes = ", ".join(
        f"{name} {human(size)}"
        for name, size in sorted(images.size_by_category.items(), key=lambda each: -each[1])
    )
    lines = [
        f"{images.kind} in {safe(images.directory)}",
        f"made by {made}; format {images.version}"
        + (f", {images.architecture}" if images.architecture else "")
        + (", compressed" if images.compressed else ""),
        f"size {human(images.size)}: {sizes}",
    ]
    if images.statistics:
        dump = images.statistics
        lines.append(
            f"frozen {dump.frozen_time / 1e6:.3f} s, {dump.pages_written} pages written, "
            f"{dump.pages_skipped_parent} left in the parent, {dump.pages_lazy} lazy"
        )
    own = [each for each in images.namespaces if not each.host]
    if own:
        lines.append("own namespaces: " + ", ".join(sorted({each.kind for each in own})))
    for parent in images.parents:
        state = "" if parent.exists else " (does not exist)"
        lines.append(f"parent {safe(parent.directory)}{state}")
    lines += [f"problem: {safe(problem)}" for problem in images.problems]
    lines.append("complete" if images.complete else "incomplete")
    return "\n".join(lines)


def render_processes(images: ImageSet, *, width: int = 100) -> str:
    """The process tree, one line each, with memory as mapped and as stored."""
    rows = []
    for depth, each in images.tree():
        command = " ".join(each.command) if each.command else f"[{each.name}]"
        state = "" if each.state == "alive" else f" ({each.state})"
        rows.append(
            (
                each.pid,
                len(each.threads),
                human(sum(one.size for one in each.mappings)),
                human(sum(one.stored for one in each.mappings)),
                len(each.descriptors),
                _short("  " * depth + safe(command) + state, width),
            )
        )
    return render_table(("pid", "threads", "mapped", "stored", "fds", "command"), rows)


def render_memory(process: Process) -> str:
    """The mappings of one process."""
    rows = []
    for each in process.mappings:
        sizes = map(human, (each.size, each.stored, each.in_parent, each.lazy, each.zero))
        where = f"{each.start:x}-{each.end:x}"
        rows.append((where, each.protection, each.kind, *sizes, each.path or ""))
    headings = ("range", "prot", "kind", "size", "stored", "parent", "lazy", "zero", "file")
    return render_table(headings, rows)


def render_files(images: ImageSet, process: Process) -> str:
    """The descriptors of one process and their files."""
    files = files_by_fd(images, process)
    rows = [(fd, file.type.lower(), file.label) for fd, file in files.items()]
    return render_table(("fd", "type", "what"), rows)


def render_tree(images: ImageSet, *, width: int = 100) -> str:
    """A set as indented lines: the processes, and below each one its memory, files and timers."""
    lines = [render_summary(images), ""]
    by_id = {each.id: each for each in images.files}
    for depth, each in images.tree():
        lines += _branch(depth, each, by_id, width)
    for lock in images.locks:
        lines.append(f"lock {lock.kind} of {lock.pid}, fd {lock.fd}")
    for space in images.namespaces:
        if not space.host:
            more = "" if space.external is None else f" external {safe(space.external)}"
            lines.append(f"namespace {space.kind} {space.id}{more}")
    for mount in images.mounts:
        more = " external" if mount.external is not None else ""
        lines.append(f"mount {safe(mount.point)} {mount.type} {safe(mount.source)}{more}")
    for device in images.devices:
        lines.append(f"device {safe(device.name)} {device.type} mtu {device.mtu}")
    for group in images.cgroups:
        lines.append(f"cgroup {','.join(group.controllers)}:{safe(group.path)}")
    return "\n".join(lines)


def _branch(depth: int, process: Process, by_id: dict[int, File], width: int) -> Iterator[str]:
    pad = "  " * depth
    command = " ".join(process.command) if process.command else f"[{process.name}]"
    yield _short(f"{pad}{process.pid} {safe(command)}", width)
    pad += "    "
    names = ", ".join(f"{each.tid} {safe(each.name)}" for each in process.threads)
    yield _short(f"{pad}{process.state}, threads: {names}", width)
    if process.cwd:
        yield f"{pad}in {safe(process.cwd)}"
    if process.credentials:
        yield f"{pad}uid {process.credentials.uid}, gid {process.credentials.gid}"
    for kind, sizes in process.memory_by_kind.items():
        parts = [f"{human(size)} {name}" for name, size in sizes.items() if size and name != "size"]
        more = f" ({', '.join(parts)})" if parts else ""
        yield f"{pad}{kind}: {human(sizes['size'])}{more}"
    for each in process.descriptors:
        what = by_id[each.file].label if each.file in by_id else "?"
        yield f"{pad}fd {each.fd}: {safe(what)}"
    for timer in process.timers:
        yield f"{pad}timer {timer.kind}: {timer.value:g} s, then every {timer.interval:g} s"


def render_diff(difference: Difference) -> str:
    """The changes as text."""
    if not difference:
        return "no difference"
    lines = [f"process {pid} was removed" for pid in difference.removed]
    lines += [f"process {pid} was added" for pid in difference.added]
    lines += [f"{name}: {values}" for name, values in _entries(difference.changes)]
    for process in difference.processes:
        lines += _changed(process)
    size = sum(
        process.page_size * (each.changed + each.added)
        for process in difference.processes
        for each in process.pages
    )
    lines.append(
        f"memory: {difference.pages_changed} pages changed, {difference.pages_added} added, "
        f"{difference.pages_removed} removed, {difference.pages_same} the same; "
        f"{human(size)} differ"
    )
    return "\n".join(lines)


def _entries(changes: Iterable[Change]) -> Iterator[tuple[str, str]]:
    """The name and the values of each part that changed, as text."""
    for each in changes:
        for name, before, after in _parts(each.name, each.before, each.after):
            yield safe(name), f"{safe(str(before))} -> {safe(str(after))}"


def _parts(name: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    """The parts of a value that changed: keys, fields, and members that were added or removed."""
    if isinstance(before, Value) and isinstance(after, Value):
        before, after = before.to_dict(), after.to_dict()
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in [*before, *(key for key in after if key not in before)]:
            was, now = before.get(key), after.get(key)
            if was != now:
                yield from _parts(f"{name}.{key}", was, now)
    elif _is_table(before) and _is_table(after):
        yield from ((name, each, None) for each in before if each not in after)
        yield from ((name, None, each) for each in after if each not in before)
        if not [each for each in (*before, *after) if (each in before) != (each in after)]:
            yield name, before, after  # another order, or another number
    else:
        yield name, before, after


def _is_table(value: Any) -> bool:
    """Whether a value has many members, or members with parts; a pair of limits has not."""
    if not isinstance(value, tuple | list):
        return False
    return not value or len(value) > 4 or isinstance(value[0], Value | Mapping)


def _changed(process: ProcessChange) -> Iterator[str]:
    yield f"process {process.pid} ({safe(process.name)})"
    for name, values in _entries(process.changes):
        yield f"  {name}: {values}"
    for tid in process.threads_removed:
        yield f"  thread {tid} was removed"
    for tid in process.threads_added:
        yield f"  thread {tid} was added"
    for fd in process.descriptors:
        if fd.before is None or fd.after is None:
            state, what = (
                ("was added", fd.after) if fd.before is None else ("was removed", fd.before)
            )
            yield f"  fd {fd.fd} {state}: {safe(str(what))}"
        else:
            changes = ", ".join(f"{name} {values}" for name, values in _entries(fd.changes))
            yield f"  fd {fd.fd} {safe(fd.after)}: {changes}"
    for mapping in process.mappings:
        before, after = mapping.before or "none", mapping.after or "none"
        yield f"  mapping {_where(mapping)}: {before} -> {after}"
    for page in process.pages:
        if page.changed or page.added or page.removed:
            yield (
                f"  pages {page.start:x}-{page.end:x} {_where(page)}: {page.changed} changed, "
                f"{page.added} added, {page.removed} removed, {page.same} the same"
            )


def _where(change: MappingChange | PageChange) -> str:
    """Kind and file of a mapping."""
    return f"{change.kind} {safe(change.path)}" if change.path else str(change.kind)
