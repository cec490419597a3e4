"""Google's protobuf runtime as an independent reference for sent messages.

``protoc`` compiles the ``rpc.proto`` of a release; neither pycriu_native nor libcriu is used.
Strings are decoded as bytes, which have the same encoding, because a path need not be UTF-8.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, unknown_fields
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from pycriu_native.options.values import WireValue

from .libraries import Library


def compile_proto(proto: Path) -> descriptor_pb2.FileDescriptorProto:
    """The descriptors that protoc compiles from a file."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "set"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto.parent}"]
        subprocess.run(
            [*command, f"--descriptor_set_out={out}", proto.name], check=True, capture_output=True
        )
        result = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    return result.file[0]


class WireFormat:
    """The wire format of one release."""

    def __init__(self, proto: Path) -> None:
        file = compile_proto(proto)
        for message in file.message_type:
            for field in message.field:
                if field.type == field.TYPE_STRING:
                    field.type = field.TYPE_BYTES
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        self._pool = pool
        self.request_types: dict[str, int] = {
            name: value.number
            for name, value in pool.FindEnumTypeByName("criu_req_type").values_by_name.items()
        }

    def fields(self, message: str = "criu_opts") -> dict[str, FieldDescriptor]:
        """The fields of a message, by name."""
        return dict(self._pool.FindMessageTypeByName(message).fields_by_name)

    def enum(self, name: str) -> dict[str, int]:
        """The numbers of an enumeration, by name."""
        result = self._pool.FindEnumTypeByName(name)
        return {name: value.number for name, value in result.values_by_name.items()}

    def decode(self, data: bytes) -> dict[str, WireValue]:
        """All fields set in a request; a field unknown to the release is an error."""
        result = self._new("criu_req")
        result.ParseFromString(data)
        return _mapping(result)

    def encode(self, fields: dict[str, Any], message: str = "criu_req") -> bytes:
        """The bytes of a message, ordered by field number as protobuf-c does."""
        made = self._new(message)
        _fill(made, fields)
        return made.SerializeToString(deterministic=True)

    def _new(self, message: str) -> Message:
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(message))()


@functools.cache
def _wire_format(proto: Path) -> WireFormat:
    return WireFormat(proto)


def wire_format_of(library: Library) -> WireFormat:
    """The wire format of a library's release."""
    return _wire_format(library.include / "criu/rpc.proto")


def _mapping(message: Message) -> dict[str, WireValue]:
    unknown: Any = unknown_fields.UnknownFieldSet(message)
    assert not len(unknown), [field.field_number for field in unknown]
    result: dict[str, WireValue] = {}
    for field, value in message.ListFields():
        result[field.name] = [_plain(v) for v in value] if field.is_repeated else _plain(value)
    return result


def _plain(value: Any) -> WireValue:
    if isinstance(value, Message):
        return _mapping(value)
    return os.fsdecode(value) if isinstance(value, bytes) else value


def _fill(message: Any, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if isinstance(value, dict):
            getattr(message, name).SetInParent()
            _fill(getattr(message, name), value)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, dict):
                    _fill(getattr(message, name).add(), item)
                else:
                    getattr(message, name).append(_encoded(item))
        else:
            setattr(message, name, _encoded(value))


def _encoded(value: Any) -> Any:
    return os.fsencode(value) if isinstance(value, str) else value
