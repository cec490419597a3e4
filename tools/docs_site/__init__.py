"""The documentation site: its pages are made from the repository, and nothing is written twice.

``python -m docs_site DIRECTORY`` writes the pages as Markdown and the configuration of mkdocs;
``make docs`` then builds the site. Pages come from README.md and ``docs/``, the how-to pages from
the table of scenarios in README.md and the tests that it links (``howto.py``), the page of errors
from ``known_failures.json`` (``failures.py``). Needs the standard library only, and nothing built.
"""
