"""Norms, cosines and sign conflicts against hand and float64, and what is said of them."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from evomerge.errors import CheckpointError
from evomerge.expectation import expectation
from evomerge.mergeability import Mergeability, measure, sums
from evomerge.module_groups import group_of
from tests.tiny_models import FLAT, base_weights, expert_weights, opened, weights, write_checkpoint
from tests.tiny_models import write_family as write_tiny

BASE = [3.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def of(*vectors: list[float], base: list[float] | None = None) -> Mergeability:
    start = torch.tensor(base or BASE)
    moved = [start + torch.tensor(vector) for vector in vectors]
    return Mergeability(tuple("abc"[: len(vectors)]), {"x": sums([start, *moved])})


def test_a_case_by_hand() -> None:
    #    large in a:    *    *                      the base has the norm 5
    found = of(
        [0, 0, 0, 1, -3, 4, 0, 0, 0, 0],
        [0, 2, 0, -1, 2, 3, 0, 0, 0, 0],
    ).overall
    #    large in b:       *  *  (the threshold is the second largest, 2, which the first has too)
    assert (found.tensors, found.entries, found.base) == (1, 10, 25.0)
    assert found.gram.tolist() == [[26.0, 5.0], [5.0, 18.0]]
    assert found.changed.tolist() == [3, 4]
    assert found.changed_tensors.tolist() == [1, 1]
    assert (found.both[0, 1], found.opposite[0, 1]) == (3, 2)
    assert (found.both_large[0, 1], found.opposite_large[0, 1]) == (2, 1)
    data = found.as_data(["a", "b"])
    assert data["experts"]["a"]["relative_norm"] == pytest.approx(26**0.5 / 5)
    (pair,) = data["pairs"]
    assert pair["experts"] == ["a", "b"]
    assert pair["cosine"] == pytest.approx(5 / (26 * 18) ** 0.5)
    assert (pair["opposite_signs"], pair["opposite_signs_large"]) == (2 / 3, 1 / 2)


def test_what_has_no_value_is_none() -> None:
    zeros = [0.0] * 10
    (pair,) = of(zeros, [1.0, *zeros[1:]]).overall.as_data(["a", "b"])["pairs"]
    assert pair == {"experts": ["a", "b"], "cosine": None, "opposite_signs": None,
                    "opposite_signs_large": None, "both_large": 0}  # fmt: skip
    none = of(zeros, base=zeros).overall.as_data(["a"])["experts"]["a"]
    assert none == {"relative_norm": None, "changed_tensors": 0, "changed_entries": 0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_figures_of_a_family_are_those_in_float64(tmp_path: Path, dtype: torch.dtype) -> None:
    write_tiny(tmp_path, dtype)
    names = ["base", "a", "b", "c"]
    found = measure(dict(zip(names, opened(tmp_path, *names), strict=True)))
    tensors = {name: weights(tmp_path, name) for name in names}
    assert set(found.tensors) == set(tensors["base"])
    for group, one in [("all", found.overall), *found.groups.items()]:
        chosen = [name for name in tensors["base"] if group in ("all", group_of(name))]
        assert one.tensors == len(chosen)
        base = torch.cat([tensors["base"][name].double().flatten() for name in chosen])
        deltas = [
            torch.cat([tensors[expert][name].double().flatten() for name in chosen]) - base
            for expert in "abc"
        ]
        np.testing.assert_allclose(
            one.relative_norms, [float(d.norm() / base.norm()) for d in deltas], rtol=1e-6
        )
        for i, j in combinations(range(3), 2):
            cosine = float(deltas[i] @ deltas[j] / deltas[i].norm() / deltas[j].norm())
            assert one.cosines[i, j] == pytest.approx(cosine, abs=1e-6)
            unlike = int(((deltas[i] * deltas[j]) < 0).sum())
            assert one.opposite[i, j] == one.opposite[j, i] == unlike
            assert one.both[i, j] == int(((deltas[i] != 0) & (deltas[j] != 0)).sum())
    large = {}
    for name in tensors["base"]:
        for expert in "abc":
            delta = (tensors[expert][name].float() - tensors["base"][name].float()).flatten()
            kept = max(1, int(0.2 * len(delta)))
            least = delta.abs().sort(descending=True).values[kept - 1]
            large[expert, name] = delta.sign() * (delta.abs() >= least)
        one = found.tensors[name]
        for i, j in combinations(range(3), 2):
            product = large["abc"[i], name] * large["abc"[j], name]
            assert one.both_large[i, j] == int((product != 0).sum())
            assert one.opposite_large[i, j] == int((product < 0).sum())
    assert found.tensors[FLAT].changed.tolist()[1] == 0
    assert found.overall.changed_tensors[1] == len(tensors["base"]) - 1
    assert [one.tensors for one in found.layers["model.layers"]] == [9, 9, 9]


def test_parts_of_a_large_tensor_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.merger import measures

    tensors = [torch.randn(7, 11, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    whole = sums(tensors)
    monkeypatch.setattr(measures, "CHUNK", 10)
    parts = sums(tensors)
    np.testing.assert_allclose(parts.gram, whole.gram, rtol=1e-12)
    for name in ("changed", "both", "opposite", "both_large", "opposite_large"):
        assert np.array_equal(getattr(parts, name), getattr(whole, name)), name


def test_a_model_with_nan_is_named(tmp_path: Path) -> None:
    base = base_weights()
    write_checkpoint(tmp_path / "base", base)
    bad = expert_weights(base, 0)
    bad["model.norm.weight"][3] = torch.nan
    write_checkpoint(tmp_path / "bad", bad)
    with pytest.raises(CheckpointError, match=r"NaN or infinity in model.norm.weight of .*bad"):
        measure(dict(zip(["base", "bad"], opened(tmp_path, "base", "bad"), strict=True)))


def random_vectors(count: int, seed: int = 0, size: int = 4000) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=draw) for _ in range(count)]


def said(base: torch.Tensor, *deltas: torch.Tensor) -> str:
    names = tuple("abc"[: len(deltas)])
    found = Mergeability(names, {"x": sums([base, *(base + one for one in deltas)])})
    return " ".join(expectation(found))


def test_sentences_go_by_what_was_measured() -> None:
    base, one, two, three = random_vectors(4)
    one, two, three = one / 100, two / 100, three / 100
    assert "are nearly orthogonal (cosine" in said(base, one, two)
    assert "no more than chance" in said(base, one, two)
    assert "are much alike" in said(base, one + two / 2, one + three / 2)
    assert "expect their average to be safe" in said(base, one + two / 2, one + three / 2)
    assert "pull against each other" in said(base, one, two - one)
    assert "another takes back" in said(base, one, two - one)
    assert "overlap in part" in said(base, one + two, one + three * 2)
    apart = torch.arange(len(base)) % 2 == 0
    assert "seldom contradict" in said(base, one * apart, two * ~apart + one.abs() * one * apart)
    assert "b is the base itself: drop it." in said(base, one, two * 0)
    assert "a and b are the same model: drop one." in said(base, one, one)
    assert "With one expert" in said(base, one)
    assert "is it the right base?" in said(base, one * 150)
    assert "a barrier may lie between them" in said(base, one * 50)


def test_a_base_given_as_an_expert_is_asked_about() -> None:
    base, one, two = random_vectors(3)
    tuned, other = base + one / 50, base + two / 50
    found = Mergeability(("real", "other"), {"x": sums([tuned, base, other])})
    assert expectation(found)[0] == (
        "real lies nearer to the others than the base does: is it their base?"
    )
    right = Mergeability(("tuned", "other"), {"x": sums([base, tuned, other])})
    assert not any("their base?" in one for one in expectation(right))


def test_a_barrier_decides_where_lines_were_scored() -> None:
    base, one, two = random_vectors(3)
    found = Mergeability(("a", "b"), {"x": sums([base, base + one, base + two])})
    assert "there is no barrier" in expectation(found, [(("a", "b"), 0.02)])[-1]
    assert (
        "Between a and b the fitness falls 30 % below"
        in (expectation(found, [(("base", "a"), 0.0), (("a", "b"), 0.3)])[-1])
    )
