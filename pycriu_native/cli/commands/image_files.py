"""``decode`` and ``encode``: one image file as JSON (extra ``[images]``)."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ...errors import ImagesError
from .. import json_form, parameters
from ..command import Call, Command
from ..exit_codes import Exit
from ..image_sets import images_package, named_as
from ..text import safe, size

EXITS = (Exit.IMAGES, Exit.UNSUPPORTED)


@Command(
    "decode",
    help="Print an image FILE as JSON, with the names of fields in CRIU's messages.\n\n"
    "'-' is standard input.",
    examples=[
        "pycriu-native decode ckpt/core-4242.img",
        "pycriu-native decode ckpt/pstree.img | jq '.entries[].pid'",
        "pycriu-native decode ckpt/mm-4242.img --pretty",
    ],
    exits=EXITS,
    params=[
        click.Argument(["image"], metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True)),
        parameters.file_option("-o", "--output", metavar="JSON", help="Write to this file."),
        parameters.OVERWRITE,
        parameters.flag("--info", help="Print only the kind and number of entries."),
        parameters.flag(
            "--pretty", help="Print addresses, flags, devices and states as text, as crit does."
        ),
    ],
).runs
def _decode(
    call: Call, image: str, output: str | None, overwrite: bool, info: bool, pretty: bool
) -> Exit:
    if output is not None:
        if info:
            raise click.UsageError("--info and --output: one is accepted.")
        parameters.check_new(output, overwrite)
    with _image_file(image) as path:
        result = images_package().decode(path, payload=not info, pretty=pretty)
    if info:
        body = {"magic": result["magic"], "entries": len(result["entries"])}
        return call.out.answer(body, f"{body['magic']}, entries: {body['entries']}")
    if pretty:
        text = json.dumps(result, indent=4)  # the layout of crit
    else:
        text = json.dumps(json_form.plain(result), indent=2, ensure_ascii=False)
    if output is None:
        return call.out.answer(result, text)
    from ...archive.pack import written_beside

    with written_beside(Path(output)) as file:
        file.write(text.encode(errors="surrogateescape") + b"\n")
    body = {"image": image, "file": output}
    return call.out.result(body, safe(f"wrote {output}"))


@contextmanager
def _image_file(image: str) -> Iterator[str]:
    """The path of an image file; standard input is copied to a temporary file."""
    if image != "-":
        yield image
        return
    with tempfile.TemporaryDirectory(prefix="pycriu-native-") as scratch:
        path = f"{scratch}/standard-input"
        with open(path, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        with named_as("standard input", path):
            yield path


@Command(
    "encode",
    help="Write the image FILE from JSON, which 'decode', 'decode --pretty' or crit has "
    "printed.\n\n"
    "Unchanged messages keep the bytes that CRIU wrote. JSON can be '-', standard input. An "
    "existing FILE is replaced: work on a copy of the image set.",
    examples=[
        "pycriu-native decode ckpt/core-4242.img > core.json",
        "pycriu-native encode core.json copy/core-4242.img",
    ],
    exits=EXITS,
    params=[
        click.Argument(
            ["described"], metavar="JSON", type=click.Path(dir_okay=False, allow_dash=True)
        ),
        click.Argument(["image"], metavar="FILE", type=click.Path(dir_okay=False)),
    ],
).runs
def _encode(call: Call, described: str, image: str) -> Exit:
    # JSON can represent bytes that are not UTF-8 as lone surrogates.
    with click.open_file(described, encoding="utf-8", errors="surrogateescape") as file:
        try:
            result = json.load(file)
        except (ValueError, RecursionError) as error:
            raise ImagesError(f"{described} is not JSON: {error}") from None
    if isinstance(result, dict):
        result = result.get("result", result)  # of decode --json
    if not isinstance(result, dict):
        raise ImagesError(f"{described} is not an image in the form that decode prints")
    data = images_package().encode(result)
    from ..._integrity.dump_record import record_again
    from ..._system.descriptors import opened_directory
    from ...archive.pack import written_beside

    with written_beside(Path(image)) as file:  # mode 0600, as images have
        file.write(data)
    with opened_directory(Path(image).parent) as directory:
        record_again(directory, Path(image).name)
    body = {"image": image, "bytes": len(data)}
    return call.out.result(body, safe(f"wrote {size(len(data))} to {image}"))
