"""Options to dump containers of runc or crun, and to restore their checkpoints.

A dump that the runtime itself can restore, with standard streams that can be replaced::

    container = Container.from_runtime("web", runtime="runc")
    container.write_descriptors("ckpt")
    dump(container.pid, container.dump_opts("ckpt"))
    # runc delete web; runc restore --image-path $PWD/ckpt --bundle ... web

A restore of images that runc, crun or the lines above wrote::

    with Bundle.load("web-bundle").restoring("ckpt", stdio=(None, log, log)) as opts:
        pid = restore(opts).pid

The options cover the external mounts (bind mounts, masked paths, the mounts of cgroup v1) and their
keys, the root, the namespaces to join, the cgroup mode, and the pipes that replace the standard
streams. In a dump the keys are those that the runtime expects; in a restore they are read from the
images, so images of any runtime can be restored.

The runtime is not notified. After a dump it reports the container as stopped: delete it there. The
runtime does not know a container that is restored here: the caller ends it and removes its cgroup.

``import pycriu_native`` does not import this module. Facts: runc's
``libcontainer/criu_linux.go``, crun's ``src/libcrun/criu.c``, CRIU's ``images/mnt.proto``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .._integrity.saved_mounts import CGROUP_V1, SavedMount, saved_mounts
from .._support.json_values import check_fields
from .._support.unpatched import close
from .._system.cgroups import cgroups_of
from .._system.descriptors import opened_directory
from .._system.mountinfo import hierarchy, mounts_of
from .._system.mounts import inside, mount_point
from .._system.process import stat_of
from .._system.regular_file import read_regular, replace_file
from .._system.writing import writing
from ..archive.container_checkpoint import LARGEST, json_file
from ..enums import CgroupMode
from ..errors import ImagesError, NoSuchProcessError, OptionError
from ..options.criu_opts import CriuOpts
from ..options.values import Descriptor
from .runtime_config import is_bind, problems_of

StrPath = str | os.PathLike[str]

DESCRIPTORS = "descriptors.json"
"""The file in the images directory in which runtimes store the targets of the standard streams."""

_JOINED = ("ipc", "uts", "user", "time")
"""Types of namespaces that CRIU can join (``join_ns``); config.json has the same names."""
_INHERITED = {"network": ("net", "extRootNetNS"), "pid": ("pid", "extRootPidNS")}
"""Types that CRIU takes as descriptors instead: CRIU's name, and the key that runtimes use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """An OCI bundle: the directory with ``config.json`` and, usually, the root file system.

    Synchronization: immutable, so safe to share between threads. Concurrent restores need different
    images and different pids, like any restores.
    """

    path: str
    """The bundle's directory, absolute."""
    config: Mapping[str, Any]
    """The contents of ``config.json``."""

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Read a bundle.

        Raises ``OSError`` if ``config.json`` cannot be read or is no JSON, and ``OptionError``, a
        ``ValueError``, if a value that is used has another type.
        """
        config = json_file(os.path.realpath(Path(path, "config.json")))
        if problems := problems_of(config):
            raise OptionError(problems)
        return cls(path=os.path.realpath(path), config=config)

    @property
    def root(self) -> str:
        """The directory of the container's root file system."""
        return os.path.realpath(os.path.join(self.path, self.config["root"]["path"]))

    @property
    def binds(self) -> dict[str, str]:
        """The bind mounts: the destination in the container, and the source on this host.

        Symbolic links in a destination are resolved in the container's root.
        """
        return {
            inside(self.root, mount["destination"]): os.path.join(self.path, mount["source"])
            for mount in filter(is_bind, self.config.get("mounts") or ())
        }

    @property
    def masked(self) -> list[str]:
        """The paths that are hidden from the container (``linux.maskedPaths``)."""
        return list(self._linux.get("maskedPaths") or ())

    @property
    def namespaces(self) -> dict[str, str | None]:
        """The types of the container's namespaces; with a path if it joins an existing one."""
        namespaces = self._linux.get("namespaces") or ()
        return {each["type"]: each.get("path") or None for each in namespaces}

    @property
    def _linux(self) -> Mapping[str, Any]:
        result: Mapping[str, Any] = self.config.get("linux") or {}
        return result

    @contextlib.contextmanager
    def restoring(
        self, images: StrPath, *, stdio: Sequence[Descriptor | None] = (0, 1, 2), **more: Any
    ) -> Iterator[CriuOpts]:
        """Prepare a restore. Yields the options to pass to ``restore`` inside of the context.

        ``stdio`` replaces the standard streams that were pipes when the container started: one
        descriptor for each, by default those of the caller, as with ``runc restore``. With None the
        stream is restored as a pipe without a process at its other end. Streams that were not pipes
        are part of the container and are restored unchanged.

        ``more`` are further fields of ``CriuOpts``: lists are added to those of the bundle,
        other values replace them.

        The root is bound to a separate mount point while the context is active. Missing mount
        points are created in the root and in bound directories and remain there, as with the
        runtimes. CRIU creates missing cgroups with the saved properties. For cgroup v2 these do not
        include the limits (CRIU's ``cgroup-props.c``); a cgroup that exists before the restore
        keeps its limits. A network namespace that was saved without contents, as by runc, is
        restored with only a loopback interface that is down; an ``on_notify`` hook can configure it
        at ``Notify.SETUP_NAMESPACES``. With a terminal, a hook is required: it receives the master
        at ``Notify.ORPHAN_PTS_MASTER``.

        Raises ``ImagesError`` if the images are incomplete, or need a mount that ``config.json``
        does not have, and ``OSError`` if a mount or file cannot be created.
        """
        directory = os.path.abspath(images)
        given: Any = CriuOpts(ext_mounts=more.get("ext_mounts")).ext_mounts
        extra = {mount.key for mount in given or ()}
        saved = saved_mounts(directory)
        external = (mount for mount in saved if mount.key and mount.key not in extra)
        outside = {mount.key: self._source(mount) for mount in external}
        self._make_places(saved, outside)
        joined = [(kind, path) for kind, path in self.namespaces.items() if kind in _JOINED]
        with contextlib.ExitStack() as owned:
            options: dict[str, Any] = {
                "images_directory": directory,
                "root": owned.enter_context(mount_point(self.root)),
                "ext_mounts": list(outside.items()),
                "inherit_fds": self._inherited(directory, stdio, owned),
                "join_ns": [(kind, path) for kind, path in joined if path],
                "manage_cgroups_mode": CgroupMode.SOFT,
                # The option requires a hook, which receives the master of the new terminal.
                "orphan_pts_master": (self.config.get("process") or {}).get("terminal") or None,
                "empty_ns": "net" if self._lacks_network(directory) else None,
            }
            yield _options(options, more)

    def _source(self, mount: SavedMount) -> str:
        """The path on this host to bind to the place of an external mount."""
        if mount.kind == CGROUP_V1:
            mounted = hierarchy("cgroup", mount.options)
            if mounted is None:
                what = f"the cgroup v1 hierarchy {mount.options!r}"
                raise ImagesError(f"the images need {what}, which is not mounted here")
            return mounted + mount.root.rstrip("/")
        source = self.binds.get(mount.place)
        if source is not None:
            return source
        if mount.place in self.masked:
            if mount.root.endswith("/null"):
                return "/dev/null"
            # crun binds one empty directory to all masked directories; the key is its path.
            with contextlib.suppress(FileExistsError):
                os.makedirs(mount.key, 0o755)
            return mount.key
        if any(device["path"] == mount.place for device in self._linux.get("devices") or ()):
            return mount.place
        raise ImagesError(
            f"the images need a mount at {mount.place} that {self.path}/config.json does not "
            f"have; give it as ext_mounts=[({mount.key!r}, SOURCE)]"
        )

    def _make_places(self, saved: Sequence[SavedMount], outside: Mapping[str, str]) -> None:
        """Create the missing mount points, except on file systems that CRIU restores."""
        if self.config["root"].get("readonly"):
            # CRIU mounts the old root there in pivot_root; if missing, it creates a directory.
            os.makedirs(self.root + inside(self.root, "/tmp"), exist_ok=True)
        by_number = {mount.number: mount for mount in saved}
        for mount in reversed(saved):  # outer mounts first
            parent = by_number.get(mount.parent)
            if parent is None:
                continue
            if parent.place == "/":
                base = self.root
            elif parent.key in outside and parent.kind != CGROUP_V1:
                base = outside[parent.key]
            else:
                continue
            place = base + inside(base, os.path.relpath(mount.place, parent.place))
            if os.path.lexists(place):
                continue
            if os.path.isdir(outside.get(mount.key, "/")):
                os.makedirs(place)
            else:
                os.makedirs(os.path.dirname(place), exist_ok=True)
                close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))

    def _inherited(
        self, images: str, stdio: Sequence[Descriptor | None], owned: contextlib.ExitStack
    ) -> list[tuple[Descriptor, str]]:
        """The descriptors for standard streams and for namespaces that are not in the images."""
        result: dict[str, Descriptor] = {}
        for fd, name in zip(stdio, _read_descriptors(images), strict=False):
            if fd is not None and "pipe:" in name:
                result.setdefault(name, fd)
        for kind, (_, key) in _INHERITED.items():
            path = self.namespaces.get(kind)
            if path:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                owned.callback(close, file)
                result[key] = file
        return [(fd, key) for key, fd in result.items()]

    def _lacks_network(self, images: str) -> bool:
        """Whether the images have a new network namespace for the container without its contents.

        CRIU then has to lock the connections in it again, which it locked for the dump.
        """
        own = "network" in self.namespaces and self.namespaces["network"] is None
        return own and not any(name.startswith("netns-") for name in os.listdir(images))


@dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """A running container of runc or crun.

    The values are those at the time of the call; they are not updated.

    Synchronization: immutable, so safe to share between threads.
    """

    id: str
    """Its name in the runtime."""
    runtime: str
    """``runc`` or ``crun``: the runtime whose keys the images use."""
    state_root: str
    """The directory in which the runtime stores its state."""
    pid: int
    """Its first process, in the pid namespace of the caller."""
    bundle: Bundle
    """The bundle that it was created from."""
    descriptors: tuple[str, ...]
    """The targets of its standard streams when it started: paths, or ``pipe:[inode]``."""

    @classmethod
    def from_runtime(cls, id: str, runtime: str = "runc", root: StrPath | None = None) -> Self:
        """Find a container by its id. ``root`` is the runtime's ``--root``; default: /run/RUNTIME.

        Raises ``NoSuchProcessError`` if the runtime has no such container or it does not run.
        """
        if runtime not in _STATES:
            raise ValueError(f"runtime={runtime!r}: {' or '.join(_STATES)} is accepted")
        state_root = os.path.realpath(root or f"/run/{runtime}")
        name, read = _STATES[runtime]
        try:
            state = read(json_file(Path(state_root, id, name)))
            check_fields(state)
        except FileNotFoundError:
            raise NoSuchProcessError(f"{runtime} has no container {id!r} in {state_root}") from None
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            place = os.path.join(state_root, id, name)
            raise ImagesError(f"{place} is not the state of a container: {error!r}") from None
        stat = stat_of(state.pid)
        if stat is None or stat.has_ended or stat.start != state.started:
            why = f"the container {id!r} of {runtime} does not run: process {state.pid} has ended"
            raise NoSuchProcessError(why, pid=state.pid)
        return cls(
            id=id,
            runtime=runtime,
            state_root=state_root,
            pid=state.pid,
            bundle=Bundle.load(state.bundle),
            descriptors=state.descriptors,
        )

    def dump_opts(self, images: StrPath, **more: Any) -> CriuOpts:
        """The options of a dump that the runtime and :meth:`Bundle.restoring` can restore.

        ``more`` are further fields of ``CriuOpts``: lists are added to those of the container,
        other values replace them. ``empty_ns`` is set for a container of runc with a network
        namespace of its own, as in ``runc checkpoint``: the hooks of its ``config.json`` create the
        interfaces. With ``empty_ns=None`` the contents are saved, but only :meth:`Bundle.restoring`
        restores them.
        """
        own_network = self.bundle.namespaces.get("network", "") is None
        options: dict[str, Any] = {
            "images_directory": os.path.abspath(images),
            "ext_mounts": list(self._outside().items()),
            "external": [
                f"{name}[{os.stat(path).st_ino}]:{key}"
                for kind, (name, key) in _INHERITED.items()
                if (path := self.bundle.namespaces.get(kind))
            ],
            "freeze_cgroup": _freezer(self.pid),
            "manage_cgroups_mode": CgroupMode.SOFT,
            "orphan_pts_master": True,
            "empty_ns": "net" if self.runtime == "runc" and own_network else None,
        }
        return _options(options, more)

    def write_descriptors(self, images: StrPath) -> Path:
        """Write ``descriptors.json`` into the images directory, which is created if missing.

        Returns its path. Without this file runc and crun refuse to restore, and the standard
        streams cannot be replaced.
        """
        file = Path(images) / DESCRIPTORS
        with writing(file):
            with contextlib.suppress(FileExistsError):
                file.parent.mkdir(mode=0o700)
            with opened_directory(file.parent) as at:
                replace_file(at, DESCRIPTORS, json.dumps(self.descriptors).encode())
        return file

    def _outside(self) -> dict[str, str]:
        """The external mounts, and the keys that the runtime expects for them."""
        result = {place: place for place in self.bundle.binds}
        masked = self.bundle.masked
        own_cgroups = "cgroup" in self.bundle.namespaces
        for line in mounts_of(self.pid):
            if line.kind == "cgroup" and not own_cgroups:
                result[line.place] = line.place
            elif line.place in masked and line.root.endswith("/null"):
                result[line.place] = "/dev/null" if self.runtime == "runc" else line.place
            elif line.place in masked and line.root != "/":
                # crun 1.24 and later bind one empty directory to all masked directories.
                result[line.place] = os.path.join(self.state_root, os.path.basename(line.root))
        return result


