"""The documentation site: the pages are made from files of the repository.

``python -m tools.docs_site DIRECTORY`` writes the pages as Markdown and the configuration of
mkdocs; ``make docs`` then builds the site. Pages come from README.md and ``docs/``, the how-tos by
field from ``docs/scenarios.md`` and the tests that it links (``howto.py``), the page of errors from
``known_failures.json`` (``failures.py``), the API reference from the source (``api.py``). It uses
the standard library only, and needs nothing built.
"""
