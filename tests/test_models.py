"""The live model: its parameters are the given tensors; the ensemble; tokenizers and devices."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomerge.devices import best_device
from evomerge.errors import CheckpointError
from evomerge.language_model import Ensemble
from evomerge.models import LiveModel, load_tokenizer
from evomerge.threads import use_threads
from tests.architectures import CONFIGS, VOCABULARY, live, reference, save_random, tensors_of

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 9, 2, 40, 7, 33, 12], [1, 1, 8, 60, 3, 21, 4]])


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model, other = live(save_random(tmp_path, name)), reference(tmp_path)
    with torch.inference_mode():
        expected = other(IDS).logits
    assert torch.equal(model.logits(IDS, 3), expected[:, -3:])
    assert torch.equal(model.logits(IDS, 7), expected)
    assert model.vocabulary == VOCABULARY
    assert model.context == (None if name in ("bloom", "mamba") else 64)


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_are_the_whole_sequence(name: str, tmp_path: Path) -> None:
    model = live(save_random(tmp_path, name))
    whole = model.logits(IDS, 7)
    mask = torch.ones_like(IDS)
    logits, cache = model.step(IDS[:, :4], mask[:, :4], None)
    torch.testing.assert_close(logits, whole[:, 3], atol=2e-5, rtol=0)
    for end in (5, 6, 7):
        logits, cache = model.step(IDS[:, end - 1 : end], mask[:, :end], cache)
        torch.testing.assert_close(logits, whole[:, end - 1], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_on_the_left_changes_nothing(name: str, tmp_path: Path) -> None:
    model = live(save_random(tmp_path, name))
    padded = torch.cat([torch.full((2, 3), 17), IDS], dim=1)
    mask = torch.cat([torch.zeros((2, 3), dtype=torch.int64), torch.ones_like(IDS)], dim=1)
    with_padding, _ = model.step(padded, mask, None)
    without, _ = model.step(IDS, torch.ones_like(IDS), None)
    torch.testing.assert_close(with_padding, without, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_is_the_model_itself(name: str, tmp_path: Path) -> None:
    tensors = tensors_of(save_random(tmp_path, name))
    model = LiveModel(tmp_path, tensors, CPU)
    assert spans(model._model.parameters()) == spans(tensors.values())
    before = model.logits(IDS, 7).clone()
    others = tensors_of(save_random(tmp_path / "other", name, seed=1))
    for key, tensor in tensors.items():
        tensor.copy_(others[key])
    assert not torch.equal(model.logits(IDS, 7), before)
    assert torch.equal(model.logits(IDS, 7), live(tmp_path / "other").logits(IDS, 7))


def spans(tensors: Iterable[torch.Tensor]) -> list[tuple[int, int]]:
    """From which byte of memory to which tensors lie, neighbours as one."""
    found: list[tuple[int, int]] = []
    for begin, size in sorted({(one.data_ptr(), one.nbytes) for one in tensors}):
        joined = found.pop() if found and found[-1][1] == begin else (begin, begin)
        found.append((joined[0], begin + size))
    return found


@pytest.mark.parametrize("kind", ["qwen2", "mixtral"])
def test_writing_into_one_tensor_changes_the_logits(kind: str, tmp_path: Path) -> None:
    tensors = tensors_of(save_random(tmp_path, kind))
    model = LiveModel(tmp_path, tensors, CPU)
    for name, tensor in tensors.items():
        before, kept = model.logits(IDS, 7).clone(), tensor.clone()
        tensor.add_(torch.linspace(-1, 1, tensor.numel()).view(tensor.shape))
        assert not torch.equal(model.logits(IDS, 7), before), name
        tensor.copy_(kept)
        assert torch.equal(model.logits(IDS, 7), before), name


def test_tied_weights_move_together(tmp_path: Path) -> None:
    tensors = tensors_of(save_random(tmp_path, "llama"))
    assert "lm_head.weight" not in tensors
    model = LiveModel(tmp_path, tensors, CPU)
    embedding = tensors["model.embed_tokens.weight"]
    assert model._model.lm_head.weight.data_ptr() == embedding.data_ptr()
    absent = 50  # a token that the input does not hold: only the head can show the change
    before = model.logits(IDS, 7).clone()
    embedding[absent] += 1.0
    after = model.logits(IDS, 7)
    rest = [token for token in range(VOCABULARY) if token != absent]
    assert torch.equal(after[..., rest], before[..., rest])
    assert (after[..., absent] != before[..., absent]).all()


def test_a_headless_checkpoint_names_its_tensors_without_the_prefix(tmp_path: Path) -> None:
    save_random(tmp_path, "gpt2")
    file = tmp_path / "model.safetensors"
    short = {name.removeprefix("transformer."): one for name, one in load_file(file).items()}
    save_file(short, file, metadata={"format": "pt"})
    tensors = tensors_of(tmp_path)
    assert "wte.weight" in tensors
    model = LiveModel(tmp_path, tensors, CPU)
    before = model.logits(IDS, 7).clone()
    tensors["h.1.mlp.c_fc.weight"].mul_(2)
    assert not torch.equal(model.logits(IDS, 7), before)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
def test_bfloat16(name: str, tmp_path: Path) -> None:
    save_random(tmp_path, name)
    file = tmp_path / "model.safetensors"
    small = {name: one.to(torch.bfloat16) for name, one in load_file(file).items()}
    save_file(small, file, metadata={"format": "pt"})
    tensors = tensors_of(tmp_path)
    model = LiveModel(tmp_path, tensors, CPU)
    with torch.inference_mode():
        expected = reference(tmp_path, "bfloat16")(IDS).logits[:, -2:]
    assert torch.equal(model.logits(IDS, 2), expected)
    assert {one.data_ptr() for one in model._model.parameters()} == {
        one.data_ptr() for one in tensors.values()
    }


def test_a_run_leaves_the_tensors_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RWKV divides its weights for the sake of float16, and never again."""
    config = transformers.RwkvConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=4, rescale_every=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    monkeypatch.setitem(CONFIGS, "rwkv", config)
    tensors = tensors_of(save_random(tmp_path, "rwkv"))
    before = {name: one.clone() for name, one in tensors.items()}
    found = LiveModel(tmp_path, tensors, CPU).logits(IDS, 7)
    assert all(torch.equal(one, before[name]) for name, one in tensors.items())
    plain = reference(tmp_path)
    plain.config.rescale_every = 0
    with torch.inference_mode():
        torch.testing.assert_close(found, plain(IDS).logits, atol=2e-5, rtol=0)


