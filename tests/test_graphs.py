"""Steps in frames, with a stand-in for a GPU's recordings, against the ordinary steps."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from evomerge import budgets, graphs
from evomerge.decoding import greedy
from evomerge.errors import DataError
from evomerge.language_model import Ensemble, LanguageModel
from evomerge.models import LiveModel
from tests.architectures import CONFIGS, VOCABULARY, live, save_random, tensors_of

SEEING_ALL = ("llama", "qwen2", "gpt2", "gpt_neox")
CPU = torch.device("cpu")
Run = Callable[[], object]


class Again:
    """Stands in for a recorder: what is recorded is run again, on the CPU, and counted."""

    replays: list[int]  # of each recording

    def __init__(self, device: torch.device) -> None:
        assert device == CPU

    def __call__(self, run: Run) -> Run:
        run()
        run()
        place = len(self.replays)
        self.replays.append(0)

        def replay() -> None:
            self.replays[place] += 1
            run()

        return replay


@pytest.fixture(autouse=True)
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(graphs, "Recorder", Again)
    monkeypatch.setattr(graphs, "_PLACES", 8)  # which generation outgrows
    monkeypatch.setattr(budgets, "_halvings", {})
    Again.replays = []
    return Again.replays


def framed(tensors: dict[str, torch.Tensor], folder: Path) -> LiveModel:
    model = LiveModel(folder, tensors, CPU)
    model._step_in_graphs()
    return model


def graphs_of(model: LiveModel) -> graphs.Graphs:
    assert model._graphs is not None
    return model._graphs


def prompts(count: int = 20) -> list[tuple[int, ...]]:
    generator = np.random.default_rng(3)
    lengths = generator.integers(2, 21, size=count)
    return [tuple(generator.integers(0, VOCABULARY, size=one).tolist()) for one in lengths]


PROMPTS = prompts()


def answers(model: LanguageModel, asked: Sequence[tuple[int, ...]] = PROMPTS) -> list[list[int]]:
    """Rows end one by one: at a length of their own, or at the token 7."""
    most = [2 + 2 * index for index in range(len(asked))]
    return greedy(model, asked, most, lambda _, tokens: tokens[-1] == 7)


@pytest.mark.parametrize("name", SEEING_ALL)
def test_tokens_are_those_of_ordinary_steps(name: str, tmp_path: Path, replays: list[int]) -> None:
    plain = live(save_random(tmp_path, name))
    model = framed(tensors_of(tmp_path), tmp_path)
    expected = answers(plain)
    assert len({len(one) for one in expected}) > 8
    assert answers(model) == expected
    # Each step is one of a frame, and a new frame does one more, in reverse.
    assert sum(replays) == max(map(len, expected)) + len(replays)
    sizes = list(graphs_of(model)._frames)
    assert len({rows for rows, _ in sizes}) > 4
    assert len({places for _, places in sizes}) > 2


def test_few_recordings_serve_all_candidates(tmp_path: Path, replays: list[int]) -> None:
    folders = [save_random(tmp_path / str(seed), "llama", seed) for seed in range(3)]
    expected = [answers(live(folder)) for folder in folders]
    tensors = tensors_of(folders[0])
    model = framed(tensors, folders[0])
    recorded = []
    for seed in (0, 1, 2, 0, 1, 2):
        for name, tensor in tensors_of(folders[seed]).items():
            tensors[name].copy_(tensor)
        assert answers(model) == expected[seed]
        recorded.append(len(replays))
    assert expected[0] != expected[1]
    assert recorded[0] < 15  # with memory that grows as it is needed
    assert recorded[2] < 20
    assert recorded[3:] == recorded[2:3] * 3


@pytest.mark.parametrize("name", ["bloom", "mamba", "gemma2"])
def test_attention_of_other_kinds_never_begins(
    name: str, tmp_path: Path, replays: list[int]
) -> None:
    model = framed(tensors_of(save_random(tmp_path, name)), tmp_path)
    assert answers(model) == answers(live(tmp_path))
    assert not replays


def begun(model: LiveModel, mask: torch.Tensor) -> tuple[torch.Tensor, object]:
    """Read all tokens but the last, and step: logits and the cache."""
    ids = (torch.arange(mask.numel()) % VOCABULARY).reshape(mask.shape)
    _, cache = model.step(ids[:, :-1], mask[:, :-1], None)
    return model.step(ids[:, -1:], mask, cache)


def test_alibi_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replays: list[int]
) -> None:
    config = transformers.FalconConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_attention_heads=4, num_hidden_layers=2,
        alibi=True, initializer_range=0.4, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    monkeypatch.setitem(CONFIGS, "alibi", config)
    model = framed(tensors_of(save_random(tmp_path, "alibi")), tmp_path)
    for _ in range(2):
        assert answers(model) == answers(live(tmp_path))
    assert not sum(replays)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2e-5), (torch.bfloat16, 0.5)])
def test_a_window_over_places_is_found_where_it_does_not_matter_yet(
    dtype: torch.dtype,
    rounding: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    replays: list[int],
) -> None:
    config = transformers.GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_heads=4, num_layers=2, window_size=6,
        attention_types=[[["global", "local"], 1]], initializer_range=0.4, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    monkeypatch.setitem(CONFIGS, "window", config)
    tensors = tensors_of(save_random(tmp_path, "window"))
    tensors = {name: one.to(dtype) for name, one in tensors.items()}
    model, plain = framed(tensors, tmp_path), LiveModel(tmp_path, tensors, CPU)
    whole = torch.ones((2, 7), dtype=torch.int64)
    padded = whole.clone()
    padded[:, :3] = 0  # of 8 places a window of 6 leaves out the first two, and of 7 the first
    for mask in (padded, whole):
        found, cache = begun(model, mask)
        torch.testing.assert_close(found, begun(plain, mask)[0], atol=rounding, rtol=0)
        del cache
    assert replays == [2]
    assert answers(model) == answers(plain)


def test_a_wrong_replay_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replays: list[int]
) -> None:
    model = framed(tensors_of(save_random(tmp_path, "llama")), tmp_path)
    expected = answers(live(tmp_path))

    class Stale(Again):
        """Gives what the recording gave, as one would that reads memory of its own."""

        def __call__(self, run: Run) -> Run:
            super().__call__(run)
            return lambda: None

    monkeypatch.setattr(graphs, "Recorder", Stale)
    assert answers(model) == expected
    assert answers(model) == expected
    assert len(replays) == 1
    assert not graphs_of(model)._frames


def test_where_recording_fails_steps_are_ordinary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = framed(tensors_of(save_random(tmp_path, "llama")), tmp_path)
    tried = []

    class Failing(Again):
        def __call__(self, run: Run) -> Run:
            tried.append(run())
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "Recorder", Failing)
    for _ in range(2):
        assert answers(model) == answers(live(tmp_path))
    assert len(tried) == 1


def test_without_memory_for_a_frame_steps_are_ordinary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = framed(tensors_of(save_random(tmp_path, "llama")), tmp_path)
    tried = []

    class Full(Again):
        def __call__(self, run: Run) -> Run:
            tried.append(run())
            try:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            finally:  # as the end of a recording that has failed does
                raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(graphs, "Recorder", Full)
    other = framed(tensors_of(tmp_path), tmp_path)
    graphs_of(other)._memory = SimpleNamespace()  # type: ignore[assignment]
    for _ in range(4):
        assert answers(model) == answers(live(tmp_path))
    assert len(tried) == 3
    assert graphs_of(other)._memory is None  # others leave theirs
    assert budgets._halvings == {}


def lacking(budget: budgets.Budget) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_what_is_kept_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replays: list[int]
) -> None:
    model = framed(tensors_of(save_random(tmp_path, "llama")), tmp_path)
    expected = answers(live(tmp_path))
    monkeypatch.setattr(graphs, "_FRAMES", 2)
    assert answers(model) == expected
    kept = graphs_of(model)
    assert len(kept._frames) == 2
    assert kept._memory is not None
    held = sum(room.numel() for room in kept._memory.rooms)
    assert held == kept._memory.tokens * 2 * 2 * 2 * 8  # layers, keys and values, heads, size
    assert kept._memory.tokens < 1024
    with pytest.raises(DataError):  # another model that lacks memory asks for all of it
        budgets.within_memory(CPU, lacking)
    assert kept._memory is None
    monkeypatch.setitem(budgets._halvings, CPU, 8)  # 128 tokens are held
    assert answers(model) == expected
    assert kept._memory is None or kept._memory.tokens <= 256
    for rows in (16, 32):
        _, cache = begun(model, torch.ones((rows, 9), dtype=torch.int64))
        assert isinstance(cache, graphs.Held) == (rows == 16)
        del cache


def test_what_was_used_last_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = framed(tensors_of(save_random(tmp_path, "llama")), tmp_path)
    monkeypatch.setattr(graphs, "_FRAMES", 2)
    for rows in (4, 2, 4, 3):
        begun(model, torch.ones((rows, 5), dtype=torch.int64))
    assert list(graphs_of(model)._frames) == [(4, 8), (3, 8)]


def test_no_size_is_much_larger_than_needed() -> None:
    sizes = [graphs._rounded(number) for number in range(1, 2000)]
    assert sizes[:13] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16]
    assert all(number <= size < 1.5 * number for number, size in enumerate(sizes, start=1))
    assert len(set(sizes)) == 22


def test_a_candidate_without_sense_leaves_nothing_behind(
    tmp_path: Path, replays: list[int]
) -> None:
    tensors = tensors_of(save_random(tmp_path, "llama"))
    model = framed(tensors, tmp_path)
    sound = tensors["model.layers.0.self_attn.v_proj.weight"].clone()
    tensors["model.layers.0.self_attn.v_proj.weight"].fill_(float("nan"))
    answers(model)
    assert not replays
    tensors["model.layers.0.self_attn.v_proj.weight"].copy_(sound)
    expected = answers(live(tmp_path))
    assert answers(model) == expected
    tensors["model.layers.0.self_attn.v_proj.weight"].fill_(float("nan"))
    answers(model)
    tensors["model.layers.0.self_attn.v_proj.weight"].copy_(sound)
    assert answers(model, PROMPTS[::-1]) == answers(live(tmp_path), PROMPTS[::-1])
    assert graphs_of(model)._frames


def test_parameters_that_were_moved_are_recorded_anew(tmp_path: Path, replays: list[int]) -> None:
    model = framed(tensors_of(save_random(tmp_path, "llama")), tmp_path)
    expected = answers(model)
    answers(model)
    recorded = len(replays)
    for one in model.module.parameters():
        one.data = one.data.clone()
    assert answers(model) == expected
    assert len(replays) > recorded + 5


def test_a_second_batch_at_once_is_run_as_ever(tmp_path: Path) -> None:
    model = framed(tensors_of(save_random(tmp_path, "llama")), tmp_path)
    plain = live(tmp_path)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (2, 3, 9), generator=generator)
    mask = torch.ones_like(ids[0])
    caches = [model.step(one[:, :5], mask[:, :5], None)[1] for one in ids]
    kinds, each = [], []
    for end in range(6, 10):
        for place, one in enumerate(ids):
            found, caches[place] = model.step(one[:, end - 1 : end], mask[:, :end], caches[place])
            expected, _ = plain.step(one[:, :end], mask[:, :end], None)
            each.append((found, expected))  # which later steps leave as it is
            kinds.append(isinstance(caches[place], graphs.Held))
    for found, expected in each:
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert kinds == [True, False] * 4


def test_members_of_an_ensemble_have_frames_of_their_own(
    tmp_path: Path, replays: list[int]
) -> None:
    folders = [save_random(tmp_path / str(seed), "llama", seed) for seed in range(2)]
    members = [framed(tensors_of(folder), folder) for folder in folders]
    expected = answers(Ensemble([live(folder) for folder in folders]))
    assert answers(Ensemble(members)) == expected
    assert sum(replays) == 2 * max(map(len, expected)) + len(replays)


@pytest.mark.parametrize("name", SEEING_ALL)
def test_rounding_of_sixteen_bits_is_no_difference(
    name: str, tmp_path: Path, replays: list[int]
) -> None:
    tensors = tensors_of(save_random(tmp_path, name))
    model = framed({key: one.bfloat16() for key, one in tensors.items()}, tmp_path)
    found = answers(model)
    assert sum(replays) == max(map(len, found)) + len(replays)


def test_models_on_one_gpu_have_frames(tmp_path: Path) -> None:
    def suits(devices: Sequence[str], module: str = "transformers.models.llama") -> bool:
        tensors = [SimpleNamespace(device=torch.device(one)) for one in devices]
        return graphs.suits(
            type("A", (), {"__module__": module, "parameters": lambda _: tensors})()
        )

    assert suits(["cuda:0", "cuda:0"])
    assert not suits(["cuda:0", "cuda:1"])
    assert not suits(["cuda:0", "cpu"])
    assert not suits(["cpu"])
    assert not suits(["cuda:0"], "transformers_modules.own.modeling")
    assert live(save_random(tmp_path, "llama"))._graphs is None
