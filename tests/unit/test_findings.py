"""One model of findings, and one definition of each public class name."""

from __future__ import annotations

import importlib
import inspect
import json
from collections import defaultdict
from dataclasses import replace

import pycriu_native
from pycriu_native import CriuOpts
from pycriu_native.diagnostics.preflight.values import ImageSize, Preflight, PreflightError
from pycriu_native.findings import Finding, Severity, lines, ordered

MODULES = ("aio", "archive", "errors", "findings", "images", "migration", "oci", "testing")


def finding(severity: Severity = Severity.NOTE, **fields: object) -> Finding:
    """A finding with defaults."""
    return Finding(**{"id": "x", "severity": severity, "message": "m", **fields})  # type: ignore[arg-type]


def test_no_two_public_classes_share_a_name() -> None:
    """A public name of several modules is the same class."""
    classes = defaultdict(set)
    modules = [importlib.import_module(f"pycriu_native.{name}") for name in MODULES]
    for module in (pycriu_native, *modules):
        for name in getattr(module, "__all__", [each for each in vars(module) if each[0] != "_"]):
            value = getattr(module, name)
            if inspect.isclass(value) and value.__module__.startswith("pycriu_native"):
                classes[name].add(value)
    assert {name for name, several in classes.items() if len(several) > 1} == set()


def test_subject() -> None:
    """By default the subject names process, descriptor and path; a given one is unchanged."""
    assert finding(pid=4, fd=5, path="/a").subject == "pid 4, fd 5, /a"
    assert finding(subject="criu", pid=4).subject == "criu"
    assert str(finding(pid=4, costs="c", cure="d")) == "pid 4: m: c; d"


def test_findings_are_ordered_by_severity() -> None:
    """Findings are in the order of ``Severity``, without duplicates."""
    given = [finding(each) for each in reversed(Severity)] * 2
    assert [each.severity for each in ordered(given)] == list(Severity)


def test_as_json() -> None:
    """All fields are keys, and options keep their values."""
    result = json.loads(json.dumps(finding(options=("a",), sets=(("a", (1, "b")),)).to_dict()))
    assert list(result) == list(Finding.__dataclass_fields__)
    assert (result["severity"], result["options"], result["sets"]) == (
        "note",
        ["a"],
        {"a": ["1", "b"]},
    )


def test_as_text() -> None:
    """Sections have a heading each; a section without findings is not shown."""
    shown = lines([finding(costs="c", cure="d")], {"stops": "bad", "note": "information"})
    assert list(shown) == ["information:", "    m", "        costs: c", "        cure: d"]


def test_obstacles_of_one_kind() -> None:
    """The error of a preflight names a kind once, with the processes; it has all findings."""
    one = Finding(id="a", severity=Severity.STOPS, message="has a", pid=1, fd=3, cure="cure a")
    findings = [replace(one, pid=number, subject="") for number in range(1, 19)]
    findings.insert(5, Finding(id="b", severity=Severity.STOPS, message="has b", cure="cure b"))
    result = Preflight(
        pid=1,
        pids=tuple(range(1, 19)),
        findings=tuple(findings),
        given=CriuOpts(),
        opts=CriuOpts(),
        restore_opts=CriuOpts(),
        restore_needs=(),
        size=ImageSize(),
    )
    error = PreflightError(result)
    assert error.findings == tuple(findings)
    assert str(error) == (
        "process 1 cannot be dumped: (1) pid 1, fd 3: has a; cure a (and 17 more of this kind, "
        "pid 2, 3, 4, 5, 6, …); (2) has b; cure b"
    )
    assert error.cause == "has a; has b"
    assert error.cure == "cure a; cure b"
