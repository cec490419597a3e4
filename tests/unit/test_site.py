"""The pages of the site as they are made for the site generator, which these tests do not need."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from pycriu_native import CriuOpts
from tools.docs_site import api, failures, howto, search_hook, site
from tools.docs_site.sources import ROOT, SiteError, meanings, options


def test_each_field_has_its_page() -> None:
    """The page of each field has its text and names, and its tests if there is a scenario."""
    assert set(options()) == set(CriuOpts.__dataclass_fields__)
    shown = {name for scenario in howto.scenarios() for name in scenario.names}
    for field, option in options().items():
        page = howto.page(field)
        assert meanings()[field] in page
        assert option.wire in page
        assert ("def test_" in page) is (field in shown)


def test_each_failure_has_an_anchor() -> None:
    """Each failure is listed once, with cause and cure."""
    page = failures.page()
    for one in failures.known():
        assert page.count(f"{{#{one['id']}}}") == 1
        assert failures.plain(one["cause"]) in page
        assert failures.plain(one["cure"]) in page


def test_generated_links_lead_to_pages() -> None:
    """Every example of the how-to pages and of the errors is valid."""
    made = {"errors.md": failures.page(), "howto/index.md": howto.index()}
    made |= {f"howto/{name}.md": howto.page(name) for name in howto.subjects()}
    names = {*made, *site.originals().values()}
    names |= {f"source/{path}.md" for one in howto.scenarios() for path in one.files}
    for name, text in made.items():
        prose = re.sub(r"````.*?````", "", text, flags=re.S)
        for target in re.findall(r"\]\(([^)#:\s]+)[^)]*\)", prose):
            assert os.path.normpath(Path(name).parent / target) in names, f"{name}: {target}"


def test_links_of_written_pages() -> None:
    """Links lead to a page, or to the source of what they name."""
    needed: set[str] = set()
    broken: list[str] = []
    text = "[a](docs/cli.md#dump) [b](tests/conftest.py) [c](https://x.org) [d](docs/none.md)\n"
    made = site.relinked(text, "README.md", needed, broken)
    assert made == (
        "[a](cli.md#dump) [b](source/tests/conftest.py.md) [c](https://x.org) [d](docs/none.md)\n"
    )
    assert needed == {"tests/conftest.py"}
    assert broken == ["README.md links to docs/none.md, which is not a file"]


def test_a_missing_scenario_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken link stops the build and is named with its file."""
    exited = howto.Scenario(
        title="x", names=("timeout",), files=("tests/integration/test_gone.py",)
    )
    monkeypatch.setattr(howto, "scenarios", lambda: (exited,))
    with pytest.raises(SiteError, match=r"there is no tests/integration/test_gone\.py"):
        howto.page("timeout")


def test_the_contents_name_every_page() -> None:
    """All pages, except sources, can be reached by links."""
    made = dict.fromkeys([*site.originals().values(), "errors.md"], "")
    message = json.dumps(site.configuration(made)["nav"])
    assert all(f'"{name}"' in message for name in made)
    assert (ROOT / "docs/tutorial.md").is_file()


def test_the_reference_covers_the_public_modules() -> None:
    """Each module that its package documents has a page, and the index links it."""
    made = api.pages()
    for module in (
        "pycriu_native",
        *(f"pycriu_native.{name}" for name in ("aio", "images", "oci")),
    ):
        assert f"::: {module}\n" in made[api.name(module)]
        assert f"]({module}.md)" in made["api/index.md"]


def test_a_module_of_the_reference_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing module stops the build and is named."""
    monkeypatch.setitem(api.MODULES, "pycriu_native.none", "nothing")
    with pytest.raises(SiteError, match=r"pycriu_native\.none, which does not exist"):
        api.pages()


def test_the_index_has_whole_sentences() -> None:
    """A colon or an abbreviation does not end a sentence; each sentence ends with a period."""
    assert howto.first_sentence("A path: `a.b`, or\nnone (e.g. x. Y). Next.") == (
        "A path: `a.b`, or none (e.g. x. Y)."
    )
    assert howto.first_sentence("Mount points to leave out") == "Mount points to leave out."
    for meaning in meanings().values():
        assert howto.first_sentence(meaning).endswith(".")


def test_sources_are_not_searched(tmp_path: Path) -> None:
    """The hook that the configuration names removes only the pages with sources."""
    (hook,) = site.configuration(site.pages())["hooks"]
    assert Path(hook) == Path(search_hook.__file__)
    index = tmp_path / "search" / "search_index.json"
    index.parent.mkdir()
    pages = [{"location": name, "text": ""} for name in ("cli.html", "source/x.html#f")]
    index.write_text(json.dumps({"config": {}, "docs": pages}))
    search_hook.on_post_build(SimpleNamespace(site_dir=str(tmp_path)))
    assert json.loads(index.read_text()) == {"config": {}, "docs": pages[:1]}
