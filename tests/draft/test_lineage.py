"""Which model is the base, by cards, configurations, adapters, options and the order given."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.checkpoints import ModelRef
from evomerge.draft.lineage import Lineage, find_lineage
from evomerge.errors import CheckpointError, Place
from tests.tiny_adapters import factors, write_adapter
from tests.tiny_models import CONFIG, write_checkpoint

PLACE = Place("the command line", CheckpointError)
WEIGHTS = {"model.embed_tokens.weight": torch.zeros(3, 2)}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def model(name: str, card: str | None = None, **config: Any) -> Path:
    folder = write_checkpoint(Path(name), WEIGHTS, CONFIG | config)
    if card is not None:
        (folder / "README.md").write_text(f"---\n{card}\n---\n# {name}\n")
    return folder.resolve()


def found(*models: str, base: str | None = None) -> Lineage:
    return find_lineage(models, base, PLACE)


def test_cards_name_the_base_wherever_it_stands() -> None:
    model("base"), model("a", "base_model: org/base"), model("b", "base_model: [base]")
    for order in (("base", "a", "b"), ("a", "base", "b")):
        lineage = found(*order)
        assert lineage.base == ModelRef(str(Path("base").resolve()))
        assert list(lineage.experts) == ["a", "b"]
        assert lineage.known
        assert lineage.why == "the base by what a and b say"
        assert bool(lineage.notes) == (order[0] != "base")
    assert "say --base a if that is wrong" in lineage.notes[0]


def test_a_whole_name_is_stronger_than_its_end() -> None:
    model("other/base"), model("org/base"), model("a", "base_model: org/base")
    assert found("other/base", "org/base", "a").base.path == str(Path("org/base").resolve())
    assert found("other/base", "a").base.path == str(Path("other/base").resolve())


def test_a_base_that_all_cards_name_is_found_beside_them() -> None:
    base = model("models/base")
    model("models/a", "base_model: org/base"), model("models/b", _name_or_path="../base")
    lineage = found("models/a", "models/b")
    assert lineage.base == ModelRef(str(base))
    assert list(lineage.experts) == ["a", "b"]


def test_a_base_that_cards_name_and_nobody_has_is_asked_for() -> None:
    model("a", "base_model: no/such"), model("b", "base_model: no/such")
    with pytest.raises(CheckpointError, match=r"the base model no/such, .* by --base"):
        found("a", "b")


def test_an_option_is_stronger_than_cards() -> None:
    model("base"), model("a", "base_model: base")
    lineage = found("base", "a", base="a")
    assert lineage.base.path == str(Path("a").resolve())
    (name,) = lineage.experts  # base is the name of the study's own
    assert name.endswith("-base")
    assert found("a", base="base").base.path == str(Path("base").resolve())


def test_without_a_word_the_first_is_the_base_and_that_is_said() -> None:
    model("one"), model("two", _name_or_path="two"), model("three", "license: mit")
    lineage = found("one", "two", "three")
    assert lineage.base.path == str(Path("one").resolve())
    assert not lineage.known
    assert "no card or configuration says which model is the base" in lineage.notes[0]


def test_a_card_that_cannot_be_read_says_nothing() -> None:
    model("one"), model("two", "base_model: [")
    assert not found("one", "two").known


def test_a_bare_adapter_is_put_on_the_model_it_was_trained_on() -> None:
    base, tuned = model("base"), model("tuned", "base_model: base")
    parts = factors({"x": (2, 2)})
    for name, parent in (("first", "org/base"), ("second", "org/tuned"), ("third", None)):
        write_adapter(Path(name), parts, base_model_name_or_path=parent)
    lineage = found("base", "tuned", "first", "second", "third")
    adapters = {name: str(Path(name).resolve()) for name in ("first", "second", "third")}
    assert {name: str(ref) for name, ref in lineage.experts.items()} == {
        "tuned": str(tuned),
        "first": f"{base}+{adapters['first']}",
        "second": f"{tuned}+{adapters['second']}",
        "third": f"{base}+{adapters['third']}",
    }
    alone = found("first", "base+third")
    assert alone.base == ModelRef(str(base))
    assert str(alone.experts["third"]) == f"{base}+{adapters['third']}"


def test_names_are_fit_for_a_study_file_and_unlike() -> None:
    names = ("top", "org/Llama-3.1-8B", "x/last", "y/last", "7b")
    for name in names:
        model(name)
    assert list(found(*names).experts) == ["Llama-3-1-8B", "last", "y-last", "m-7b"]


def test_a_base_alone_and_a_model_twice_are_refused() -> None:
    model("one")
    with pytest.raises(CheckpointError, match="a base and one expert at least, got only one"):
        found("one")
    with pytest.raises(CheckpointError, match="each model once"):
        found("one", str(Path("one").resolve()))


def test_a_card_on_the_hub_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from evomerge.draft import lineage

    model("base")
    own = model("store/expert")
    card = Path("card.md")
    card.write_text("---\nbase_model: org/base\n---\n")
    asked = []

    def download(*arguments: Any, **named: Any) -> str:
        asked.append((*arguments, named))
        return str(card)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(
        lineage, "locate", lambda ref, place: own if "@" in str(ref) else Path(ref.path).resolve()
    )
    assert found("org/expert@v2", "base").base.path == str(Path("base").resolve())
    assert asked == [("org/expert", "README.md", {"revision": "v2"})]
    assert json.loads((own / "config.json").read_text()) == CONFIG