# ---- the state files of the runtimes ----


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    """A container in the state file of its runtime."""

    pid: int
    started: int
    """The start time of its first process."""
    bundle: str
    descriptors: tuple[str, ...]
    """The targets of the standard streams."""


def _runc_state(state: Mapping[str, Any]) -> _State:
    labels = dict(label.partition("=")[::2] for label in state["config"]["labels"])
    return _State(
        pid=state["init_process_pid"],
        started=state["init_process_start"],
        bundle=labels["bundle"],
        descriptors=tuple(state["external_descriptors"]),
    )


def _crun_state(state: Mapping[str, Any]) -> _State:
    return _State(
        pid=state["pid"],
        started=state["process-start-time"],
        bundle=state["bundle"],
        descriptors=tuple(json.loads(state["external_descriptors"])),
    )


_STATES = {"runc": ("state.json", _runc_state), "crun": ("status", _crun_state)}
"""The name of each runtime's state file for a container, and the function that reads it."""


def _read_descriptors(images: str) -> list[str]:
    try:
        result = json.loads(read_regular(Path(images, DESCRIPTORS), LARGEST))
        if not isinstance(result, list):
            raise ValueError("it is not a JSON list")
    except (OSError, ValueError, RecursionError) as error:
        raise ImagesError(f"{images} has no usable {DESCRIPTORS}: {error}") from None
    return [str(name) for name in result]


# ---- the system ----


def _freezer(pid: int) -> str | None:
    """The cgroup to freeze the container with; None if that is the root cgroup."""
    cgroups = cgroups_of(pid)
    for controller, kind in (("freezer", "cgroup"), ("", "cgroup2")):
        path = cgroups.get(controller, "/")
        mounted = hierarchy(kind, controller)
        if mounted is not None and path != "/":
            return mounted + path
    return None


# ---- options ----


def _options(options: Mapping[str, Any], more: Mapping[str, Any]) -> CriuOpts:
    """Merge options: lists are concatenated, other values of ``more`` replace those before."""
    merged = {**options, **more}
    for name, value in options.items():
        if isinstance(value, list):
            merged[name] = [*value, *(more.get(name) or ())] or None
    return CriuOpts(**merged)
