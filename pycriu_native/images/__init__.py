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

if TYPE_CHECKING:
    from .build import inspect as inspect
    from .check import check_images as check_images
    from .codec import decode as decode
    from .codec import encode as encode
    from .difference import Change as Change
    from .difference import DescriptorChange as DescriptorChange
    from .difference import Difference as Difference
    from .difference import MappingChange as MappingChange
    from .difference import PageChange as PageChange
    from .difference import ProcessChange as ProcessChange
    from .difference import diff as diff
    from .memory import Match as Match
    from .memory import Memory as Memory
    from .memory_mapping import MemoryMapping as MemoryMapping
    from .memory_mapping import VmaKind as VmaKind
    from .model import Cgroup as Cgroup
    from .model import Credentials as Credentials
    from .model import Descriptor as Descriptor
    from .model import File as File
    from .model import FileLock as FileLock
    from .model import Image as Image
    from .model import ImageSet as ImageSet
    from .model import InetSocket as InetSocket
    from .model import Mount as Mount
    from .model import Namespace as Namespace
    from .model import NetworkDevice as NetworkDevice
    from .model import OtherFile as OtherFile
    from .model import Parent as Parent
    from .model import Pipe as Pipe
    from .model import Process as Process
    from .model import RegularFile as RegularFile
    from .model import Terminal as Terminal
    from .model import Thread as Thread
    from .model import Timer as Timer
    from .model import UnixSocket as UnixSocket
    from .render import render_diff as render_diff
    from .render import render_files as render_files
    from .render import render_memory as render_memory
    from .render import render_processes as render_processes
    from .render import render_summary as render_summary
    from .render import render_table as render_table
    from .render import render_tree as render_tree

# Each name is imported on first use, for a short start of the programs that need only some.
_NAMES = {
    "build": "inspect",
    "check": "check_images",
    "codec": "decode encode",
    "difference": "Change DescriptorChange Difference MappingChange PageChange ProcessChange diff",
    "memory": "Match Memory",
    "memory_mapping": "MemoryMapping VmaKind",
    "model": (
        "Cgroup Credentials Descriptor File FileLock Image ImageSet InetSocket Mount Namespace "
        "NetworkDevice OtherFile Parent Pipe Process RegularFile Terminal Thread Timer UnixSocket"
    ),
    "render": (
        "render_diff render_files render_memory render_processes render_summary render_table "
        "render_tree"
    ),
}
_LATER = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_LATER)


if not TYPE_CHECKING:  # a checker of types would accept any name

    def __getattr__(name: str) -> object:
        return fetch(globals(), _LATER, name)


def __dir__() -> list[str]:
    return sorted(__all__)
