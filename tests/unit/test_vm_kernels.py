"""The page of kernels shows the results of the guests, and the reasons of failures."""

from __future__ import annotations

from typing import Any

from tools.vm.kernels import SCENARIOS, Run, page, scenarios

LAZY = "tests/integration/test_lazy.py::test_"
VETH = "tests/integration/test_veth.py::test_"


def _run(criu: str, kernel: str, tests: dict[str, Any]) -> Run:
    facts = {"criu": criu, "libcriu": criu, "kernel": kernel, "python": "3.11.2"}
    return Run({**facts, "date": "2026-01-02", "tests": tests})


def test_the_page() -> None:
    """Each field has a cell for each guest; reasons are listed once and numbered."""
    why = "CRIU 3.17.1 cannot"
    old = _run(
        "3.17.1", "6.1.0-9-cloud", {LAZY + "a": ["skipped", why], VETH + "a": ["failed", ""]}
    )
    new = _run(
        "4.1.1",
        "6.12.1+deb13",
        {LAZY + "a": ["passed", ""], LAZY + "b": ["skipped", why], VETH + "a": ["passed", ""]},
    )
    message = page([old, new])
    assert "| 3.17.1 | 3.17.1 | 6.1.0-9-cloud | 3.11.2 | 2026-01-02 | 0 | 1 | 1 |" in message
    assert "| CRIU 3.17.1, kernel 6.1.0 | CRIU 4.1.1, kernel 6.12.1 |" in message
    assert "[test_lazy.py](../tests/integration/test_lazy.py) | no [1] | 1 of 2 [1] |" in message
    assert (
        "[test_veth.py](../tests/integration/test_veth.py) | **1 of 1 failed** | yes |" in message
    )
    assert "[test_tcp.py](../tests/integration/test_tcp.py) | not run | not run |" in message
    assert message.endswith(f"\n1. {why}\n")

    again = scenarios(scenarios(SCENARIOS.read_text(), [old]), [old, new])
    assert "| field | scenario | CRIU 3.17.1, kernel 6.1.0 | CRIU 4.1.1, kernel" in again
    assert "[test_veth.py](../tests/integration/test_veth.py) | **1 of 1 failed** | yes |" in again
    assert again.replace("\n", "").startswith(SCENARIOS.read_text()[:200].replace("\n", ""))
    assert again.endswith(SCENARIOS.read_text()[-200:])
