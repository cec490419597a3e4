"""The ``criu`` of the restore: its release, its plugins, and the programs that it runs."""

from __future__ import annotations

import contextlib
import os

from ..._calls import requirements
from ..._checks.criu_files import missing_plugins
from ..._transport.helper_programs import FAMILIES, HelperPrograms, cure
from ...enums import NetworkLock
from ...errors import CriuError
from ...results import Version
from ..model import InetSocket
from .context import Context, Findings, predicted, stops, warning

_COMPRESSED_VERSION = 3


def release(context: Context) -> Findings:
    try:
        here = context.release()
    except CriuError as error:
        yield stops(
            "criu",
            str(error),
            "install CRIU (pycriu-native install-criu), or name it with Worker(program)",
        )
        return
    if context.images.kind == "pre-dump":
        pass  # refused as such
    elif context.images.version not in (1, 2, _COMPRESSED_VERSION):
        yield stops(
            "criu",
            f"no release supports images of version {context.images.version}",
            "a newer CRIU",
        )
    elif context.images.version == _COMPRESSED_VERSION and here < Version.parse("4.3"):
        yield stops(
            "criu", f"the images are compressed, and this is CRIU {here}", "CRIU 4.3 or later"
        )
    if message := requirements.pointer_authentication(here):
        yield stops("criu", message, "CRIU 4.2 or later")
    made = context.images.criu or context.images.criu_at_least
    if made and Version.parse(made).number > here.number:
        yield warning(
            "criu",
            f"the images were made by CRIU {made}, and this is {here}",
            f"CRIU {made} or later: an older one ignores fields that it does not have",
        )
    if context.images.allow_uprobes and not (
        context.opts.allow_uprobes or context.opts.config_file
    ):
        yield stops(
            "uprobes",
            "the dump was made with allow_uprobes, which the restore needs as well",
            "allow_uprobes=True",
            "allow_uprobes",
        )


def plugins(context: Context) -> Findings:
    """Plugins with which the dump was made."""
    for name in missing_plugins(context.images.plugins, context.opts, context.via):
        yield predicted(f"plugin {name}", "plugin")


def programs(context: Context) -> Findings:
    """Programs that CRIU runs to restore network namespaces and tmpfs (``criu/net.c``)."""
    helpers = HelperPrograms(context.via)
    names = os.listdir(context.images.directory)

    def has(kind: str) -> bool:
        return any(name.startswith(f"{kind}-") for name in names)

    restored = {}
    if has("tmpfs"):
        restored["the files of a tmpfs"] = helpers.missing("tar", "gzip")
    if has("ifaddr") and not context.opts.empty_ns:
        restored["a network namespace"] = helpers.missing(helpers.ip)
    with contextlib.suppress(CriuError):  # "release" reports that there is no CRIU
        for family in filter(has, FAMILIES):
            lacking = helpers.missing_for_rules(family, context.release())
            restored[f"rules of {family}"] = lacking
    for what, lacking in restored.items():
        if lacking:
            message = f"CRIU restores it {helpers.described(lacking)}"
            yield stops(what, message, cure(lacking))
    if context.images.network_lock not in (None, NetworkLock.IPTABLES):
        return
    lacking = ()
    if has("netns"):
        lacking = helpers.missing_for_namespace_lock()
    elif any(each.connected for each in context.files(InetSocket)):
        lacking = helpers.missing_for_lock(FAMILIES)
    if lacking:
        yield warning(
            "the lock of the network",
            f"CRIU removes it {helpers.described(lacking)}: rules of iptables that block the "
            "network can stay",
            cure(lacking),
        )
