"""Image sets of CRIU: read, compare, search, decode and check them before a restore.

Needs the extra ``[images]`` (protobuf, and lz4 for compressed memory), and no CRIU.
``import pycriu_native`` does not import it.
"""

from __future__ import annotations

try:
    import google.protobuf  # noqa: F401
except ImportError as error:
    raise ImportError(
        "pycriu_native.images needs protobuf: pip install 'pycriu-native[images]'"
    ) from error

from .._support.lazy import fetch
from .._support.light_typing import TYPE_CHECKING
from .build import inspect
from .memory import Match, Memory
from .memory_mapping import MemoryMapping, VmaKind
from .model import (
    Cgroup,
    Credentials,
    Descriptor,
    File,
    FileLock,
    Image,
    ImageSet,
    InetSocket,
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
)

if TYPE_CHECKING:
    from .check import check_images
    from .codec import decode, encode
    from .difference import (
        Change,
        DescriptorChange,
        Difference,
        MappingChange,
        PageChange,
        ProcessChange,
        diff,
    )
    from .render import (
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
    "Image",
    "ImageSet",
    "InetSocket",
    "MappingChange",
    "Match",
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

# Names that ``inspect`` does not need are imported at first use: it shortens the start.
_NAMES = {
    "check": "check_images",
    "codec": "decode encode",
    "difference": "Change DescriptorChange Difference MappingChange PageChange ProcessChange diff",
    "render": "render_diff render_files render_memory render_processes render_summary render_table "
    "render_tree",
}
_LATER = {name: module for module, names in _NAMES.items() for name in names.split()}


if not TYPE_CHECKING:  # a checker of types would accept any name

    def __getattr__(name: str) -> object:
        return fetch(globals(), _LATER, name)


def __dir__() -> list[str]:
    return sorted(__all__)
