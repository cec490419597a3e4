"""Checkpoint, restore and live-migrate Linux processes, over libcriu.

``CriuOpts`` holds the options, the verbs are the calls::

    from pycriu_native import CriuOpts, dump, restore

    opts = CriuOpts(images_directory="ckpt", shell_job=True)
    dump(4242, opts)
    pid = restore(opts).pid
"""

from __future__ import annotations

from ._support.lazy import fetch
from ._support.light_typing import TYPE_CHECKING
from ._support.no_fork import no_fork

if TYPE_CHECKING:
    from . import aio as aio
    from . import archive as archive
    from . import enums as enums
    from . import errors as errors
    from . import images as images
    from . import jobs as jobs
    from . import lib as lib
    from . import migration as migration
    from . import oci as oci
    from . import options as options
    from . import plots as plots
    from . import results as results
    from . import snapshots as snapshots
    from . import testing as testing
    from ._calls.batch import DumpJob, JobOutcome, RestoreJob, dump_many, restore_many, run_many
    from ._calls.iterative_dump import DumpItersResult, Round, ShrinkingRounds, dump_iters
    from ._calls.notification import Notification
    from ._calls.preload import preload
    from ._calls.progress_state import OnProgress, Progress
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
    from ._integrity.manifest import seal, verify
    from ._native.ffi import ffi
    from ._pages.dedup import dedup
    from ._pages.lazy_pages import LazyPages
    from ._pages.page_server import PageServerChild, page_server, page_server_child
    from ._rollback.option import Rollback
    from ._system.process_identity import Pidfd, ProcessIdentity
    from ._transport.base import Service, Socket
    from ._transport.feature_cache import (
        CacheState,
        FeatureCache,
        feature_cache,
        keep_feature_cache,
    )
    from ._transport.pool import WorkerPool
    from ._transport.worker import Worker
    from .diagnostics.doctor import Doctor, doctor
    from .diagnostics.explain import Explanation, explain
    from .diagnostics.preflight import (
        ImageSize,
        Preflight,
        PreflightError,
        PreflightWarning,
        RestoreNeed,
        Verdict,
        preflight,
    )
    from .enums import (
        CgroupMode,
        CompressMode,
        FileValidation,
        ImageIOMode,
        NetworkLock,
        Notify,
        PreDumpMode,
        Verb,
    )
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
    from .findings import Finding, Severity
    from .migration.migrate import MigrationMode, MigrationResult, migrate_in, migrate_out
    from .options.criu_opts import CriuOpts
    from .options.values import CgroupRoot, ExtMount, InheritFd, JoinNamespace, PageServer, VethPair
    from .results import (
        CheckResult,
        CpuinfoResult,
        DedupResult,
        DumpResult,
        DumpStatistics,
        Features,
        PageServerResult,
        RestoreResult,
        RestoreStatistics,
        Version,
    )

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
    "DedupResult",
    "Doctor",
    "DumpItersResult",
    "DumpJob",
    "DumpResult",
    "DumpStatistics",
    "Explanation",
    "ExtMount",
    "FeatureCache",
    "Features",
    "FileValidation",
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
    "RestoreNeed",
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
    "dedup",
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


# Each name is imported on first use, for a short import time, and because pycriu_native.guest works
# without the extension.
_NAMES = {
    "_calls.batch": "DumpJob JobOutcome RestoreJob dump_many restore_many run_many",
    "_calls.iterative_dump": "DumpItersResult Round ShrinkingRounds dump_iters",
    "_calls.notification": "Notification",
    "_calls.preload": "preload",
    "_calls.progress_state": "OnProgress Progress",
    "_calls.verbs": (
        "check cpuinfo_check cpuinfo_dump dump feature_check libcriu_version pre_dump restore "
        "restore_child version"
    ),
    "_integrity.manifest": "seal verify",
    "_native.ffi": "ffi",
    "_pages.dedup": "dedup",
    "_pages.lazy_pages": "LazyPages",
    "_pages.page_server": "PageServerChild page_server page_server_child",
    "_rollback.option": "Rollback",
    "_system.process_identity": "Pidfd ProcessIdentity",
    "_transport.base": "Service Socket",
    "_transport.feature_cache": "CacheState FeatureCache feature_cache keep_feature_cache",
    "_transport.pool": "WorkerPool",
    "_transport.worker": "Worker",
    "diagnostics.doctor": "Doctor doctor",
    "diagnostics.explain": "Explanation explain",
    "diagnostics.preflight": (
        "ImageSize Preflight PreflightError PreflightWarning RestoreNeed Verdict preflight"
    ),
    "enums": "Notify Verb",
    "errors": (
        "CriuError DeadlineError ImagesError MigrationError MigrationInDoubtError "
        "NoSuchProcessError OptionError PeerLostError PermissionDeniedError PidInUseError "
        "Problem ProcessMismatchError ProgramError ProgramNotFoundError ProtocolError "
        "RestoreClaimedError UnsupportedError WorkerDiedError"
    ),
    "findings": "Finding Severity",
    "migration.migrate": "MigrationMode MigrationResult migrate_in migrate_out",
    "modes": "CgroupMode CompressMode FileValidation ImageIOMode NetworkLock PreDumpMode",
    "options.criu_opts": "CriuOpts",
    "options.values": "CgroupRoot ExtMount InheritFd JoinNamespace PageServer VethPair",
    "results": (
        "CheckResult CpuinfoResult DedupResult DumpResult DumpStatistics Features "
        "PageServerResult RestoreResult RestoreStatistics Version"
    ),
}
_LATER = {name: module for module, names in _NAMES.items() for name in names.split()}
_MODULES = (
    "aio",
    "archive",
    "enums",
    "errors",
    "images",
    "jobs",
    "lib",
    "migration",
    "oci",
    "options",
    "plots",
    "results",
    "snapshots",
    "testing",
)


if not TYPE_CHECKING:  # type checkers would accept any name

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            try:
                return __import__(f"{__name__}.{name}", fromlist=[name])
            except ImportError as error:  # a missing extra; hasattr() and inspect expect this class
                raise AttributeError(str(error)) from error
        if name in _LATER:
            try:
                with no_fork:
                    from ._native import ffi  # noqa: F401
            except ImportError as error:
                # Without the traceback of the modules in between: the message has the cure.
                raise ImportError(str(error)) from None
        return fetch(globals(), _LATER, name)


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, "__version__"})
