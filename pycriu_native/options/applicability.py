"""Which options have a meaning for which verb, from the table."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from ..enums import Verb
from ..errors import Problem
from .fields import Fields
from .table import TABLE, VERB_MASK


@functools.cache
def _foreign(verb: Verb) -> frozenset[str]:
    """The options that mean nothing to a verb."""
    mask = VERB_MASK[verb]
    return frozenset(row.name for row in TABLE if not row.on & mask)


def foreign_options(opts: Fields, verb: Verb) -> Iterator[Problem]:
    """One problem for each option that is set and has no meaning for ``verb``."""
    foreign = _foreign(verb)
    for row, value in opts.items():
        if row.field in foreign:
            known = [str(v) for v, m in VERB_MASK.items() if row.on & m]
            where = " and ".join(known) or "other requests"
            yield Problem(
                row.name,
                value,
                f"belongs to {where}; {verb} would ignore it "
                f"(opts.only_for({str(verb)!r}) drops it)",
            )
