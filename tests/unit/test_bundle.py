"""A bundle whose files have values of other types, without CRIU."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycriu_native.errors import CriuError, ImagesError, NoSuchProcessError, OptionError
from pycriu_native.oci import Bundle, Container
from pycriu_native.oci import bundle as bundle_module

CONFIG: dict[str, Any] = {
    "root": {"path": "rootfs", "readonly": True},
    "process": {"terminal": False},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/data", "type": "bind", "source": "data", "options": ["rbind"]},
    ],
    "linux": {
        "maskedPaths": ["/proc/kcore"],
        "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/a"}],
        "devices": [{"path": "/dev/fuse"}],
    },
}
ODD = (None, True, 5, 0.5, "x", "a\0b", "\ud800", [5], [["x"]], {"x": 5})


def _changed(body: Any) -> Iterator[tuple[str, Any, Any]]:
    """Each value of a JSON object, and the object with another value in its place."""
    for key in body if isinstance(body, dict) else range(len(body)):
        name = f".{key}" if isinstance(key, str) else f"[{key}]"
        for value in ODD:
            changed = body.copy()
            changed[key] = value
            yield name, value, changed
        if isinstance(body[key], dict | list):
            for inner, value, part in _changed(body[key]):
                changed = body.copy()
                changed[key] = part
                yield name + inner, value, changed


def test_values_of_other_types(tmp_path: Path) -> None:
    """Each is refused by its name when the bundle is loaded, or the bundle can be read."""
    refused = set()
    for name, value, config in _changed(CONFIG):
        (tmp_path / "config.json").write_text(json.dumps(config))
        try:
            bundle = Bundle.load(tmp_path)
        except OptionError as error:
            fields = [each.field for each in error.problems]
        else:
            fields = []
        if fields:
            assert any(field.startswith(name[1:]) for field in fields), (name, fields)
            refused.add(name)
            continue
        assert value in (None, "x") or isinstance(value, type(_of(CONFIG, name))), (name, value)
        assert isinstance(bundle.root, str)
        assert isinstance(bundle.binds, dict)
        assert isinstance(bundle.masked, list)
        assert isinstance(bundle.namespaces, dict)
    assert len(refused) == len({name for name, _, _ in _changed(CONFIG)})


def _of(body: Any, name: str) -> Any:
    for key in re.findall(r"\w+", name):
        body = body[int(key) if isinstance(body, list) else key]
    return body


@pytest.mark.parametrize("text", ["", "[]", "x", "[" * 100_000])
def test_a_file_that_is_no_object(tmp_path: Path, text: str) -> None:
    """The error has the path."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ImagesError, match=re.escape(str(tmp_path / "config.json"))):
        Bundle.load(tmp_path)


STATES: dict[str, tuple[str, dict[str, Any]]] = {
    "runc": (
        "state.json",
        {
            "config": {"labels": ["bundle=/nowhere"]},
            "init_process_pid": 1,
            "init_process_start": 1,
            "external_descriptors": ["/dev/null"] * 3,
        },
    ),
    "crun": (
        "status",
        {"pid": 1, "process-start-time": 1, "bundle": "/x", "external_descriptors": "[]"},
    ),
}


@pytest.mark.parametrize("runtime", STATES)
def test_a_state_of_another_form(tmp_path: Path, runtime: str) -> None:
    """The state file of a runtime with other values: nothing but the library's errors."""
    name, good = STATES[runtime]
    (tmp_path / "box").mkdir()
    for _, _, state in _changed(good):
        (tmp_path / "box" / name).write_text(json.dumps(state))
        with pytest.raises(CriuError) as raised:
            Container.from_runtime("box", runtime, root=tmp_path)
        assert isinstance(raised.value, ImagesError | NoSuchProcessError)
    with contextlib.suppress(CriuError):
        (tmp_path / "box" / name).write_text(json.dumps(good))
        Container.from_runtime("box", runtime, root=tmp_path)


def test_descriptors_in_a_fifo(tmp_path: Path) -> None:
    """The names of the standard streams are not waited for."""
    os.mkfifo(tmp_path / "descriptors.json")
    with pytest.raises(ImagesError, match=r"no usable descriptors\.json"):
        bundle_module._read_descriptors(str(tmp_path))
