"""The site of docs/, by Sphinx: `make docs` builds it into build/docs, without a network.

Its source folder is the repository, so that links between files are the same here and on GitHub.
"""

import re
from typing import Any

project = "evomerge"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "benchmarks/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
]
exclude_patterns = [".*", "build", "runs", "evomerge", "tests", "search_spaces"]
myst_heading_anchors = 4  # links to headings, by GitHub's rules
html_theme = "furo"
html_title = project
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False


def setup(app: Any) -> None:
    """Have Sphinx call what follows."""
    app.connect("source-read", _list_pages)


def _list_pages(app: Any, page: str, source: list[str]) -> None:
    """Make the links of the first page the site's table of contents, in their order."""
    if page == root_doc:
        pages = dict.fromkeys(re.findall(r"\]\(([\w./-]+)\.md\)", source[0]))
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", "", *pages, "```"])
