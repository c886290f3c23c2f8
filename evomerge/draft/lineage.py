"""Which of some models is the base of the others, by what their cards and configurations say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge.adapter_reader import CONFIG
from evomerge.checkpoints import ModelRef, locate
from evomerge.errors import CheckpointError, Found, Place
from evomerge.files import exists
from evomerge.headers import read_json
from evomerge.tensor_files import find_tensors

CARD = "README.md"


@dataclass(frozen=True)
class Given:
    """A model that was named, and the models that it names as what it was trained from.

    `bare` is an adapter without its model.
    """

    text: str
    ref: ModelRef
    folder: Path
    parents: tuple[str, ...]
    bare: bool = False

    def is_named(self, name: str) -> bool:
        """Return whether `name`, as a card writes it, is this model's path or id."""
        if name in (self.text, str(self.ref), self.ref.path, str(self.folder)):
            return self.ref.adapter is None or name == str(self.ref)
        return exists(Path(name)) and Path(name).resolve() == self.folder

    def ends_as(self, name: str) -> bool:
        """Return whether `name` has the same end: org/model is likely models/model."""
        return self.ref.adapter is None and _end(name) == _end(self.ref.path)


@dataclass(frozen=True)
class Lineage:
    """The base, the experts' references by names of their own, and how that was found."""

    base: ModelRef
    experts: dict[str, ModelRef]
    why: str
    notes: tuple[str, ...]
    known: bool  # by a card or an option, not by the order alone


def find_lineage(models: Sequence[str], base: str | None, place: Place) -> Lineage:
    """Tell base and experts apart; `base` is what the user says it is.

    Else it is the model that the others name, among those given or not, and else the first. Raises
    CheckpointError where a model cannot be found, or where there is no expert beside the base.
    """
    given = [look(text, place) for text in models]
    for number, one in enumerate(given):
        if one.ref in [other.ref for other in given[:number]]:
            raise place.fail("each model once", one.text)
    notes: list[str] = []
    if base is not None:
        chosen = look(base, replace(place, path="--base"))
        why, known = "by --base", True
    else:
        chosen, why, notes, known = _chosen(given, place)
    if chosen.bare:
        raise place.fail("a base model", Found(f"the adapter {chosen.text}"), "name it by --base")
    others = [one for one in given if one.ref != chosen.ref]
    if not others:
        hint = "name its experts after it, or a model whose card names its base"
        raise place.fail("a base and one expert at least", Found(f"only {chosen.text}"), hint)
    names = _own_names([one.ref for one in others])
    experts = {
        name: _on_its_model(one, chosen, others) for name, one in zip(names, others, strict=True)
    }
    return Lineage(chosen.ref, experts, why, tuple(notes), known)


def look(text: str, place: Place) -> Given:
    """Find a model's folder and read what it says of its parents; raises the place's error."""
    ref = ModelRef.parse(text, place).resolved(Path.cwd())
    folder = locate(ref, place)
    if ref.adapter is not None:
        return Given(text, ref, folder, (str(replace(ref, adapter=None)),))
    if (folder / CONFIG).is_file() and find_tensors(folder) is None:
        parent = read_json(folder / CONFIG).get("base_model_name_or_path")
        said = [parent] if isinstance(parent, str) and parent else []
        return Given(text, ref, folder, tuple(said), bare=True)
    found = Given(text, ref, folder, ())
    parents = tuple(one for one in _parents(ref, folder) if not found.is_named(one))
    return replace(found, parents=parents)


def _parents(ref: ModelRef, folder: Path) -> list[str]:
    said = _card(ref, folder).get("base_model")
    names = said if isinstance(said, list) else [said]
    found = [one for one in names if isinstance(one, str) and one]
    path = read_json(folder / "config.json").get("_name_or_path")
    if not found and isinstance(path, str) and _end(path) not in ("", _end(ref.path)):
        return [path]  # and not where the model itself once lay
    return found


def _card(ref: ModelRef, folder: Path) -> dict[str, Any]:
    """Return the metadata of a model's card; of one that cannot be had or read, none."""
    import huggingface_hub
    from huggingface_hub.repocard import metadata_load

    try:
        file = folder / CARD
        if not file.is_file() and not exists(Path(ref.path)):
            file = Path(huggingface_hub.hf_hub_download(ref.path, CARD, revision=ref.revision))
        return metadata_load(file) or {}
    except Exception:  # no card, no network, no YAML: then it says nothing
        return {}


