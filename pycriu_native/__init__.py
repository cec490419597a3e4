"""Checkpoint, restore and live-migrate Linux processes, over libcriu.

``CriuOpts`` says how, the verbs do it::

    from pycriu_native import CriuOpts, dump, restore

    opts = CriuOpts(images_directory="ckpt", shell_job=True)
    dump(4242, opts)
    pid = restore(opts).pid
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import lib
from ._exchange import Notification
from ._ffi import ffi
from ._reach import Service, Socket
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
    ProgramError,
    ProgramNotFoundError,
    ProtocolError,
    UnsupportedError,
    WorkerDiedError,
)
from .iters import DumpItersResult, Round, UntilSteady, dump_iters
from .lazy import LazyPages
from .migration import MigrationMode, MigrationResult, migrate_in, migrate_out
from .opts import CriuOpts
from .pages import PageServerChild, page_server, page_server_child
from .progress import OnProgress, Progress
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
    from ._doctor import Doctor, Health, Remark, doctor
    from ._explain import Explanation, explain
    from ._preflight import (
        Finding,
        ImageSize,
        Preflight,
        PreflightError,
        Severity,
        Verdict,
        preflight,
    )
    from .manifest import seal, verify

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
    "Doctor",
    "DumpItersResult",
    "DumpResult",
    "DumpStatistics",
    "Explanation",
    "ExtMount",
    "Features",
    "Finding",
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
    "PreDumpMode",
    "Preflight",
    "PreflightError",
    "Problem",
    "ProgramError",
    "ProgramNotFoundError",
    "Progress",
    "ProtocolError",
    "Remark",
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
    "Worker",
    "WorkerDiedError",
    "check",
    "cpuinfo_check",
    "cpuinfo_dump",
    "doctor",
    "dump",
    "dump_iters",
    "explain",
    "feature_check",
    "ffi",
    "lib",
    "libcriu_version",
    "migrate_in",
    "migrate_out",
    "page_server",
    "page_server_child",
    "pre_dump",
    "preflight",
    "restore",
    "restore_child",
    "seal",
    "verify",
    "version",
]


# What few programs use is imported when it is asked for.
_LATER = {
    "Doctor": "_doctor",
    "Explanation": "_explain",
    "Finding": "_preflight",
    "Health": "_doctor",
    "ImageSize": "_preflight",
    "Preflight": "_preflight",
    "PreflightError": "_preflight",
    "Remark": "_doctor",
    "Severity": "_preflight",
    "Verdict": "_preflight",
    "doctor": "_doctor",
    "explain": "_explain",
    "preflight": "_preflight",
    "seal": "manifest",
    "verify": "manifest",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(__import__(f"{__name__}.{_LATER[name]}", fromlist=[name]), name)
    globals()[name] = value
    return value
