"""Open files, their locks, and terminals (``criu/files-reg.c``, ``criu/tty.c``)."""

from __future__ import annotations

import errno
import os
import re
import stat

from ..._recovery import created_names
from ..._recovery.file_entries import FileEntries
from ..._recovery.link_remaps import has_link
from ..._system.descriptors import opened_directory
from ..._system.elf import build_id
from ..._system.host import type_of
from ..model import Mount, OtherFile, RegularFile, Terminal
from .context import Context, Findings, note, predicted, stops, warning

_OF_THREAD = re.compile(r"/proc/(\d+)/task/(?!\1(/|$))\d.*")
_OF_PROCESS = re.compile(r"/proc/\d+/([^/]*)(?:/.*)?", re.S)


def regular_files(context: Context) -> Findings:
    seen: set[tuple[str, int | None, int | None]] = set()
    hidden = 0
    # CRIU creates pseudo terminals, and ``shell_job`` uses another one.
    made = {each.path for each in context.files(Terminal) if each.kind == "PTY"}
    regular = context.files(RegularFile)
    links = {file.remap for file in regular if file.deleted == "linked"}
    known = {"", *os.listdir("/proc/self")}
    for file in regular:
        if file.external or file.id in links or context.is_inherited(file.path):
            continue
        path = _here(context, file)
        if path is None:
            hidden += 1
        elif _OF_THREAD.fullmatch(path):
            yield predicted(path, "thread-file")
        elif (of_process := _OF_PROCESS.fullmatch(path)) and of_process[1] not in known:
            yield predicted(path, "process-directory")
        elif path.startswith(("/proc/", "/sys/")) or file.path in made:
            continue
        # CRIU saves no size of a file that is open for appending.
        elif (key := (path, file.size, file.mode)) not in seen:
            seen.add(key)
            yield from _file(context, file, path)
    if hidden:
        yield note(
            "files",
            f"{hidden} files are in a mount namespace that does not exist yet: not checked",
            "root=PATH of its file system, to check those on it" if not context.opts.root else "",
            *(() if context.opts.root else ("root",)),
        )


def _here(context: Context, file: RegularFile) -> str | None:
    """The path of a file on this host; None if it is not known."""
    path = "/" + file.path.lstrip("/")
    mount = next((each for each in context.images.mounts if each.id == file.mount), None)
    if mount is None:
        return path if "mnt" in context.host else None
    if context.opts.root and _is_given_root(context, mount):
        return os.fsdecode(context.opts.root).rstrip("/") + path
    return None


def _is_given_root(context: Context, mount: Mount) -> bool:
    """Whether a mount is that of ``root``. A nested namespace can have another one at /."""
    tree = context.images.root
    space = tree.namespaces.get("mnt") if tree else None
    return mount.point == "/" and any(
        (each.source, each.root, each.type) == (mount.source, mount.root, mount.type)
        for each in context.images.mounts
        if each.namespace == space and each.point == "/"
    )


def _file(context: Context, file: RegularFile, path: str) -> Findings:
    if file.deleted is not None:
        return  # CRIU creates it, with its parent directories: see made_names
    try:
        link_itself = file.flags & os.O_PATH and file.flags & os.O_NOFOLLOW
        status = os.stat(path, follow_symlinks=not link_itself)
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        missing = isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR)
        why = error.strerror if isinstance(error, OSError) else "its path has a null byte"
        what = "does not exist" if missing else f"cannot be read: {why}"
        yield stops(path, what, "copy it here, or give another in inherit_fds", "inherit_fds")
        return
    yield from _same(context, file, path, status)


def _same(context: Context, file: RegularFile, path: str, status: os.stat_result) -> Findings:
    if file.mode is not None and file.mode != status.st_mode:
        if stat.S_IFMT(file.mode) != stat.S_IFMT(status.st_mode):
            what = f"is {type_of(status.st_mode)}, and was {type_of(file.mode)}"
            yield stops(path, what, "put back what it was")
        elif not context.opts.skip_file_rwx_check:
            yield stops(
                path,
                f"has the mode {status.st_mode & 0o7777:o}, and had {file.mode & 0o7777:o}",
                f"chmod {file.mode & 0o7777:o}, or skip_file_rwx_check=True",
                "skip_file_rwx_check",
            )
    if file.size is not None and stat.S_ISREG(status.st_mode) and file.size != status.st_size:
        yield stops(
            path,
            f"has {status.st_size} bytes, and had {file.size} at the dump",
            "put back the file as it was",
        )
    elif file.build_id and (result := build_id(path)) and not file.build_id.startswith(result):
        yield stops(
            path,
            f"has the build id {result}, and had {file.build_id}: another build of it",
            "install the same build",
        )


def made_names(context: Context) -> Findings:
    """Names that CRIU creates for deleted files, and links that its dump has created."""
    if context.images.mounts and not context.opts.root:
        return  # the root directory is not known
    with opened_directory(context.images.directory) as directory:
        names = created_names.made_names(FileEntries(directory), context.opts)
        for path in created_names.taken_names(names):
            yield stops(
                path,
                "remains of an interrupted restore, and CRIU cannot create it again",
                "remove it, unless a restore of these images is running",
            )
        for link in names.links:
            if not has_link(directory, link):
                yield stops(
                    link.path,
                    f"has no name any more, and {link.link}, which the dump linked to it, does "
                    "not exist (a restore removes it)",
                    f"link it to another name of the same file: ln OTHER-NAME {link.link}; on "
                    "another host copy it there",
                    "link_remap",
                )


def external_files(context: Context) -> Findings:
    for file in context.images.files:
        if file.flags & os.O_PATH and file.type not in ("REG", "NS", "EXT"):
            yield predicted(file.label, "path-descriptor")
    for file in context.files(RegularFile):
        if file.external and not context.is_inherited(file.path):
            yield stops(
                file.path,
                "this external file must be given",
                f"inherit_fds=[(fd, {file.path!r})]",
                "inherit_fds",
            )
    for other in context.files(OtherFile):
        if other.type == "EXT":
            yield warning(f"file {other.id}", "is of a plugin, which the restore needs", "")


def terminals(context: Context) -> Findings:
    inherited = [each for each in context.files(Terminal) if each.inherited]
    if inherited and not (context.opts.shell_job or context.opts.orphan_pts_master):
        yield stops(
            inherited[0].label,
            "belongs to a session that is not in the images",
            "shell_job=True on a terminal, or orphan_pts_master=True with a hook that takes it",
            "shell_job",
            "orphan_pts_master",
        )


def locks(context: Context) -> Findings:
    if context.images.locks and not context.opts.file_locks:
        yield warning(
            f"{len(context.images.locks)} file locks",
            "they are in the images, and a restore takes them only with file_locks",
            "file_locks=True",
            "file_locks",
        )
