"""The message classes, with each of protobuf's implementations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.internal import api_implementation

from pycriu_native.images import decode, inspect
from pycriu_native.images.schema import _pool, message, table

from .support.image_sets import PRESENT, image_set

READ = """
import json, sys
from google.protobuf.internal import api_implementation
from pycriu_native.images import decode, inspect
found = [inspect(sys.argv[1]).to_dict(), [decode(path) for path in sys.argv[2:]]]
print(json.dumps([api_implementation.Type(), found]))
"""


def test_the_pure_implementation_reads_the_same(tmp_path: Path) -> None:
    """The pure-Python implementation has other pools and classes than the compiled one."""
    image_set(tmp_path, [(0, 2, PRESENT)], bytes(8192))
    paths = [path for path in sorted(tmp_path.glob("*.img")) if path.name[:6] != "pages-"]
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path), *map(str, paths)],
        env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    kind, result = json.loads(done.stdout)
    assert kind == "python"
    ours = [inspect(tmp_path).to_dict(), [decode(path) for path in paths]]
    assert result == json.loads(json.dumps(ours))


@pytest.mark.skipif(api_implementation.Type() == "python", reason="protobuf is not compiled here")
def test_descriptors_match_the_table() -> None:
    """protobuf reads back each field with its number, label, default and packing."""
    messages, enums = table()
    for name, rows in messages.items():
        reported = descriptor_pb2.DescriptorProto()
        message(name).DESCRIPTOR.CopyToProto(reported)
        assert [
            (
                row.name,
                row.number,
                {"": 2, "?": 1, "*": 3}[row.label],
                row.default or "",
                f".{row.type}" if row.type in messages or row.type in enums else "",
                row.packed,
            )
            for row in rows
        ] == [
            (
                field.name,
                field.number,
                field.label,
                field.default_value,
                field.type_name,
                field.options.packed,
            )
            for field in reported.field
        ]
    for name, values in enums.items():
        result = _pool().FindEnumTypeByName(name)
        assert {value.name: value.number for value in result.values} == values
