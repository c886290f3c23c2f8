"""benchmarks/parity.py compares what it should: a few of its rows, and results that are apart."""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers

from evomerge.merge_methods import __path__ as methods

pytestmark = pytest.mark.filterwarnings("ignore")  # mergekit's own
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def parity() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        transformers.utils.logging.disable_progress_bar()
        yield importlib.import_module("parity")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


def row_of(parity: ModuleType, name: str, dtype: str = "float32") -> object:
    return next(row for row in parity.ROWS if (row.name, parity.dtype_of(row)) == (name, dtype))


def test_the_rows_have_every_method_and_form(parity: ModuleType) -> None:
    files = {path.stem for folder in methods for path in Path(folder).glob("[a-z]*.py")}
    assert {row.data["merge_method"] for row in parity.ROWS} == files
    text = json.dumps([row.data for row in parity.ROWS])
    for word in ("slices", "modules", "filter", "tokenizer_source", "+lora", "model_token", "zero"):
        assert f'"{word}' in text or word in text
    assert len({(row.name, parity.dtype_of(row)) for row in parity.ROWS}) == len(parity.ROWS) >= 60


@pytest.mark.parametrize(
    ("name", "dtype", "tensors", "verdict"),
    [
        ("gradients and filters", "float32", 36, "same"),
        ("slerp over two slices", "bfloat16", 48, "same"),
        ("an adapter", "float32", 29, "same"),
        ("arcee_fusion", "float32", 30, "same"),
        ("della", "float32", 21, "same"),
        ("rules for tokens", "float32", 30, "same"),
        ("linear, mixtral", "float32", 30, "same"),  # by the live model's names
        ("linear, llama", "float32", 30, "less"),  # without its biases
        ("linear, clip", "float32", 0, "refused"),
    ],
)
def test_rows(
    parity: ModuleType, root: Path, name: str, dtype: str, tensors: int, verdict: str
) -> None:
    found = parity.compare_row(row_of(parity, name, dtype), root)
    assert (found.verdict, found.tensors) == (verdict, tensors), found
    assert found.ulps <= (4 if dtype == "float32" else 1)
    assert found.relative <= (1e-6 if dtype == "float32" else 1e-2)


Change = Callable[[dict[str, torch.Tensor]], object]
NORM = "model.layers.1.input_layernorm.weight"
EMBED = "model.embed_tokens.weight"


def _moved(name: str, row: int, factor: float) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        flat = tensors[name].view(len(tensors[name]), -1)
        flat[row] = flat[row] * factor

    return change


def _other_density(tensors: dict[str, torch.Tensor]) -> None:
    for tensor in tensors.values():
        tensor.mul_(1.001)


@pytest.mark.parametrize(
    ("name", "dtype", "change", "worst"),
    [
        ("linear", "float32", _moved(NORM, 3, 1 + 2.0**-20), NORM),
        ("linear", "bfloat16", _moved(NORM, 3, 1 + 2.0**-5), NORM),
        ("repeated layers", "float32", _moved("model.layers.3.mlp.up_proj.weight", 0, 1.01), ""),
        ("rules for tokens", "float32", _moved(EMBED, 297, 1.001), EMBED),
        ("padded, with rules", "float32", _moved(EMBED, 299, 1.01), EMBED),
        ("linear, mixtral", "float32", _moved("model.norm.weight", 3, 1.001), "model.norm.weight"),
        ("dare_linear", "float32", _other_density, ""),
    ],
)
def test_what_is_apart_is_found(
    parity: ModuleType,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: str,
    change: Change,
    worst: str,
) -> None:
    real = parity.run_evomerge

    def wrong(data: dict[str, object], out: Path) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = real(data, out)
        change(tensors)
        from safetensors.torch import save_file

        for file in out.glob("*.safetensors"):
            file.unlink()
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        (out / "model.safetensors.index.json").unlink(missing_ok=True)
        return tensors

    monkeypatch.setattr(parity, "run_evomerge", wrong)
    found = parity.compare_row(row_of(parity, name, dtype), root)
    assert found.verdict == "apart", found
    assert worst in found.worst
    assert parity.conclude([(row_of(parity, name, dtype), found)], 0) == 1


def test_too_few_rows_are_a_failure(parity: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    good = parity.Result("same", 3, "x", 1e-8, 1.0)
    rows = [(row, good) for row in parity.ROWS[:3]]
    assert parity.conclude(rows, 3) == 0
    assert "3 recipes compared in full: 3 within the bounds, 0 not." in capsys.readouterr().out
    assert parity.conclude(rows, 4) == 1
