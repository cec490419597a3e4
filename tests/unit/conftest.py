"""Fixtures of the unit tests: each libcriu of this machine, and the reference for its requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .support.libraries import Library, newest, parameters
from .support.peer import Peer
from .support.proto import WireFormat, wire_format_of
from .support.strategies import OptionObjects


@pytest.fixture(scope="session", params=parameters())
def library(request: pytest.FixtureRequest) -> Library:
    """Each release of libcriu."""
    result: Library = request.param
    return result


@pytest.fixture(scope="session")
def peer(library: Library, objects: OptionObjects) -> Iterator[Peer]:
    """A process that has this libcriu loaded."""
    process = Peer(library, objects.descriptors)
    yield process
    process.close()


@pytest.fixture(scope="session")
def wire_format(library: Library) -> WireFormat:
    """Google's protobuf with the wire format of this release."""
    return wire_format_of(library)


@pytest.fixture(scope="session")
def newest_wire_format() -> WireFormat:
    """Google's protobuf with the newest wire format."""
    return wire_format_of(newest())


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OptionObjects]:
    """Existing files and objects, for options that must name some."""
    result = OptionObjects(tmp_path_factory.mktemp("objects"))
    yield result
    result.close()
