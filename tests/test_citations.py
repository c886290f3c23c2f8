"""Every merge method and optimizer has its papers as BibTeX, the ones that it names itself."""

import re

import pytest

from evomerge import merge_methods, optimizers, plugins
from evomerge.citations import METHODS, OPTIMIZERS, bibtex, entries
from evomerge.errors import Place, RecipeError

NAMES = plugins.names(merge_methods)


def test_every_method_and_optimizer_is_entered() -> None:
    assert METHODS.keys() == set(NAMES)
    assert OPTIMIZERS.keys() == set(plugins.names(optimizers))
    used = {key for keys in (*METHODS.values(), *OPTIMIZERS.values()) for key in keys}
    assert entries().keys() == used | {"evomerge", "akiba2025evolutionary"}


@pytest.mark.parametrize("name", NAMES)
def test_the_papers_of_a_method_are_those_that_it_names(name: str) -> None:
    paper = merge_methods.get(name, Place("a test", RecipeError)).paper
    text = bibtex(name)
    identities = re.findall(r"arXiv:(\d{4}\.\d{4,5})|doi\.org/(\S+)|(https://(?!doi)\S+?)[,;]?(?=\s|$)",
                            paper)  # fmt: skip
    for arxiv, doi, url in identities:
        if "mergekit" in url:
            assert "goddard2024mergekit" in text
        else:
            assert (arxiv or doi or url) in text
    years = re.findall(r"\b(?:19|20)\d\d\b", paper.split(", ")[0])
    assert any(f"year = {{{year}}}" in text for year in years) or "mergekit" in paper


@pytest.mark.parametrize("key", entries())
def test_entries_are_whole(key: str) -> None:
    entry = entries()[key]
    assert entry.count("{") == entry.count("}")
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.MULTILINE))
    assert len(fields) == entry.count("\n") - 1  # one field a line
    assert fields.keys() >= {"title", "author"}
    assert key == "evomerge" or re.search(r"\d{4}", key)[0] == fields["year"]  # type: ignore[index]


def test_an_unknown_method_still_cites_evomerge() -> None:
    assert bibtex("mine") == entries()["evomerge"]
    assert bibtex("ties", "cma_es").count("@") == 4
    assert bibtex("breadcrumbs_ties").count("yadav2023ties") == 1
