"""Writes options into libcriu's messages, and reads messages as mappings.

Fields are named as in ``rpc.proto``. The descriptors of the loaded libcriu give their places in
memory (``native/messages.c``).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable

from .._native.ffi import LIBCRIU_VERSION, ffi, functions, native
from .._support.closing import Closing
from .._support.light_typing import Any, cast
from ..errors import CriuError, Problem, UnsupportedError
from ..options.table import Row
from ..options.value_types import Command
from ..options.values import StructuredValue, WireValue

REQUEST_TYPES = {
    "empty": 0,
    "dump": 1,
    "restore": 2,
    "check": 3,
    "pre-dump-loop": 4,
    "page-server": 5,
    "notify": 6,
    "cpuinfo-dump": 7,
    "cpuinfo-check": 8,
    "feature-check": 9,
    "version": 10,
    "wait-pid": 11,
    "page-server-child": 12,
    "pre-dump": 13,
}
"""``criu_req_type`` of requests and their responses."""

SHORT = 256
"""Maximum size in bytes of a response that is cached: most are short, and the same in each call."""

NOTIFY = REQUEST_TYPES["notify"]
EMPTY = REQUEST_TYPES["empty"]


def no_memory(status: int) -> bool:
    """Whether a status of native/messages.c means that memory ran out."""
    return status == -12


class Handle(Closing):
    """An owned ``criu_opts`` of libcriu: freed once, and not used after that."""

    def __init__(self) -> None:
        out = ffi.new("criu_opts **")
        if native.criu_local_init_opts(out):
            raise MemoryError("libcriu could not allocate its options")
        self._opts = out[0]
        self._message = native.pn_opts_message(self._opts)
        if self._message == ffi.NULL:
            self.close()
            raise CriuError(
                f"this release of pycriu_native does not support the options' layout of libcriu "
                f"{LIBCRIU_VERSION}; nothing was sent"
            )
        # A required field, which libcriu up to 3.18 leaves at 0: standard input.
        self.set_wire("images_dir_fd", -1)

    @property
    def pointer(self) -> Any:
        """The ``criu_opts *`` for libcriu's functions."""
        if self._opts is None:
            raise ValueError("the handle is closed")
        return self._opts

    def close(self) -> None:
        """Free it. A second call does nothing."""
        if self._opts is not None:
            opts, self._opts, self._message = self._opts, None, None
            native.pn_free_opts(opts)

    def set(self, row: Row, value: WireValue) -> None:
        """Set one option: by its setter if this libcriu has it, else by its wire field."""
        setter = setter_for(row, value)
        if setter is not None:
            _call_setter(self._opts, setter, row, value)
        if (setter is None or row.repair) and row.wire:
            self.set_wire(row.wire, value)

    def load(self, packed: bytes) -> None:
        """Replace the options by a result of :meth:`packed`."""
        if native.pn_load_opts(self.pointer, len(packed), packed):
            raise MemoryError("no memory for the options")
        self._message = native.pn_opts_message(self._opts)

    def set_wire(self, field: str, value: WireValue) -> None:
        """Set a field by its wire name; a list is appended."""
        set_field(self._message, field, value)

    def wire(self) -> dict[str, WireValue]:
        """The message as a mapping: every field that is present."""
        return read(self._message)

    def packed(self) -> bytes:
        """The encoded message."""
        return _pack(self._message)

    def packed_size(self) -> int:
        """The size of the encoded message, in bytes."""
        return cast(int, native.pn_packed_size(self._message))


def setter_for(row: Row, value: WireValue) -> str | None:
    """The name of the setter for this value; None if the loaded libcriu has none.

    A structured value is set by its setter only if that accepts each part that is set.
    """
    name = None if row.setter is None or row.avoid else _present(row.setter)
    if name is not None and isinstance(value, (dict, list)):
        cls = getattr(getattr(row.kind, "item", row.kind), "cls", None)
        if cls is None:
            return name
        items = value if isinstance(value, list) else [value]
        for item in items:
            if not isinstance(item, dict) or not set(item) <= set(cls.SETTER):
                return None
            if "port" in cls.SETTER and len(item) < len(cls.SETTER):
                return None  # a C int cannot be left out
    return name


@functools.cache
def _present(stem: str) -> str | None:
    """The setter's name if the loaded libcriu has it."""
    name = "criu_local_" + stem
    return name if functions()[name] else None


def _argument(value: WireValue | None) -> Any:
    if value is None:
        return ffi.NULL
    return os.fsencode(value) if isinstance(value, str) else value


