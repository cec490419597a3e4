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
    from . import findings as findings
    from . import guest as guest
    from . import images as images
    from . import jobs as jobs
    from . import lib as lib
    from . import migration as migration
    from . import modes as modes
    from . import oci as oci
    from . import options as options
    from . import plots as plots
    from . import results as results
    from . import snapshots as snapshots
    from . import testing as testing
    from ._calls.batch import DumpJob as DumpJob
    from ._calls.batch import JobOutcome as JobOutcome
    from ._calls.batch import RestoreJob as RestoreJob
    from ._calls.batch import dump_many as dump_many
    from ._calls.batch import restore_many as restore_many
    from ._calls.batch import run_many as run_many
    from ._calls.iterative_dump import DumpItersResult as DumpItersResult
    from ._calls.iterative_dump import Round as Round
    from ._calls.iterative_dump import ShrinkingRounds as ShrinkingRounds
    from ._calls.iterative_dump import dump_iters as dump_iters
    from ._calls.notification import Notification as Notification
    from ._calls.preload import preload as preload
    from ._calls.progress_state import OnProgress as OnProgress
    from ._calls.progress_state import Progress as Progress
    from ._calls.verbs import check as check
    from ._calls.verbs import cpuinfo_check as cpuinfo_check
    from ._calls.verbs import cpuinfo_dump as cpuinfo_dump
    from ._calls.verbs import dump as dump
    from ._calls.verbs import feature_check as feature_check
    from ._calls.verbs import libcriu_version as libcriu_version
    from ._calls.verbs import pre_dump as pre_dump
    from ._calls.verbs import restore as restore
    from ._calls.verbs import restore_child as restore_child
    from ._calls.verbs import version as version
    from ._integrity.manifest import seal as seal
    from ._integrity.manifest import verify as verify
    from ._native.ffi import ffi as ffi
    from ._pages.dedup import dedup as dedup
    from ._pages.lazy_pages import LazyPages as LazyPages
    from ._pages.page_server import PageServerChild as PageServerChild
    from ._pages.page_server import page_server as page_server
    from ._pages.page_server import page_server_child as page_server_child
    from ._rollback.option import Rollback as Rollback
    from ._system.process_identity import Pidfd as Pidfd
    from ._system.process_identity import ProcessIdentity as ProcessIdentity
    from ._transport.base import Service as Service
    from ._transport.base import Socket as Socket
    from ._transport.feature_cache import CacheState as CacheState
    from ._transport.feature_cache import FeatureCache as FeatureCache
    from ._transport.feature_cache import feature_cache as feature_cache
    from ._transport.feature_cache import keep_feature_cache as keep_feature_cache
    from ._transport.pool import WorkerPool as WorkerPool
    from ._transport.worker import Worker as Worker
    from .diagnostics.doctor import Doctor as Doctor
    from .diagnostics.doctor import doctor as doctor
    from .diagnostics.explain import Explanation as Explanation
    from .diagnostics.explain import explain as explain
    from .diagnostics.preflight import ImageSize as ImageSize
    from .diagnostics.preflight import Preflight as Preflight
    from .diagnostics.preflight import PreflightError as PreflightError
    from .diagnostics.preflight import PreflightWarning as PreflightWarning
    from .diagnostics.preflight import RestoreNeed as RestoreNeed
    from .diagnostics.preflight import Verdict as Verdict
    from .diagnostics.preflight import preflight as preflight
    from .enums import CgroupMode as CgroupMode
    from .enums import CompressMode as CompressMode
    from .enums import FileValidation as FileValidation
    from .enums import ImageIOMode as ImageIOMode
    from .enums import NetworkLock as NetworkLock
    from .enums import Notify as Notify
    from .enums import PreDumpMode as PreDumpMode
    from .enums import Verb as Verb
    from .errors import CriuError as CriuError
    from .errors import DeadlineError as DeadlineError
    from .errors import ImagesError as ImagesError
    from .errors import MigrationError as MigrationError
    from .errors import MigrationInDoubtError as MigrationInDoubtError
    from .errors import MovedMemoryError as MovedMemoryError
    from .errors import NoSuchProcessError as NoSuchProcessError
    from .errors import OptionError as OptionError
    from .errors import PeerLostError as PeerLostError
    from .errors import PermissionDeniedError as PermissionDeniedError
    from .errors import PidInUseError as PidInUseError
    from .errors import Problem as Problem
    from .errors import ProcessMismatchError as ProcessMismatchError
    from .errors import ProgramError as ProgramError
    from .errors import ProgramNotFoundError as ProgramNotFoundError
    from .errors import ProtocolError as ProtocolError
    from .errors import RestoreClaimedError as RestoreClaimedError
    from .errors import ResumedError as ResumedError
    from .errors import UnsupportedError as UnsupportedError
    from .errors import WorkerDiedError as WorkerDiedError
    from .findings import Finding as Finding
    from .findings import Severity as Severity
    from .migration.migrate import MigrationMode as MigrationMode
    from .migration.migrate import MigrationResult as MigrationResult
    from .migration.migrate import migrate_in as migrate_in
    from .migration.migrate import migrate_out as migrate_out
    from .options.criu_opts import CriuOpts as CriuOpts
    from .options.values import CgroupRoot as CgroupRoot
    from .options.values import ExtMount as ExtMount
    from .options.values import InheritFd as InheritFd
    from .options.values import JoinNamespace as JoinNamespace
    from .options.values import PageServer as PageServer
    from .options.values import VethPair as VethPair
    from .results import CheckResult as CheckResult
    from .results import CpuinfoResult as CpuinfoResult
    from .results import DedupResult as DedupResult
    from .results import DumpResult as DumpResult
    from .results import DumpStatistics as DumpStatistics
    from .results import Features as Features
    from .results import PageServerResult as PageServerResult
    from .results import RestoreResult as RestoreResult
    from .results import RestoreStatistics as RestoreStatistics
    from .results import Version as Version

__version__ = "0.1.0"

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
        "MovedMemoryError NoSuchProcessError OptionError PeerLostError PermissionDeniedError "
        "PidInUseError Problem ProcessMismatchError ProgramError ProgramNotFoundError "
        "ProtocolError RestoreClaimedError ResumedError UnsupportedError WorkerDiedError"
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
    "findings",
    "guest",
    "images",
    "jobs",
    "lib",
    "migration",
    "modes",
    "oci",
    "options",
    "plots",
    "results",
    "snapshots",
    "testing",
)

__all__ = sorted((*_LATER, "lib"))


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
