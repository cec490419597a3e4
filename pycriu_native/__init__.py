"""Checkpoint, restore and live-migrate Linux processes, over libcriu.

``CriuOpts`` says how, the verbs do it::

    from pycriu_native import CriuOpts, dump, restore

    opts = CriuOpts(images_directory="ckpt", shell_job=True)
    dump(4242, opts)
    pid = restore(opts).pid
"""

from __future__ import annotations

from ._exchange import Notification
from ._later import fetch
from ._reach import Service, Socket
from ._typing import TYPE_CHECKING, Any
from ._worker import Worker
from .enums import CgroupMode, CompressMode, ImageIOMode, NetworkLock, Notify, PreDumpMode, Verb
from .errors import (
    CriuError,
    DeadlineError,
    ImagesError,
    MigrationError,
    MigrationInDoubtError,
    NoSuchProcessError,
    OptionError,
    PeerLostError,
    PermissionDeniedError,
    PidInUseError,
    Problem,
    ProcessMismatchError,
    ProgramError,
    ProgramNotFoundError,
    ProtocolError,
    RestoreClaimedError,
    UnsupportedError,
    WorkerDiedError,
)
from .identity import Pidfd, ProcessIdentity
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
    from ._doctor import Doctor, Health, Remark, doctor
    from ._explain import Explanation, explain
    from ._ffi import ffi
    from ._preflight import (
        Finding,
        ImageSize,
        Preflight,
        PreflightError,
        PreflightWarning,
        Severity,
        Verdict,
        preflight,
    )
    from ._preload import preload
    from .batch import DumpJob, Finished, RestoreJob, dump_many, restore_many, run_many
    from .cache import CacheState, FeatureCache, feature_cache, keep_feature_cache
    from .iters import DumpItersResult, Round, UntilSteady, dump_iters
    from .lazy import LazyPages
    from .manifest import seal, verify
    from .migration import MigrationMode, MigrationResult, migrate_in, migrate_out
    from .pages import PageServerChild, page_server, page_server_child
    from .pool import WarmWorkers
    from .progress import OnProgress, Progress

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
    "Doctor",
    "DumpItersResult",
    "DumpJob",
    "DumpResult",
    "DumpStatistics",
    "Explanation",
    "ExtMount",
    "FeatureCache",
    "Features",
    "Finding",
    "Finished",
    "Health",
    "ImageIOMode",
    "ImageSize",
    "ImagesError",
    "InheritFd",
    "JoinNamespace",
    "LazyPages",
    "MigrationError",
    "MigrationInDoubtError",
    "MigrationMode",
    "MigrationResult",
    "NetworkLock",
    "NoSuchProcessError",
    "Notification",
    "Notify",
    "OnProgress",
    "OptionError",
    "PageServer",
    "PageServerChild",
    "PageServerResult",
    "PeerLostError",
    "PermissionDeniedError",
    "PidInUseError",
    "Pidfd",
    "PreDumpMode",
    "Preflight",
    "PreflightError",
    "PreflightWarning",
    "Problem",
    "ProcessIdentity",
    "ProcessMismatchError",
    "ProgramError",
    "ProgramNotFoundError",
    "Progress",
    "ProtocolError",
    "Remark",
    "RestoreClaimedError",
    "RestoreJob",
    "RestoreResult",
    "RestoreStatistics",
    "Round",
    "Service",
    "Severity",
    "Socket",
    "UnsupportedError",
    "UntilSteady",
    "Verb",
    "Verdict",
    "Version",
    "VethPair",
    "WarmWorkers",
    "Worker",
    "WorkerDiedError",
    "check",
    "cpuinfo_check",
    "cpuinfo_dump",
    "doctor",
    "dump",
    "dump_iters",
    "dump_many",
    "explain",
    "feature_cache",
    "feature_check",
    "ffi",
    "keep_feature_cache",
    "lib",
    "libcriu_version",
    "migrate_in",
    "migrate_out",
    "page_server",
    "page_server_child",
    "pre_dump",
    "preflight",
    "preload",
    "restore",
    "restore_child",
    "restore_many",
    "run_many",
    "seal",
    "verify",
    "version",
]


# What few programs use is imported when it is asked for: it would take most of the time.
_LATER = {
    "CacheState": "cache",
    "Doctor": "_doctor",
    "DumpItersResult": "iters",
    "DumpJob": "batch",
    "Explanation": "_explain",
    "FeatureCache": "cache",
    "Finding": "_preflight",
    "Finished": "batch",
    "Health": "_doctor",
    "ImageSize": "_preflight",
    "LazyPages": "lazy",
    "MigrationMode": "migration",
    "MigrationResult": "migration",
    "OnProgress": "progress",
    "PageServerChild": "pages",
    "Preflight": "_preflight",
    "PreflightError": "_preflight",
    "PreflightWarning": "_preflight",
    "Progress": "progress",
    "Remark": "_doctor",
    "RestoreJob": "batch",
    "Round": "iters",
    "Severity": "_preflight",
    "UntilSteady": "iters",
    "Verdict": "_preflight",
    "WarmWorkers": "pool",
    "doctor": "_doctor",
    "dump_iters": "iters",
    "dump_many": "batch",
    "explain": "_explain",
    "feature_cache": "cache",
    "keep_feature_cache": "cache",
    "ffi": "_ffi",
    "migrate_in": "migration",
    "migrate_out": "migration",
    "page_server": "pages",
    "page_server_child": "pages",
    "preflight": "_preflight",
    "preload": "_preload",
    "restore_many": "batch",
    "run_many": "batch",
    "seal": "manifest",
    "verify": "manifest",
}
_MODULES = (
    "batch",
    "cache",
    "iters",
    "lazy",
    "lib",
    "manifest",
    "migration",
    "pages",
    "pool",
    "progress",
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return __import__(f"{__name__}.{name}", fromlist=[name])
    return fetch(globals(), _LATER, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
