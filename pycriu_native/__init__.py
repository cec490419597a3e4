"""Checkpoint, restore and live-migrate Linux processes, over libcriu.

``CriuOpts`` says how, the verbs do it::

    from pycriu_native import CriuOpts, dump, restore

    opts = CriuOpts(images_directory="ckpt", shell_job=True)
    dump(4242, opts)
    pid = restore(opts).pid
"""

from __future__ import annotations

from ._exchange import Notification
from ._reach import Service, Socket
from ._typing import TYPE_CHECKING, Any
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
    from ._preload import preload
    from .batch import DumpJob, Finished, RestoreJob, dump_many, restore_many, run_many
    from .cache import CacheState, FeatureCache, feature_cache
    from .iters import DumpItersResult, Round, UntilSteady, dump_iters
    from .lazy import LazyPages
    from .pages import PageServerChild, page_server, page_server_child
    from .pool import WarmWorkers

__version__ = "0.1.0"

__all__ = [
    "CacheState",
    "CgroupMode",
    "CgroupRoot",
    "CheckResult",
    "CompressMode",
    "CpuinfoResult",
    "CriuError",
    "CriuOpts",
    "DeadlineError",
    "DumpItersResult",
    "DumpJob",
    "DumpResult",
    "DumpStatistics",
    "Explanation",
    "ExtMount",
    "FeatureCache",
    "Features",
    "Finished",
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
    "RestoreJob",
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
    "WarmWorkers",
    "Worker",
    "WorkerDiedError",
    "check",
    "cpuinfo_check",
    "cpuinfo_dump",
    "dump",
    "dump_iters",
    "dump_many",
    "explain",
    "feature_cache",
    "feature_check",
    "ffi",
    "lib",
    "libcriu_version",
    "page_server",
    "page_server_child",
    "pre_dump",
    "preload",
    "restore",
    "restore_child",
    "restore_many",
    "run_many",
    "version",
]


# What few programs use is imported when it is asked for: it would take most of the time.
_LATER = {
    "CacheState": "cache",
    "DumpItersResult": "iters",
    "DumpJob": "batch",
    "Explanation": "_explain",
    "FeatureCache": "cache",
    "Finished": "batch",
    "LazyPages": "lazy",
    "PageServerChild": "pages",
    "RestoreJob": "batch",
    "Round": "iters",
    "UntilSteady": "iters",
    "WarmWorkers": "pool",
    "dump_iters": "iters",
    "dump_many": "batch",
    "explain": "_explain",
    "feature_cache": "cache",
    "ffi": "_ffi",
    "page_server": "pages",
    "page_server_child": "pages",
    "preload": "_preload",
    "restore_many": "batch",
    "run_many": "batch",
}
_MODULES = ("batch", "cache", "iters", "lazy", "lib", "pages", "pool")


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