def _call_setter(opts: Any, setter: str, row: Row, value: WireValue) -> None:
    function = getattr(native, setter)
    calls: Iterable[tuple[Any, ...]]
    if isinstance(value, int):
        calls = ((value,),)
    elif isinstance(row.kind, Command):
        words = [ffi.new("char[]", os.fsencode(word)) for word in cast(list[str], value)]
        calls = ((len(words), [*words]),)
    else:
        items = value if isinstance(value, list) else [value]
        calls = [_setter_arguments(row, item) for item in items]
    for arguments in calls:
        status = function(opts, *arguments)
        if status and not row.ignore_status:
            if no_memory(status):
                raise MemoryError(f"libcriu ran out of memory on {row.name}")
            rule = f"libcriu {LIBCRIU_VERSION} refuses it ({setter} returned {status})"
            raise UnsupportedError([Problem(row.name, value, rule)])


def _setter_arguments(row: Row, item: WireValue) -> tuple[Any, ...]:
    if not isinstance(item, dict):
        return (_argument(item),)
    cls: type[StructuredValue] | None = getattr(getattr(row.kind, "item", row.kind), "cls", None)
    names = cls.SETTER if cls else tuple(item)
    return tuple(_argument(item.get(name)) for name in names)


def knows(field: str) -> bool:
    """Whether the loaded libcriu's options have a wire field of this name."""
    return bool(native.pn_has_field(native.PN_OPTS, field.encode()))


def set_field(message: Any, field: str, value: WireValue) -> None:
    """Set or append to one field of a message."""
    name = field.encode()
    if isinstance(value, list):
        for item in value:
            set_field(message, field, item)
        return
    if isinstance(value, dict):
        inner = native.pn_add_message(message, name)
        if inner == ffi.NULL:
            raise MemoryError(f"no memory for {field}")
        for inner_name, inner_value in value.items():
            set_field(inner, inner_name, inner_value)
        return
    if isinstance(value, str):
        status = native.pn_set_text(message, name, os.fsencode(value))
    else:
        status = native.pn_set_int(message, name, int(value))
    if no_memory(status):
        raise MemoryError(f"no memory for {field}")
    if status:
        raise LookupError(f"libcriu {LIBCRIU_VERSION} has no field {field} of this type")


def read(message: Any) -> dict[str, WireValue]:
    """All fields that are present in a message, by wire name."""
    result: dict[str, WireValue] = {}
    field = ffi.new("struct pn_field *")
    index = 0
    while not native.pn_next_field(message, index, field):
        index = field.index
        items = [_read_item(message, index, item, field.type) for item in range(field.count)]
        result[ffi.string(field.name).decode()] = items if field.repeated else items[0]
        index += 1
    return result


def _read_item(message: Any, index: int, item: int, kind: int) -> WireValue:
    if kind == native.PN_TEXT:
        text = native.pn_get_text(message, index, item)
        return os.fsdecode(ffi.string(text)) if text != ffi.NULL else ""
    if kind == native.PN_MESSAGE:
        return read(native.pn_get_message(message, index, item))
    number = native.pn_get_int(message, index, item)
    return bool(number) if kind == native.PN_BOOL else cast(int, number)


def decode_response(data: bytes) -> dict[str, WireValue] | None:
    """A ``CriuResp`` as a mapping (do not change it); None if the bytes cannot be decoded."""
    return _decode_short(data) if len(data) <= SHORT else _decode(native.PN_RESPONSE, data)


@functools.lru_cache(64)
def _decode_short(data: bytes) -> dict[str, WireValue] | None:
    """Cached, since short responses are mostly the same in each call."""
    return _decode(native.PN_RESPONSE, data)


def decode_request(data: bytes) -> dict[str, WireValue] | None:
    """A ``CriuReq`` as a mapping; None if the bytes cannot be decoded."""
    return _decode(native.PN_REQUEST, data)


def _decode(kind: int, data: bytes) -> dict[str, WireValue] | None:
    message = native.pn_unpack(kind, len(data), data)
    if message == ffi.NULL:
        if no_memory(-ffi.errno):
            raise MemoryError("no memory for a response of CRIU")
        return None
    try:
        return read(message)
    finally:
        native.pn_free(message)


def _pack(message: Any) -> bytes:
    out = ffi.new("uint8_t[]", native.pn_packed_size(message))
    native.pn_pack(message, out)
    return bytes(ffi.buffer(out))


def encode(kind: str, fields: dict[str, WireValue]) -> bytes:
    """A ``CriuReq`` (``kind="request"``) or ``CriuResp`` (``"response"``) with these fields."""
    message = native.pn_new(native.PN_REQUEST if kind == "request" else native.PN_RESPONSE)
    if message == ffi.NULL:
        raise MemoryError("no memory for a message")
    try:
        for name, value in fields.items():
            set_field(message, name, value)
        return _pack(message)
    finally:
        native.pn_free(message)
