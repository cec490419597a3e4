"""The processor and the network lock that images record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pycriu_native import NetworkLock
from pycriu_native.images import decode, encode, inspect

from .support.image_sets import image_set

KEY = {f"ap{key}key_{half}": 1 for key in ("ia", "ib", "da", "db") for half in ("lo", "hi")}
REGISTERS: dict[str, Any] = {
    "clear_tid_addr": 0,
    "tls": 0,
    "gpregs": {"regs": [0], "sp": 0, "pc": 0, "pstate": 0},
    "fpsimd": {"vregs": [0], "fpsr": 0, "fpcr": 0},
}


@pytest.mark.parametrize(
    ("keys", "authenticates"),
    [
        (None, False),
        ({}, False),
        ({"pac_address_keys": {**KEY, "pac_enabled_key": 1}}, True),
        ({"pac_generic_keys": {"apgakey_lo": 1, "apgakey_hi": 1}}, True),
    ],
    ids=["before PAC", "a processor without PAC", "address keys", "generic keys"],
)
def test_pointer_authentication(
    tmp_path: Path, keys: dict[str, Any] | None, authenticates: bool
) -> None:
    """CRIU writes an empty message of keys on an arm64 processor that has none."""
    images = image_set(tmp_path / "images")
    [path] = images.glob("core-*.img")
    described = decode(path)
    [core] = described["entries"]
    core.pop("thread_info", None)
    info = REGISTERS if keys is None else {**REGISTERS, "pac_keys": keys}
    core |= {"mtype": "AARCH64", "ti_aarch64": info}
    path.write_bytes(encode(described))
    assert inspect(images).processes[0].pointer_authentication is authenticates


@pytest.mark.parametrize(
    ("number", "lock"),
    [
        (None, None),
        (0, NetworkLock.IPTABLES),
        (1, NetworkLock.NFTABLES),
        (2, NetworkLock.SKIP),
        (9, None),
    ],
)
def test_network_lock(tmp_path: Path, number: int | None, lock: NetworkLock | None) -> None:
    """CRIU's numbers in images begin with 0, those of requests with 1."""
    images = image_set(tmp_path / "images")
    path = images / "inventory.img"
    described = decode(path)
    if number is not None:
        described["entries"][0]["network_lock_method"] = number
    path.write_bytes(encode(described))
    assert inspect(images).network_lock is lock
    text = None if lock is None else lock.name.lower()
    assert inspect(images).to_dict()["network_lock"] == text
