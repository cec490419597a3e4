"""Checks the options of a verb before anything is changed.

Each rule reads the options, or a file that they name, and yields a :class:`Problem`. CRIU would
refuse, ignore or misread such values, mostly without a message. Rules of runc that are stricter
than CRIU's are marked. Sources: CRIU's ``criu/cr-service.c``, ``criu/config.c`` and the parser of
each option.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator

from .._integrity.dump_marker import FRAMES, is_of_set, unfinished, with_parents
from .._support.lazy import socket
from .._support.light_typing import TYPE_CHECKING
from .._support.sockets import of_another
from .._system.host import lack_of
from .._system.process import status_of
from .._system.process_identity import is_pid
from ..enums import Verb
from ..errors import OptionError, Problem
from ..options.criu_opts import CriuOpts
from ..options.fields import foreign_options
from ..options.table import TABLE
from ..options.value_types import Namespaces
from ..options.values import HasFileno, JoinNamespace, PageServer, descriptor_number
from .work_directory import from_work_directory, path_of

if TYPE_CHECKING:
    import re
    from ipaddress import IPv4Address, IPv6Address

Rule = Callable[[CriuOpts, Verb], Iterator[Problem]]

LARGEST_CONFIGURATION = 2**20
"""Bytes of the largest configuration file that is accepted: CRIU reads whole lines into memory."""


ONE_PROCESS = "the number of a process, 1 to 2147483647, a Pidfd or a ProcessIdentity is accepted"


def check(opts: CriuOpts, verb: Verb, pid: int | None = None) -> None:
    """Raise ``OptionError`` with all problems of these options for this verb."""
    problems = problems_of(_TOUCHING if verb in opts._remembered.sound_for else _RULES, opts, verb)
    if not problems and verb in (Verb.DUMP, Verb.PRE_DUMP):
        problems = list(_parent_of_another(opts, os.getpid() if pid is None else pid))
    if pid is not None and not is_pid(pid):
        problems.insert(0, Problem("pid", pid, ONE_PROCESS))
    if problems:
        raise OptionError(problems, verb=str(verb), pid=pid)
    opts._remembered.sound_for.add(verb)


def _matches(pattern: str, text: str) -> re.Match[str] | None:
    """The match of the whole text, which can have several lines; None if there is none."""
    import re  # slow to import, and few options need it

    return re.fullmatch(pattern, text, re.S)


def _together(opts: CriuOpts, field: str, other: str, why: str) -> Iterator[Problem]:
    """Two fields that must not both be set; False counts as unset."""
    if getattr(opts, field) not in (None, False) and getattr(opts, other) not in (None, False):
        yield Problem(field, getattr(opts, field), f"not together with {other}: {why}")


def _needs(opts: CriuOpts, field: str, other: str, why: str) -> Iterator[Problem]:
    """A field that has no effect without another one."""
    value = getattr(opts, field)
    if value not in (None, False, ()) and getattr(opts, other) in (None, False):
        yield Problem(field, value, f"needs {other}: {why}")


NO_DIRECTORY = Problem("images_directory", None, "a directory for the images is required")


def _directories(opts: CriuOpts, verb: Verb) -> Iterator[Problem]:
    if opts.images_directory is None and opts.images_dir is None:
        yield NO_DIRECTORY
    if opts.images_directory is not None and opts.images_dir is not None:
        rule = "not together with images_directory, which wins"
        yield Problem("images_dir", opts.images_dir, rule)
    for field in ("images_directory", "work_directory"):
        directory = getattr(opts, field)
        if directory is None or isinstance(directory, str):
            reads = verb is Verb.RESTORE or (
                bool(opts.lazy_pages) and verb in (Verb.PAGE_SERVER, Verb.PAGE_SERVER_CHILD)
            )
            missing_is_fine = field == "images_directory" and not reads
            if directory is None or (missing_is_fine and not os.path.lexists(directory)):
                continue
            if not os.path.isdir(directory):
                yield Problem(field, directory, f"{lack_of(directory)}: {_EXISTING}")
        elif problems := list(_open_descriptor(field, directory)):
            yield from problems
        elif not stat.S_ISDIR(os.fstat(descriptor_number(directory)).st_mode):
            yield Problem(field, directory, "an open directory is accepted")


_EXISTING = "an existing directory is accepted"


def _open_descriptor(field: str, value: int | HasFileno) -> Iterator[Problem]:
    try:
        os.fstat(descriptor_number(value))
    except (OSError, ValueError):
        yield Problem(field, value, "an open descriptor is accepted")


def _descriptors(opts: CriuOpts, verb: Verb) -> Iterator[Problem]:
    for field in ("status_fd", "pidfd_store_sk"):
        value = getattr(opts, field)
        if value is not None:
            yield from _open_descriptor(field, value)
    for item in opts.inherit_fds or ():
        yield from _open_descriptor("inherit_fds", item.fd)  # type: ignore[union-attr]


def _status_fd(opts: CriuOpts, verb: Verb) -> Iterator[Problem]:
    if opts.status_fd is None:
        return
    if verb is Verb.DUMP:
        # runc's rule: CRIU accepts it in any dump, but does not write to it.
        why = "CRIU writes to it only then (runc's rule)"
        yield from _needs(opts, "status_fd", "lazy_pages", why)
    try:
        flags = fcntl.fcntl(descriptor_number(opts.status_fd), fcntl.F_GETFL)
    except OSError:
        return  # a problem of _descriptors
    if flags & os.O_ACCMODE == os.O_RDONLY:
        yield Problem("status_fd", opts.status_fd, "a descriptor open for writing is accepted")


def _parent_image(opts: CriuOpts, verb: Verb) -> Iterator[Problem]:
    parent = opts.parent_image
    if not isinstance(parent, str):
        return
    is_read = verb in (Verb.DUMP, Verb.PRE_DUMP)
    if os.path.isabs(parent):
        # runc's rule: CRIU only warns, and the images can be restored on this host only.
        rule = "a path relative to the images directory is accepted (runc's rule)"
        yield Problem("parent_image", parent, rule)
        return
    base = images_path(opts)
    where = _parent(opts)
    if base is None or where is None:
        if is_read and opts.images_dir is not None:
            rule = f"needs images_directory instead of images_dir: {FRAMES} in it is read"
            yield Problem("parent_image", parent, rule)
        return
    if not os.path.isdir(where):
        rule = f"{lack_of(where)}: {_EXISTING}, relative to {base}"
        yield Problem("parent_image", parent, rule)
    elif is_read and not os.path.exists(f"{where}/inventory.img"):
        # CRIU would save all memory, with a line in its log; that of a page server has no line.
        rule = f"a directory with images is accepted, unlike {where}"
        yield Problem("parent_image", parent, rule)
    elif is_read and (half := unfinished(where)):
        # The dump would succeed and end the process, but CRIU could not restore the images.
        rule = f"images of a finished dump are accepted: the one to {half} did not finish"
        yield Problem("parent_image", parent, rule)
    elif is_read and not os.path.lexists(f"{where}/{FRAMES}"):
        # Memory that mremap(2) has moved since could not be detected (_integrity/moved_memory.py).
        rule = (
            f"{where} has no {FRAMES}: the images of the last pre_dump, or dump with track_mem, of "
            "this library are accepted once"
        )
        yield Problem("parent_image", parent, rule)
    link = os.path.join(base, "parent")
    if os.path.islink(link) and os.readlink(link) != parent:
        rule = (
            f"the images directory already has a link 'parent' to {os.readlink(link)!r}, "
            "which CRIU would use instead"
        )
        yield Problem("parent_image", parent, rule)


def _tracking(opts: CriuOpts, verb: Verb) -> Iterator[Problem]:
    if verb is Verb.DUMP:  # a pre-dump always tracks memory
        why = "also the last dump, which saves all memory without it"
        yield from _needs(opts, "parent_image", "track_mem", why)


def images_path(opts: CriuOpts) -> str | None:
    """The images directory as a path."""
    return None if opts.images_directory is None else path_of(opts.images_directory)


def _parent(opts: CriuOpts) -> str | None:
    """The directory of the parent images as a path; the images directory may not exist yet."""
    base = images_path(opts)
    if base is None or not isinstance(opts.parent_image, str):
        return None
    where = os.path.join(base, opts.parent_image)
    return where if os.path.isdir(base) else os.path.normpath(where)


def parents(opts: CriuOpts) -> Iterator[str]:
    """The directories of the parent images, as ``with_parents``; the direct parent first."""
    base = images_path(opts)
    return iter(()) if base is None else with_parents(_parent(opts) or f"{base}/parent")


def _parent_of_another(opts: CriuOpts, pid: int) -> Iterator[Problem]:
    """Parent images must have memory of the same process: else CRIU saves all of it, silently.

    Pages on a page server are not checked.
    """
    where = _parent(opts)
    if where is None or opts.page_server is not None:
        return
    try:
        own = status_of(pid)["NSpid"].split()[-1]
        names = os.listdir(where)
    except (OSError, KeyError):
        return  # there is no such process: the dump reports that
    pids = {name[8:-4] for name in names if name.startswith("pagemap-") and name[8:9].isdigit()}
    if pids and own not in pids:
        held = ", ".join(sorted(pids))
        rule = (
            f"images of the same process are accepted: pid {own} (in its own pid namespace) is "
            f"not among those of {where} ({held})"
        )
        yield Problem("parent_image", opts.parent_image, rule)


def _clear_text(opts: CriuOpts, verb: Verb) -> Iterator[Problem]:
    server = opts.page_server
    if not isinstance(server, PageServer) or server.clear_text or opts.tls:
        return
    address = server.address if server.fd is None else _peer(server.fd)
    if address and not _is_loopback(address):
        rule = (
            f"memory would cross the network to or from {address} in clear text: tls=True encrypts "
            "it, PageServer(..., clear_text=True) permits it"
        )
        yield Problem("page_server", server, rule)


def _peer(fd: int) -> str | None:
    """The IP address of the peer of a connection; None for other sockets."""
    try:
        with of_another(fd) as connection:
            name = connection.getpeername()
    except OSError:
        return None
    return name[0] if isinstance(name, tuple) and isinstance(name[0], str) else None


def _is_loopback(address: str) -> bool:
    parsed = _ip(address.partition("%")[0])
    if parsed is None:
        return address == "localhost"
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def _ip(address: str) -> IPv4Address | IPv6Address | None:
    """A numeric address; None for a name."""
    import ipaddress  # few calls have an address

    try:
        return ipaddress.ip_address(address)
    except ValueError:
        return None


def _page_server(opts: CriuOpts, verb: Verb) -> Iterator[Problem]:
    server = opts.page_server
    is_server = verb in (Verb.PAGE_SERVER, Verb.PAGE_SERVER_CHILD)
    serves = is_server or (bool(opts.lazy_pages) and verb is Verb.DUMP)
    if not isinstance(server, PageServer):
        if serves:
            rule = (
                "the address to serve pages on is required; without one CRIU listens on every "
                "address of the machine"
            )
            yield Problem("page_server", None, rule)
        return
    if server.fd is not None:
        if server.address is not None or server.port is not None:
            rule = "a descriptor, or address and port, is accepted: CRIU uses the descriptor only"
            yield Problem("page_server", server, rule)
        return
    if is_server and not server.address:
        yield Problem("page_server", server, "an address is required; port 0 lets CRIU choose")
    elif not is_server and not (server.address and server.port):
        # runc's rule: CRIU uses loopback without an address, and port 0 without a port.
        yield Problem("page_server", server, "address and port are both required (runc's rule)")
    elif serves and _ip(server.address or "") is None:
        yield Problem("page_server", server, "pages are served on a numeric address, not a name")


def _tls(opts: CriuOpts, verb: Verb) -> Iterator[Problem]:
    if opts.tls and opts.page_server is None:
        yield Problem("tls", True, "needs page_server: there is no connection to encrypt")
    for field in ("tls_no_cn_verify", "tls_cacert", "tls_cacrl", "tls_cert", "tls_key"):
        yield from _needs(opts, field, "tls", "it does nothing by itself")
    for field in ("tls_cacert", "tls_cacrl", "tls_cert", "tls_key"):
        path = getattr(opts, field)
        if path is not None and not os.path.isfile(path):
            yield Problem(field, path, "an existing file is accepted")


def _files(opts: CriuOpts, verb: Verb) -> Iterator[Problem]:
    # CRIU silently ignores a configuration file that does not exist.
    for field in ("config_file", "cg_props_file"):
        path = getattr(opts, field)
        if path is None:
            continue
        with contextlib.suppress(OSError):
            file = os.stat(path)
            if stat.S_ISREG(file.st_mode) and file.st_size <= LARGEST_CONFIGURATION:
                continue
        yield Problem(field, path, "an existing file is accepted, of at most 1 MiB")
    for path in opts.irmap_paths or ():
        if not os.path.isabs(os.fspath(path)):
            rule = "an absolute path is accepted: CRIU drops the first character"
            yield Problem("irmap_paths", path, rule)


def _in_config(opts: CriuOpts, verb: Verb) -> Iterator[Problem]:
    try:
        CriuOpts(**{row.name: value for row, value in opts.items() if row.in_config}).to_config()
    except OptionError as refused:
        yield from refused.problems
    for script in opts.action_scripts or ():
        path = from_work_directory(opts, script)
        if not os.access(path, os.X_OK) or not os.path.isfile(path):
            yield Problem("action_scripts", script, "an existing executable file is accepted")
        elif "/" not in os.fsdecode(script):
            rule = "CRIU searches PATH for a name without a slash: put './' before it"
            yield Problem("action_scripts", script, rule)
    if opts.libdir is not None and not os.path.isdir(from_work_directory(opts, opts.libdir)):
        yield Problem("libdir", opts.libdir, _EXISTING)
    if opts.pidfile is not None and os.path.lexists(from_work_directory(opts, opts.pidfile)):
        yield Problem("pidfile", opts.pidfile, "a file that does not exist is accepted")


def _log_file(opts: CriuOpts, verb: Verb) -> Iterator[Problem]:
    if opts.log_file is None:
        return
    directory, name = os.path.split(opts.log_file)
    if name in ("", ".", ".."):
        yield Problem("log_file", opts.log_file, "the name or path of a file is accepted")
    elif opts.log_file == "-":
        rule = "a file's name is accepted; CRIU writes to its standard output for this name"
        yield Problem("log_file", opts.log_file, rule)
    elif len(os.fsencode(name)) > 255:
        yield Problem("log_file", opts.log_file, "at most 255 bytes are accepted as a name")
    elif is_of_set(name) or name in ("stats-dump", "stats-restore"):
        rule = "a name that no image and no other file of an image set has is accepted"
        yield Problem("log_file", opts.log_file, rule)
    elif directory and not os.path.isdir(from_work_directory(opts, directory)):
        yield Problem("log_file", opts.log_file, "a path in an existing directory is accepted")
    yield from _together(opts, "log_to_stderr", "log_file", "CRIU logs to the file only")


def _external(opts: CriuOpts, verb: Verb) -> Iterator[Problem]:
    for key in opts.external or ():
        if not _matches(
            r"(file|tty|unix|mnt|dev|net|pid|veth|macvlan|netdev)\[[^\]]*\](:.*)?", key
        ):
            rule = (
                "file[..], tty[..], unix[..], mnt[..], dev[..], net[..], pid[..], veth[..], "
                "macvlan[..] or netdev[..], perhaps with ':value', is accepted; others do nothing"
            )
            yield Problem("external", key, rule)
        elif _matches(r"mnt\[\]:[^ms].*", key):
            yield Problem("external", key, "after mnt[] only ':m' or ':s' is accepted")
        elif key.startswith("macvlan[") and "]:" not in key:
            rule = "macvlan[inside]:outside is accepted; CRIU crashes on this"
            yield Problem("external", key, rule)
        elif key.startswith("macvlan[") and not _is_interface(key.partition("]:")[2]):
            rule = "an interface that exists in this network namespace is accepted as outside"
            yield Problem("external", key, rule)
        elif _matches(r"(mnt\[[^\]]+|net\[[^\]]*|pid\[[^\]]*)\]\n?", key):
            rule = "needs ':value' after the bracket; CRIU ignores it without"
            yield Problem("external", key, rule)
        elif key.startswith("mnt[]") and opts.auto_ext_mnt is False:
            rule = "not together with auto_ext_mnt=False, which switches it off"
            yield Problem("external", key, rule)


def _is_interface(name: str) -> bool:
    try:
        return socket.if_nametoindex(name) > 0
    except (OSError, ValueError):
        return False


def _join_ns(opts: CriuOpts, verb: Verb) -> Iterator[Problem]:
    for item in opts.join_ns or ():
        assert isinstance(item, JoinNamespace)
        if item.kind not in ("net", "ipc", "uts", "mnt", "user", "time"):
            yield Problem("join_ns", item, "net, ipc, uts, mnt, user or time is accepted as kind")
        if item.file.isascii() and item.file.isdigit():
            if not 1 <= int(item.file) <= 65535 or not os.path.isdir(f"/proc/{item.file}"):
                rule = (
                    "the pid of a running process up to 65535 is accepted, "
                    "or a file such as /proc/PID/ns/net"
                )
                yield Problem("join_ns", item, rule)
        elif item.file[0].isdigit() or not os.path.exists(item.file):
            rule = "a file that exists is accepted, by a path that starts with no digit"
            yield Problem("join_ns", item, rule)
        if item.extra is not None and item.kind != "user":
            yield Problem("join_ns", item, "an extra option is accepted for user only")
        elif item.extra is not None:
            numbers = _matches(r"(\d{0,5}),(\d{0,5})", item.extra)
            if not numbers or any(int(n or 0) > 65535 for n in numbers.groups()):
                rule = "UID,GID, each up to 65535, is accepted as extra option"
                yield Problem("join_ns", item, rule)
        if item.kind == "net" and opts.empty_ns == Namespaces.NET:
            rule = "not together with empty_ns: the namespace is joined or empty"
            yield Problem("join_ns", item, rule)


def _contradictions(opts: CriuOpts, verb: Verb) -> Iterator[Problem]:
    yield from _together(opts, "leave_running", "leave_stopped", "the process cannot do both")
    yield from _together(opts, "tcp_established", "tcp_close", "connections are kept or dropped")
    if opts.manage_cgroups is not None and opts.manage_cgroups_mode is not None:
        rule = "not together with manage_cgroups_mode: the mode wins"
        yield Problem("manage_cgroups", opts.manage_cgroups, rule)
    yield from _needs(opts, "unix_sks", "external_unix_connections", "CRIU reads them only then")
    if not any(str(each).startswith("mnt[]") for each in opts.external or ()):
        why = 'it does nothing by itself; external=["mnt[]"] finds mounts as well'
        yield from _needs(opts, "ext_sharing", "auto_ext_mnt", why)
        yield from _needs(opts, "ext_masters", "auto_ext_mnt", why)
    yield from _together(opts, "stream", "parent_image", "a stream has no parent")
    yield from _together(opts, "stream", "auto_dedup", "a stream has nothing to punch")
    if not opts.lazy_pages or opts.pre_dump:  # a pre-dump has no lazy pages
        yield from _together(opts, "stream", "page_server", "pages go one way")
    for field in ("compress_acceleration", "compress_block_size"):
        if getattr(opts, field) is not None and opts.compress == 0:
            yield Problem(field, getattr(opts, field), "not together with compress='off'")
    if opts.lazy_pages and verb is Verb.PRE_DUMP:
        yield Problem("lazy_pages", True, "a pre-dump has no lazy pages")
    if opts.freeze_cgroup is not None and (opts.timeout or 0) > 4294967:
        yield Problem("timeout", opts.timeout, "at most 4294967 seconds with freeze_cgroup")
    for field in ("lazy_pages", "manage_cgroups_mode", "manage_cgroups", "cg_roots"):
        yield from _together(opts, field, "unprivileged", "CRIU leaves it out then")


def _forms(opts: CriuOpts, verb: Verb) -> Iterator[Problem]:
    if opts.lsm_profile is not None and not _matches(
        r"(apparmor|selinux|none):.*", opts.lsm_profile
    ):
        rule = "'apparmor:NAME', 'selinux:LABEL' or 'none:' is accepted"
        yield Problem("lsm_profile", opts.lsm_profile, rule)
    for option in opts.plugin_options or ():
        if not _matches(r"(?!-)[^.=]+\.[^=]+(=.*)?", option):
            yield Problem("plugin_options", option, "PLUGIN.NAME or PLUGIN.NAME=VALUE is accepted")
    for pair in opts.veth_pairs or ():
        wire = pair.wire()  # type: ignore[union-attr]
        if len(os.fsencode(f"veth[{wire['if_in']}]:{wire['if_out']}")) > 198:
            rule = "at most 198 bytes as veth[inside]:outside are accepted"
            yield Problem("veth_pairs", pair, rule)


_ABOUT: dict[Rule, frozenset[str] | None] = {
    foreign_options: None,
    _directories: None,
    _descriptors: frozenset(["status_fd", "pidfd_store_sk", "inherit_fds"]),
    _parent_image: frozenset(["parent_image"]),
    _tracking: frozenset(["parent_image"]),
    _page_server: None,
    _clear_text: frozenset(["page_server"]),
    _status_fd: frozenset(["status_fd"]),
    _tls: frozenset(
        ["tls", "tls_no_cn_verify", "tls_cacert", "tls_cacrl", "tls_cert", "tls_key"],
    ),
    _files: frozenset(["config_file", "cg_props_file", "irmap_paths"]),
    _in_config: frozenset(row.name for row in TABLE if row.in_config),
    _log_file: frozenset(["log_file"]),
    _external: frozenset(["external"]),
    _join_ns: frozenset(["join_ns"]),
    # Of two options that exclude each other, one is enough here.
    _contradictions: frozenset(
        [
            *("leave_stopped", "tcp_close", "manage_cgroups_mode", "unix_sks", "ext_sharing"),
            *("ext_masters", "stream", "compress_acceleration", "compress_block_size"),
            *("lazy_pages", "freeze_cgroup", "unprivileged"),
        ]
    ),
    _forms: frozenset(["lsm_profile", "plugin_options", "veth_pairs"]),
}
"""All rules, in the order in which problems are reported. Each has the options that it checks, and
is skipped if none of them is set. None: it is never skipped."""

_RULES = tuple(_ABOUT)

_TOUCHING: tuple[Rule, ...] = (
    _directories,
    _descriptors,
    _parent_image,
    _status_fd,
    _tls,
    _files,
    _in_config,
    _join_ns,
)
"""The rules that read files and descriptors, which can change between calls."""


def problems_of(rules: Iterable[Rule], opts: CriuOpts, verb: Verb) -> list[Problem]:
    """The problems that these rules find. Most are skipped, since few options are set."""
    are_set = vars(opts)
    problems: list[Problem] = []
    for rule in rules:
        about = _ABOUT[rule]
        if about is None or not about.isdisjoint(are_set):
            problems += rule(opts, verb)
    return problems