def _chosen(given: Sequence[Given], place: Place) -> tuple[Given, str, list[str], bool]:
    """Return the base, why it is it, notes, and whether anything but the order says so."""
    named_by = {other.text: _parents_among(other, given) for other in given}
    votes = [[text for text, parents in named_by.items() if one in parents] for one in given]
    most = max(votes, key=len)
    if most:
        best = given[votes.index(most)]
        notes = []
        if best is not given[0]:
            notes.append(
                f"{best.text} is taken for the base, not {given[0].text}, which comes first; "
                f"say --base {given[0].text} if that is wrong"
            )
        return best, f"the base by what {_listed(most)} {_says(most)}", notes, True
    common = [
        name for name in given[0].parents
        if all(_end(name) in map(_end, one.parents) for one in given)
    ]  # fmt: skip
    texts = [one.text for one in given]
    if len(common) == 1:
        why = f"found as the base by what {_listed(texts)} {_says(texts)}"
        return _outside(common[0], given, place), why, [], True
    named = dict.fromkeys(name for one in given[1:] for name in one.parents)
    first = given[0].text
    notes = [f"a card names {one} as the base; {first} is taken to be it" for one in named]
    if not named:
        unsaid = f"no card or configuration says which model is the base; {first} is taken, "
        unsaid += "since it comes first: say --base MODEL "
        right = (
            "if one is the other's, and task arithmetic will start from it"
            if len(given) == 2
            else ""
        )
        notes.append(unsaid + (right or "if that is wrong"))
    return given[0], "the first model given", notes, bool(named)


def _parents_among(one: Given, given: Sequence[Given]) -> list[Given]:
    """Return the models that one names; what none is called by its whole name, by its end."""
    others = [other for other in given if other is not one]
    found: list[Given] = []
    for name in one.parents:
        whole = [other for other in others if other.is_named(name)]
        found += whole or [other for other in others if other.ends_as(name)]
    return found


def _outside(name: str, given: Sequence[Given], place: Place) -> Given:
    """Return the model that cards name: at a path of theirs, beside them, or on the Hub."""
    said = dict.fromkeys(p for one in given for p in one.parents if _end(p) == _end(name))
    folders = [Path.cwd(), *(folder for one in given for folder in (one.folder, one.folder.parent))]
    near = [folder / one for one in (*said, Path(name).name) for folder in folders]
    try:
        return look(next((str(one) for one in near if exists(one)), name), place)
    except CheckpointError as problem:
        raise CheckpointError(
            f"expected the base model {name}, which {given[0].text} was trained from by its card, "
            f"got none; name the base's folder by --base ({problem})"
        ) from None


def _on_its_model(one: Given, base: Given, others: Sequence[Given]) -> ModelRef:
    """Return an expert's reference; a bare adapter is put on the model that it was trained on."""
    if not one.bare:
        return one.ref
    models = [base, *(other for other in others if not other.bare)]
    return replace((*_parents_among(one, models), base)[0].ref, adapter=one.ref)


def _own_names(refs: Sequence[ModelRef]) -> list[str]:
    """Return a name for each expert, of the end of its path, fit for a study file."""
    found: list[str] = []
    for ref in refs:
        parts = [re.sub(r"[^A-Za-z0-9_-]+", "-", one) for one in Path(ref.path).parts]
        if ref.adapter is not None:
            parts = [re.sub(r"[^A-Za-z0-9_-]+", "-", one) for one in Path(ref.adapter.path).parts]
        choices = [parts[-1], "-".join(parts[-2:])]
        choices += [f"{parts[-1]}-{number}" for number in range(2, len(refs) + 3)]
        fit = [one.strip("-") for one in choices]
        fit = [one if one[:1].isalpha() else f"m-{one}" for one in fit]
        found.append(next(one for one in fit if one not in (*found, "base")))
    return found


def _end(name: str) -> str:
    return Path(name.split("@", maxsplit=1)[0]).name.lower()


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _says(names: Sequence[str]) -> str:
    return "says" if len(names) == 1 else "say"
