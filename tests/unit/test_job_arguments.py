"""The arguments of ``Job``, and the files of its directory: values of other types are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pycriu_native import CriuOpts, ImagesError, OptionError, PageServer
from pycriu_native.jobs import Job
from pycriu_native.jobs.directory import META, JobDirectory, JobStatus, StorageStatus

WRONG: list[tuple[str, Any]] = [
    ("directory", ""),
    ("directory", 5),
    ("directory", b"/job"),
    ("directory", "a\0b"),
    ("command", []),
    ("command", "true"),
    ("command", 5),
    ("command", ["a\0b"]),
    ("command", ["true", 5]),
    ("command", [b"true"]),
    ("command", ["true", Path("a\0b")]),
    ("command", [""]),
    ("command", ["true", "\ud800"]),
    ("cwd", "/\ud800"),
    ("also", 5),
    ("also", [5]),
    ("also", b"/x"),
    ("also", ["relative"]),
    ("notice", 5),
    ("notice", ""),
    ("notice", Path("/bin/true")),
    ("incremental", True),
    ("incremental", 1.0),
    ("incremental", 10**6),
    ("lease", 0.5),
    ("grace", float("nan")),
    ("options", {}),
    ("options", CriuOpts(pre_dump=True)),
    ("options", CriuOpts(leave_stopped=True)),
    ("options", CriuOpts(page_server=PageServer(address="192.0.2.1", port=7000))),
    ("options", CriuOpts(images_directory="/images")),
    ("cwd", 5),
    ("cwd", ""),
    ("or_start_over", "yes"),
    ("unprivileged", "yes"),
    ("storage", ""),
    ("storage", 5),
    ("encrypt_to", 5),
    ("decrypt_with", [5]),
    ("every", "10m"),
    ("every", None),
    ("keep", 1.5),
    ("compress", 5),
    ("interrupted_code", "75"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_values(name: str, value: Any) -> None:
    """Each is an ``OptionError`` with the name of the argument."""
    arguments = {"directory": "/job", "command": ["true"], name: value}
    with pytest.raises(OptionError, match=name) as caught:
        Job(**arguments)
    assert [each.field for each in caught.value.problems] == [name]


def test_values_that_are_accepted() -> None:
    """Iterables of any kind, paths, and a single pattern."""
    job = Job(
        Path("/job"),
        (word for word in ("true", "")),  # type: ignore[arg-type]
        also="/x",
        cwd=Path("/"),
        options=CriuOpts(link_remap=True, lazy_pages=False, auto_dedup=False),
        storage=Path("/storage"),
        encrypt_to=iter(["a"]),
    )
    assert job.command == ("true", "")
    assert job.also == ("/x",)
    assert job.encrypt_to == ("a",)
    assert job.storage == "/storage"
    _, _, options = CriuOpts.from_argv(["criu", "dump", "--tree=1", "--link-remap"])
    assert options.images_directory == "."
    assert Job("/job", ["true"], options=options).options == options


@pytest.mark.parametrize("directory", ["job", "../job", "{}/job"])
def test_a_working_directory_that_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    """It is named, before anything is made."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    place.rmdir()
    with pytest.raises(OptionError, match=r"cwd.*was removed"):
        Job(directory.format(tmp_path), ["true"]).run()
    assert not any(tmp_path.iterdir())


def _directory(path: Path) -> JobDirectory:
    (path / "job.json").write_text(json.dumps({"command": ["true"], "directory": "/"}))
    return JobDirectory(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"state": "inter',
        "[]",
        '{"state": "ended"}',
        '{"state": "interrupted", "last_success": "abc"}',
        '{"state": "interrupted", "checkpoints": null}',
        '{"state": "interrupted", "doubted": 1.5}',
        '{"state": "interrupted", "unknown": 1}',
    ],
)
def test_a_status_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    """The error names the file and the cure, which works."""
    directory = _directory(tmp_path)
    directory.keep(JobStatus())
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(ImagesError, match=r"status.json cannot be read: .* remove this file"):
        directory.status()
    (tmp_path / "status.json").unlink()
    assert directory.status() == JobStatus()


def test_a_status_of_the_storage_that_cannot_be_read(tmp_path: Path) -> None:
    """The error names the file and the cure, which works."""
    directory = _directory(tmp_path)
    directory.keep_storage(StorageStatus(uploads=3, last_upload=1))
    assert directory.storage_status() == StorageStatus(uploads=3, last_upload=1)
    (tmp_path / "storage.json").write_text('{"uploads": "3"}')
    with pytest.raises(ImagesError, match=r"storage.json cannot be read: .* remove this file"):
        directory.status()
    (tmp_path / "storage.json").unlink()
    assert directory.storage_status() is None


def test_a_checkpoint_whose_metadata_cannot_be_read(tmp_path: Path) -> None:
    """It is listed, without metadata."""
    directory = _directory(tmp_path)
    place = directory.checkpoints / "3"
    place.mkdir(parents=True)
    body = {"number": 3, "path": "", "time": "x", "duration": 1, "frozen": 1, "bytes": 1}
    (place / META).write_text(json.dumps(body))
    (made,) = directory.all_checkpoints()
    assert (made.number, made.options, made.time) == (3, None, 0)
    (place / META).write_text(json.dumps({**body, "time": 5, "options": {"shell_job": True}}))
    (made,) = directory.all_checkpoints()
    assert (made.options, made.time) == ({"shell_job": True}, 5)
