"""Checkpoint, restore and live-migrate Linux processes, over libcriu.

``CriuOpts`` says how, the verbs do it::

    from pycriu_native import CriuOpts, dump, restore

    opts = CriuOpts(images_directory="ckpt", shell_job=True)
    dump(4242, opts)
    pid = restore(opts).pid
"""

from __future__ import annotations

try:
    from ._native import ffi as _extension  # noqa: F401
except ImportError as error:
    # Its cure is enough: the traceback would show the modules on the way to the extension.
    raise ImportError(str(error)) from None

from ._calls.exchange import Notification
from ._calls.verbs import (
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
from ._rollback.option import Rollback
from ._support.lazy import fetch
from ._support.light_typing import TYPE_CHECKING, Any
from ._system.process_identity import Pidfd, ProcessIdentity
from ._transport.base import Service, Socket
from ._transport.worker import Worker
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
from .options.criu_opts import CriuOpts
from .options.values import CgroupRoot, ExtMount, InheritFd, JoinNamespace, PageServer, VethPair
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

if TYPE_CHECKING:
    from . import lib
    from ._calls.batch import DumpJob, JobOutcome, RestoreJob, dump_many, restore_many, run_many
    from ._calls.iterative_dump import DumpItersResult, Round, ShrinkingRounds, dump_iters
    from ._calls.preload import preload
    from ._calls.progress import OnProgress, Progress
    from ._integrity.manifest import seal, verify
    from ._native.ffi import ffi
    from ._pages.lazy_pages import LazyPages
    from ._pages.page_server import PageServerChild, page_server, page_server_child
    from ._transport.feature_cache import (
        CacheState,
        FeatureCache,
        feature_cache,
        keep_feature_cache,
    )
    from ._transport.pool import WorkerPool
    from .diagnostics.doctor import Doctor, doctor
    from .diagnostics.explain import Explanation, explain
    from .diagnostics.preflight import (
        ImageSize,
        Preflight,
        PreflightError,
        PreflightWarning,
        Verdict,
        preflight,
    )
    from .findings import Finding, Severity
    from .migration.migrate import MigrationMode, MigrationResult, migrate_in, migrate_out

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
    "ImageIOMode",
    "ImageSize",
    "ImagesError",
    "InheritFd",
    "JobOutcome",
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
    "RestoreClaimedError",
    "RestoreJob",
    "RestoreResult",
    "RestoreStatistics",
    "Rollback",
    "Round",
    "Service",
    "Severity",
    "ShrinkingRounds",
    "Socket",
    "UnsupportedError",
    "Verb",
    "Verdict",
    "Version",
    "VethPair",
    "Worker",
    "WorkerDiedError",
    "WorkerPool",
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
    "CacheState": "_transport.feature_cache",
    "Doctor": "diagnostics.doctor",
    "DumpItersResult": "_calls.iterative_dump",
    "DumpJob": "_calls.batch",
    "Explanation": "diagnostics.explain",
    "FeatureCache": "_transport.feature_cache",
    "Finding": "findings",
    "JobOutcome": "_calls.batch",
    "ImageSize": "diagnostics.preflight",
    "LazyPages": "_pages.lazy_pages",
    "MigrationMode": "migration.migrate",
    "MigrationResult": "migration.migrate",
    "OnProgress": "_calls.progress",
    "PageServerChild": "_pages.page_server",
    "Preflight": "diagnostics.preflight",
    "PreflightError": "diagnostics.preflight",
    "PreflightWarning": "diagnostics.preflight",
    "Progress": "_calls.progress",
    "RestoreJob": "_calls.batch",
    "Round": "_calls.iterative_dump",
    "Severity": "findings",
    "ShrinkingRounds": "_calls.iterative_dump",
    "Verdict": "diagnostics.preflight",
    "WorkerPool": "_transport.pool",
    "doctor": "diagnostics.doctor",
    "dump_iters": "_calls.iterative_dump",
    "dump_many": "_calls.batch",
    "explain": "diagnostics.explain",
    "feature_cache": "_transport.feature_cache",
    "keep_feature_cache": "_transport.feature_cache",
    "ffi": "_native.ffi",
    "migrate_in": "migration.migrate",
    "migrate_out": "migration.migrate",
    "page_server": "_pages.page_server",
    "page_server_child": "_pages.page_server",
    "preflight": "diagnostics.preflight",
    "preload": "_calls.preload",
    "restore_many": "_calls.batch",
    "run_many": "_calls.batch",
    "seal": "_integrity.manifest",
    "verify": "_integrity.manifest",
}
_MODULES = (
    "lib",
    "migration",
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return __import__(f"{__name__}.{name}", fromlist=[name])
    return fetch(globals(), _LATER, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
