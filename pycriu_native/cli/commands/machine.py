"""``check``, ``keep-cache``, ``cpuinfo-dump``, ``cpuinfo-check``: features of this machine."""

from __future__ import annotations

from ... import (
    check,
    cpuinfo_check,
    cpuinfo_dump,
    feature_check,
    keep_feature_cache,
    libcriu_version,
    version,
)
from ...enums import Verb
from .. import json_form
from ..command import Call, Command
from ..exit_codes import Exit
from ..text import details, safe, time

FEATURES = {
    "mem_track": "tracking of changed memory (pre-dump, --track-mem)",
    "lazy_pages": "userfaultfd (--lazy-pages)",
    "pidfd_store": "pidfds between dumps (pidfd_store_sk)",
    "mem_compression": "compressed pages (--compress)",
}


@Command(
    "check",
    verb=Verb.CHECK,
    help="Run CRIU's own check of this kernel, and list optional features.\n\n"
    "Nothing is changed. If CRIU cannot work here, the exit status is 1, and CRIU's reasons "
    "are printed.",
    examples=[
        "pycriu-native check",
        "pycriu-native check --json | jq .result.features",
    ],
).runs
def _check(call: Call) -> Exit:
    via = call.via
    result = check(call.opts, via=via, deadline=call.deadline)
    program = version(via=via, deadline=call.deadline)
    features = feature_check(via=via, deadline=call.deadline)
    has = json_form.plain(features)
    body = json_form.plain(result) | {
        "criu": str(program),
        "libcriu": str(libcriu_version()),
        "program": via.name(),
        "features": has,
    }
    rows = [("criu", f"{program} ({via.name()})"), ("libcriu", str(libcriu_version()))]
    rows += [(name, f"{'yes' if has[name] else 'no'}: {text}") for name, text in FEATURES.items()]
    rows += [("warning", safe(line)) for line in result.warnings]
    return call.out.result(body, details("CRIU can work on this kernel", rows))


@Command(
    "keep-cache",
    reaches=True,
    help="Let CRIU store its feature cache where it cannot by default.\n\n"
    "CRIU probes the kernel in each call, which takes 20 ms, unless /run/criu.kdat exists. "
    "CRIU creates that file only on a tmpfs. If /run is not a tmpfs, as in many containers, "
    "this command creates the file in /dev/shm and a link to it in /run. Otherwise it does "
    "nothing. The new state is printed.",
    examples=["pycriu-native keep-cache", "pycriu-native keep-cache --json | jq .result.state"],
    exits=(Exit.FAILED, Exit.PERMISSION, Exit.NO_CRIU),
).runs
def _keep_cache(call: Call) -> Exit:
    result = keep_feature_cache(via=call.worker("keep-cache starts CRIU itself"))
    return call.out.result(result, safe(str(result)))


@Command(
    "cpuinfo-dump",
    verb=Verb.CPUINFO_DUMP,
    help="Write the features of this processor to cpuinfo.img in the images directory.\n\n"
    "'cpuinfo-check' on another host compares them with its processor. No process is touched.",
    examples=["pycriu-native cpuinfo-dump -D ckpt"],
).runs
def _cpuinfo_dump(call: Call) -> Exit:
    result = cpuinfo_dump(call.opts, via=call.via, deadline=call.deadline)
    text = f"wrote {safe(result.images)}/cpuinfo.img in {time(result.duration)}"
    return call.out.result(result, text)


@Command(
    "cpuinfo-check",
    verb=Verb.CPUINFO_CHECK,
    help="Check whether this processor has the features in cpuinfo.img.\n\n"
    "The exit status is 1 if it lacks one. No process is touched.",
    examples=[
        "pycriu-native cpuinfo-check -D ckpt",
        "pycriu-native cpuinfo-check -D ckpt --cpu-cap=cpu",
    ],
).runs
def _cpuinfo_check(call: Call) -> Exit:
    result = cpuinfo_check(call.opts, via=call.via, deadline=call.deadline)
    return call.out.result(result, f"this processor has the features in {safe(result.images)}")
