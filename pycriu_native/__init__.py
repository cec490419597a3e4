"""Checkpoint, restore and live-migrate Linux processes, over libcriu.

``CriuOpts`` says how, the verbs do it::

    from pycriu_native import CriuOpts, dump, restore

    opts = CriuOpts(images_directory="ckpt", shell_job=True)
    dump(4242, opts)
    pid = restore(opts).pid
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._exchange import Notification
from ._reach import Service, Socket
from ._worker import Worker
from .enums import CgroupMode, CompressMode, ImageIOMode, NetworkLock, Notify, PreDumpMode, Verb
from .errors import (
    CriuError,
    DeadlineError,
    ImagesError,
    NoSuchProcessError,
    OptionError,
    PermissionDeniedError,
    PidInUseError,
    Problem,
    ProgramError,
    ProgramNotFoundError,
    ProtocolError,
    UnsupportedError,
    WorkerDiedError,
)
from .opts import CriuOpts
from .results import (
    CheckResult,
    CpuinfoResult,
    DumpResult,
    DumpStatistics,
    Features,
    PageServerResult,
    RestoreResult,
    RestoreStatistics,
    Version,
)
from .values import CgroupRoot, ExtMount, InheritFd, JoinNamespace, PageServer, VethPair
from .verbs import (
    check,
    cpuinfo_check,
    cpuinfo_dump,
    dump,
    feature_check,
    libcriu_version,
    pre_dump,
    restore,
    restore_child,
    version,
)

if TYPE_CHECKING:
    from . import lib
    from ._explain import Explanation, explain
    from ._ffi import ffi
    from .iters import DumpItersResult, Round, UntilSteady, dump_iters
    from .lazy import LazyPages
    from .pages import PageServerChild, page_server, page_server_child

__version__ = "0.1.0"

__all__ = [
    "CgroupMode",
    "CgroupRoot",
    "CheckResult",
    "CompressMode",
    "CpuinfoResult",
    "CriuError",
    "CriuOpts",
    "DeadlineError",
    "DumpItersResult",
    "DumpResult",
    "DumpStatistics",
    "Explanation",
    "ExtMount",
    "Features",
    "ImageIOMode",
    "ImagesError",
    "InheritFd",
    "JoinNamespace",
    "LazyPages",
    "NetworkLock",
    "NoSuchProcessError",
    "Notification",
    "Notify",
    "OptionError",
    "PageServer",
    "PageServerChild",
    "PageServerResult",
    "PermissionDeniedError",
    "PidInUseError",
    "PreDumpMode",
    "Problem",
    "ProgramError",
    "ProgramNotFoundError",
    "ProtocolError",
    "RestoreResult",
    "RestoreStatistics",
    "Round",
    "Service",
    "Socket",
    "UnsupportedError",
    "UntilSteady",
    "Verb",
    "Version",
    "VethPair",
    "Worker",
    "WorkerDiedError",
    "check",
    "cpuinfo_check",
    "cpuinfo_dump",
    "dump",
    "dump_iters",
    "explain",
    "feature_check",
    "ffi",
    "lib",
    "libcriu_version",
    "page_server",
    "page_server_child",
    "pre_dump",
    "restore",
    "restore_child",
    "version",
]


# What few programs use is imported when it is asked for: it would take most of the time.
_LATER = {
    "DumpItersResult": "iters",
    "Explanation": "_explain",
    "LazyPages": "lazy",
    "PageServerChild": "pages",
    "Round": "iters",
    "UntilSteady": "iters",
    "dump_iters": "iters",
    "explain": "_explain",
    "ffi": "_ffi",
    "page_server": "pages",
    "page_server_child": "pages",
}
_MODULES = ("iters", "lazy", "lib", "pages")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return __import__(f"{__name__}.{name}", fromlist=[name])
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(__import__(f"{__name__}.{_LATER[name]}", fromlist=[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
