"""``diff``: the differences between two image sets (extra ``[images]``)."""

from __future__ import annotations

from ..command import Call, Command
from ..exit_codes import Exit
from ..image_sets import images_package
from ..parameters import directory_argument, flag


@Command(
    "diff",
    help="Show the differences between the images in BEFORE and in AFTER, page by page.\n\n"
    "The exit status is 0 if there is none, else 11.",
    examples=[
        "pycriu-native diff ckpt/1 ckpt/2",
        "pycriu-native diff ckpt/1 ckpt/2 --json | jq .result.pages_changed",
    ],
    exits=(Exit.IMAGES, Exit.UNSUPPORTED, Exit.NO),
    params=[
        directory_argument("before"),
        directory_argument("after"),
        flag("--no-memory", help="Do not read the pages: faster."),
    ],
).runs
def _diff(call: Call, before: str, after: str, no_memory: bool) -> Exit:
    images = images_package()
    result = images.diff(before, after, memory=not no_memory)
    code = Exit.NO if result else Exit.DONE
    return call.out.answer(result, images.render_diff(result), code=code)