def test_a_checkpoint_that_lacks_a_parameter(tmp_path: Path) -> None:
    tensors = tensors_of(save_random(tmp_path, "qwen2"))
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(
        CheckpointError, match=r"got none for model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        LiveModel(tmp_path, tensors, CPU)


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    tensors = tensors_of(save_random(tmp_path, "qwen2"))
    tensors["model.norm.weight"] = torch.ones(31)
    with pytest.raises(CheckpointError, match="can be merged but not scored in memory"):
        LiveModel(tmp_path, tensors, CPU)


def test_dtypes_that_the_model_cannot_mix(tmp_path: Path) -> None:
    tensors = tensors_of(save_random(tmp_path, "llama"))
    mixed = {
        name: one if "norm" in name else one.to(torch.bfloat16) for name, one in tensors.items()
    }
    with pytest.raises(CheckpointError, match=r"LlamaForCausalLM can run, got RuntimeError"):
        LiveModel(tmp_path, mixed, CPU)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["LamaForCausalLM"]}, r"got LamaForCausalLM in .*config\.json"),
        ({"architectures": []}, r"got none in .*config\.json"),
        ({"architectures": ["LlamaModel"]}, "a model that LlamaModel can run"),
        ({"model_type": "lama"}, r"a configuration that transformers knows, got ValueError"),
    ],
)
def test_unknown_architectures(change: dict[str, object], words: str, tmp_path: Path) -> None:
    tensors = tensors_of(save_random(tmp_path, "llama"))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=words) as caught:
        LiveModel(tmp_path, tensors, CPU)
    assert "\n" not in str(caught.value)


def test_the_ensemble_is_the_mean_of_probabilities(tmp_path: Path) -> None:
    members = [live(save_random(tmp_path / str(seed), "llama", seed)) for seed in range(3)]
    ensemble = Ensemble(members)
    softmax = [torch.softmax(one.logits(IDS, 7).double(), dim=-1) for one in members]
    mean = sum(softmax) / 3
    found = ensemble.logits(IDS, 7)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double().exp(), mean, atol=1e-6, rtol=1e-5)
    mask = torch.ones_like(IDS)
    _, cache = ensemble.step(IDS[:, :6], mask[:, :6], None)
    step, _ = ensemble.step(IDS[:, 6:], mask, cache)
    torch.testing.assert_close(step.double().exp(), mean[:, -1], atol=1e-5, rtol=1e-4)
    assert (ensemble.vocabulary, ensemble.context) == (VOCABULARY, 64)


def test_an_ensemble_of_one_has_that_model_s_probabilities(tmp_path: Path) -> None:
    model = live(save_random(tmp_path, "gpt2"))
    expected = torch.log_softmax(model.logits(IDS, 7), dim=-1)
    assert torch.equal(Ensemble([model]).logits(IDS, 7), expected)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    save_random(tmp_path, "llama")
    with pytest.raises(CheckpointError, match=r"expected a tokenizer in .*, got none of") as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_an_end(trained_family: Path, tmp_path: Path) -> None:
    for file in (trained_family / "base").glob("tokenizer*"):
        (tmp_path / file.name).write_text(file.read_text())
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({key: one for key, one in config.items() if key != "eos_token"}))
    with pytest.raises(CheckpointError, match="a tokenizer with an eos token, got none"):
        load_tokenizer(tmp_path)
    assert load_tokenizer(trained_family / "base").eos_token_id == 1


def test_devices() -> None:
    assert best_device("cpu") == CPU
    assert best_device(None).type in ("cpu", "cuda")
    for name, words in (
        ("gpu", "expected a device such as cpu, cuda or cuda:1, got 'gpu'; leave it out"),
        (
            "cuda:99",
            "expected a device of this machine, got 'cuda:99', which PyTorch cannot use here",
        ),
        ("", "expected a device such as cpu, cuda or cuda:1, got ''; leave it out"),
    ):
        with pytest.raises(CheckpointError, match=words) as caught:
            best_device(name)
        assert "\n" not in str(caught.value)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    use_threads(10**9)
    assert chosen == []
    use_threads(450_000)
    assert chosen == [1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    use_threads(450_000)
    assert chosen == [1]


def test_nothing_is_said_on_the_terminal(
    trained_family: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tensors = tensors_of(save_random(tmp_path, "qwen2"))
    capfd.readouterr()  # of saving
    LiveModel(tmp_path, tensors | {"model.unknown.weight": torch.ones(3)}, CPU).logits(IDS, 1)
    tokenizer = load_tokenizer(trained_family / "base")
    assert len(tokenizer("a" * 100)["input_ids"]) == 100 > tokenizer.model_max_length
    assert capfd.readouterr() == ("", "")
