"""The API reference: one page for each public module, written by mkdocstrings from the source.

griffe reads the source without importing it, so that the extension need not be built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .sources import ROOT, SiteError

MODULES = {
    "pycriu_native": "calls, options, results and exceptions",
    "pycriu_native.aio": "the calls for asyncio",
    "pycriu_native.jobs": "commands with checkpoints at intervals, which can be resumed",
    "pycriu_native.jobs.slurm": "jobs in batch scripts of SLURM",
    "pycriu_native.jobs.dask": "jobs as tasks of Dask",
    "pycriu_native.snapshots": "save a program once and start copies of it",
    "pycriu_native.guest": "the point of a program at which a snapshot is taken",
    "pycriu_native.images": "reading, comparing and checking image sets",
    "pycriu_native.archive": "image sets as archives",
    "pycriu_native.archive.streaming": "dumps into a stream, restores from a stream",
    "pycriu_native.oci": "containers of runc and crun",
    "pycriu_native.oci.image_layout": "image sets as OCI images",
    "pycriu_native.testing": "a simulated CRIU for the tests of other programs",
    "pycriu_native.lib": "the functions of libcriu",
}
"""The public modules, each with its subject."""

HEAD = """\
# API reference

mkdocstrings generates this reference from the signatures and docstrings of the source.

| module | subject |
|---|---|
"""


def name(module: str) -> str:
    """The page of a module."""
    return f"api/{module}.md"


def pages() -> dict[str, str]:
    """The pages by name, with an index. Raises ``SiteError`` for a module that does not exist."""
    made = {}
    rows = []
    for module, subject in MODULES.items():
        path = ROOT / module.replace(".", "/")
        if not (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()):
            raise SiteError(f"the API reference names {module}, which does not exist")
        made[name(module)] = f"# `{module}`\n\n::: {module}\n"
        rows.append(f"| [`{module}`]({module}.md) | {subject} |")
    return {"api/index.md": HEAD + "\n".join(rows) + "\n", **made}


def plugin() -> dict[str, Any]:
    """The settings of mkdocstrings."""
    options = {
        "extensions": [str(Path(__file__).with_name("griffe_roles.py"))],
        "allow_inspection": False,
        # Some docstrings describe several parameters in one entry.
        "docstring_options": {"warnings": False},
        "filters": ["!^_"],
        "heading_level": 2,
        "members_order": "source",
        "merge_init_into_class": True,
        "separate_signature": True,
        "show_labels": False,
        "show_root_heading": False,
        "show_root_toc_entry": False,
        "show_signature_annotations": True,
        "show_source": False,
    }
    python = {"paths": [str(ROOT)], "options": options}
    return {"mkdocstrings": {"handlers": {"python": python}}}
