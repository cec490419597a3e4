"""Fixtures of the unit tests: each libcriu of this machine, and the reference for its requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .support.libraries import Library, newest, parameters
from .support.peer import Peer
from .support.proto import Judge, judge_of
from .support.strategies import World


@pytest.fixture(scope="session", params=parameters())
def library(request: pytest.FixtureRequest) -> Library:
    """Each release of libcriu."""
    result: Library = request.param
    return result


@pytest.fixture(scope="session")
def peer(library: Library, world: World) -> Iterator[Peer]:
    """A process that has this libcriu loaded."""
    process = Peer(library, world.descriptors)
    yield process
    process.close()


@pytest.fixture(scope="session")
def judge(library: Library) -> Judge:
    """Google's protobuf with the wire format of this release."""
    return judge_of(library)


@pytest.fixture(scope="session")
def newest_judge() -> Judge:
    """Google's protobuf with the newest wire format."""
    return judge_of(newest())


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Existing files and objects, for options that must name some."""
    result = World(tmp_path_factory.mktemp("world"))
    yield result
    result.close()
