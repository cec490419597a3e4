"""Images of CRIU, read: what was dumped, compared, searched, and checked before a restore.

Needs the extra ``[images]`` (protobuf, and lz4 for compressed memory). It is no part of
``import pycriu_native``, and needs no CRIU.
"""

from __future__ import annotations

try:
    import google.protobuf  # noqa: F401
except ImportError as error:
    raise ImportError(
        "pycriu_native.images needs protobuf: pip install 'pycriu-native[images]'"
    ) from error

from .._later import fetch
from .._typing import TYPE_CHECKING, Any
from ._build import inspect
from ._memory import Found, Memory
from .model import (
    Cgroup,
    Credentials,
    Descriptor,
    File,
    FileLock,
    Image,
    ImageSet,
    InetSocket,
    MemoryMapping,
    Mount,
    Namespace,
    NetworkDevice,
    OtherFile,
    Parent,
    Pipe,
    Process,
    RegularFile,
    Terminal,
    Thread,
    Timer,
    UnixSocket,
    VmaKind,
)

if TYPE_CHECKING:
    from ._check import Finding, Severity, check_images
    from ._codec import decode, encode
    from ._diff import (
        Change,
        DescriptorChange,
        Difference,
        MappingChange,
        PageChange,
        ProcessChange,
        diff,
    )
    from ._render import (
        render_diff,
        render_files,
        render_memory,
        render_processes,
        render_summary,
        render_table,
        render_tree,
    )

__all__ = [
    "Cgroup",
    "Change",
    "Credentials",
    "Descriptor",
    "DescriptorChange",
    "Difference",
    "File",
    "FileLock",
    "Finding",
    "Found",
    "Image",
    "ImageSet",
    "InetSocket",
    "MappingChange",
    "Memory",
    "MemoryMapping",
    "Mount",
    "Namespace",
    "NetworkDevice",
    "OtherFile",
    "PageChange",
    "Parent",
    "Pipe",
    "Process",
    "ProcessChange",
    "RegularFile",
    "Severity",
    "Terminal",
    "Thread",
    "Timer",
    "UnixSocket",
    "VmaKind",
    "check_images",
    "decode",
    "diff",
    "encode",
    "inspect",
    "render_diff",
    "render_files",
    "render_memory",
    "render_processes",
    "render_summary",
    "render_table",
    "render_tree",
]

# What an inspection does without is imported when it is asked for.
_LATER = {
    "Change": "_diff",
    "DescriptorChange": "_diff",
    "Difference": "_diff",
    "Finding": "_check",
    "MappingChange": "_diff",
    "PageChange": "_diff",
    "ProcessChange": "_diff",
    "Severity": "_check",
    "check_images": "_check",
    "decode": "_codec",
    "diff": "_diff",
    "encode": "_codec",
    "render_diff": "_render",
    "render_files": "_render",
    "render_memory": "_render",
    "render_processes": "_render",
    "render_summary": "_render",
    "render_table": "_render",
    "render_tree": "_render",
}


def __getattr__(name: str) -> Any:
    return fetch(globals(), _LATER, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
