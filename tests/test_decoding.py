"""Teacher forcing and greedy decoding against plain forward passes and transformers' generate."""

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from evomerge import batches, budgets, decoding
from evomerge.budgets import Budget
from evomerge.decoding import Forced, TokenSequence, greedy, teacher_force
from evomerge.errors import DataError
from evomerge.language_model import Ensemble, LanguageModel, Past
from evomerge.models import LiveModel, load_tokenizer
from tests.architectures import (
    CONFIGS,
    VOCABULARY,
    live,
    reference,
    save_random,
    tensors_of,
)

CPU = torch.device("cpu")


def ragged(count: int = 40, longest: int = 30, seed: int = 0) -> list[TokenSequence]:
    """Random sequences of 2 to `longest` tokens, some scored but for their first token."""
    generator = np.random.default_rng(seed)
    found = []
    for length in generator.integers(2, longest + 1, size=count):
        ids = tuple(generator.integers(0, VOCABULARY, size=length).tolist())
        found.append(TokenSequence(ids, int(generator.integers(1, length))))
    return found


def one_by_one(model: torch.nn.Module, sequence: TokenSequence) -> tuple[torch.Tensor, ...]:
    """Log-probability, margin and choice of the scored tokens by the book, without padding."""
    with torch.inference_mode():
        logits = model(torch.tensor([sequence.ids])).logits[0].double()
    rows = []
    first = len(sequence.ids) - sequence.scored
    for position, gold in enumerate(sequence.target, start=first):
        here = logits[position - 1]
        others = torch.cat([here[:gold], here[gold + 1 :]])
        rows.append((torch.log_softmax(here, 0)[gold], here[gold] - others.max(), here.argmax()))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def parts(forced: Forced, values: np.ndarray) -> list[np.ndarray]:
    return np.split(values, forced.starts[1:-1])


@pytest.mark.parametrize("name", CONFIGS)
def test_forced_numbers_are_those_of_plain_forward_passes(name: str, tmp_path: Path) -> None:
    model, plain = live(save_random(tmp_path, name)), reference(tmp_path)
    sequences = ragged()
    forced = teacher_force(model, sequences)
    assert forced.starts.tolist() == np.cumsum([0, *(one.scored for one in sequences)]).tolist()
    for index, sequence in enumerate(sequences):
        log_probability, margin, choice = one_by_one(plain, sequence)
        mine = slice(*forced.starts[index : index + 2])
        assert forced.log_probability[mine] == pytest.approx(log_probability, abs=1e-5)
        assert forced.margin[mine] == pytest.approx(margin, abs=2e-5)
        assert forced.choice[mine].tolist() == choice.tolist()


def with_common_beginnings(header: int, prompt: int, options: int) -> list[TokenSequence]:
    """Nine items of several options: a header for all, a prompt for each item, then the option."""
    generator = np.random.default_rng(5)

    def draw(size: int) -> tuple[int, ...]:
        return tuple(generator.integers(0, VOCABULARY, size=size).tolist())

    opening, found = draw(header), []
    for _ in range(9):
        middle = draw(prompt + int(generator.integers(0, 4)))
        for _ in range(options):
            tail = draw(int(generator.integers(1, 5)))
            found.append(TokenSequence(opening + middle + tail, len(tail)))
    return found


class Spy:
    """A model that counts the tokens that it runs."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self.device, self.vocabulary, self.context = model.device, model.vocabulary, model.context
        self.step, self.keep, self.join, self.tokens = model.step, model.keep, model.join, 0
        self.pads = model.pads

    def logits(self, ids: torch.Tensor, keep: int, past: Past | None = None) -> torch.Tensor:
        self.tokens += ids.numel()
        return self._model.logits(ids, keep, past)

    def remember(self, ids: torch.Tensor, past: Past | None = None) -> object:
        self.tokens += ids.numel()
        return self._model.remember(ids, past)


@pytest.mark.parametrize("name", [*CONFIGS, "ensemble"])
@pytest.mark.parametrize(
    ("header", "prompt", "options", "share"),
    [(25, 8, 1, 0.6), (0, 25, 4, 0.55), (20, 20, 4, 0.45), (12, 3, 3, 1.3)],
)
def test_what_sequences_share_is_run_once(
    name: str, header: int, prompt: int, options: int, share: float, tmp_path: Path
) -> None:
    seeds = (0, 1) if name == "ensemble" else (0,)
    kind = "llama" if name == "ensemble" else name
    folders = [save_random(tmp_path / str(seed), kind, seed) for seed in seeds]
    plain = [reference(folder) for folder in folders]
    model = Spy(Ensemble([live(one) for one in folders]) if len(seeds) > 1 else live(folders[0]))
    sequences = with_common_beginnings(header, prompt, options)
    forced = teacher_force(model, sequences)
    assert all(len(one.ids) < 60 for one in sequences)
    if name != "mamba":  # which has no state to go on from
        assert model.tokens < share * sum(len(one.ids) for one in sequences)
    for index, one in enumerate(sequences):
        with torch.inference_mode():
            each = [
                other(torch.tensor([one.ids])).logits[0].double().softmax(-1) for other in plain
            ]
        logs = torch.stack(each).mean(0).log()
        first = len(one.ids) - one.scored
        expected = [float(logs[place - 1, one.ids[place]]) for place in range(first, len(one.ids))]
        mine = slice(*forced.starts[index : index + 2])
        assert forced.log_probability[mine] == pytest.approx(expected, abs=3e-5)


def test_groups_with_beginnings_of_their_own(tmp_path: Path) -> None:
    model, plain = Spy(live(save_random(tmp_path, "llama"))), reference(tmp_path)
    draw = np.random.default_rng(2)
    system, *shots = (tuple(draw.integers(0, VOCABULARY, size=20).tolist()) for _ in range(3))
    sequences = []
    for number in range(60):  # the system prompt for all, shots for half of them each
        tail = tuple(draw.integers(0, VOCABULARY, size=3 + number % 4).tolist())
        sequences.append(TokenSequence(system + shots[number % 2] + tail, 2))
    forced = teacher_force(model, sequences)
    assert model.tokens < 20 + 2 * 20 + 60 * 6 + 60  # of padding
    for index, one in enumerate(sequences):
        mine = slice(*forced.starts[index : index + 2])
        assert forced.margin[mine] == pytest.approx(one_by_one(plain, one)[1], abs=3e-5)


def test_the_same_items_are_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batches.kept_plan.cache_clear()
    planned = []
    tree = batches.tree
    monkeypatch.setattr(batches, "tree", lambda *given: planned.append(1) or tree(*given))
    for _ in range(3):
        teacher_force(Counting(vocabulary=VOCABULARY), ragged(20))
    assert len(planned) == 1
    teacher_force(Counting(vocabulary=VOCABULARY), ragged(20)[1:])
    assert len(planned) == 2


def test_sums_and_least_margins() -> None:
    forced = Forced(
        np.array([0, 2, 3]),
        np.array([5, 9, 7]),
        np.array([-1, -2, -4], np.float32),
        np.array([3, -1, 2], np.float32),
        np.array([5, 6, 7]),
    )
    assert forced.least_margin().tolist() == [-1, 2]
    assert forced.total(forced.log_probability).tolist() == [-3, -4]
    assert forced.total(forced.margin > 0).tolist() == [1, 1]
    assert forced.agreed().tolist() == [1, 1]
    first, none, second = forced.parts([1, 0, 1])
    assert (first.starts.tolist(), first.choice.tolist()) == ([0, 2], [5, 6])
    assert (second.starts.tolist(), second.choice.tolist()) == ([0, 1], [7])
    assert second.least_margin().tolist() == [2]
    assert none.agreed().tolist() == none.total(none.margin).tolist() == []


def test_nothing_to_score() -> None:
    forced = teacher_force(Counting(), [])
    assert forced.starts.tolist() == [0]
    assert forced.least_margin().tolist() == []


def test_the_same_call_gives_the_same_bits(tmp_path: Path) -> None:
    model = live(save_random(tmp_path, "llama"))
    sequences = ragged(200)
    first, second = teacher_force(model, sequences), teacher_force(model, sequences)
    for name in ("log_probability", "margin", "choice"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()


_SCRIPT = """
import sys
from pathlib import Path
from evomerge.decoding import teacher_force
from tests.architectures import live
from tests.test_decoding import digest, ragged
print(digest(teacher_force(live(Path(sys.argv[1])), ragged(200))))
"""


def digest(forced: Forced) -> str:
    return hashlib.sha256(forced.margin.tobytes() + forced.log_probability.tobytes()).hexdigest()


def test_every_process_gives_the_same_bits(tmp_path: Path) -> None:
    model = live(save_random(tmp_path, "llama"))
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path)]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(teacher_force(model, ragged(200)))


@pytest.mark.parametrize("name", CONFIGS)
def test_neither_order_nor_company_nor_batches_matter(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = live(save_random(tmp_path, name))
    sequences = ragged(60)
    forced = teacher_force(model, sequences)
    expected = parts(forced, forced.margin)

    def check(indices: Sequence[int]) -> None:
        again = teacher_force(model, [sequences[index] for index in indices])
        for index, margins in zip(indices, parts(again, again.margin), strict=True):
            assert margins == pytest.approx(expected[index], abs=1e-5)

    check(np.random.default_rng(1).permutation(60).tolist())
    check([7, 7, 3])
    check([59])
    for tokens in (1, 64, 10**6):
        monkeypatch.setattr(budgets, "_CPU", Budget(tokens, worth=tokens, held=tokens))
        check(range(60))


def test_chunks_of_logits_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = live(save_random(tmp_path, "llama"))
    sequences = ragged()
    whole = teacher_force(model, sequences)
    monkeypatch.setattr(decoding, "_CHUNK", 3 * VOCABULARY)
    chunked = teacher_force(model, sequences)
    assert chunked.margin.tobytes() == whole.margin.tobytes()
    assert chunked.log_probability.tobytes() == whole.log_probability.tobytes()


@dataclass
class Counting:
    """A model of a large vocabulary that counts what it is asked for; every logit is 0 but one."""

    device: torch.device = CPU
    vocabulary: int = 150_000
    context: int | None = None
    asked: list[int] = field(default_factory=list)

    def logits(self, ids: torch.Tensor, keep: int, past: Past | None = None) -> torch.Tensor:
        self.asked.append(len(ids) * keep * self.vocabulary)
        found = torch.zeros((1, 1, 1), dtype=torch.bfloat16).expand(len(ids), keep, self.vocabulary)
        return found.clone() if self.vocabulary < 100 else found

    def remember(self, ids: torch.Tensor, past: Past | None = None) -> object:
        return None

    def join(self, parts: Sequence[Past], lengths: Sequence[int]) -> object:
        raise NotImplementedError

    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: object
    ) -> tuple[torch.Tensor, object]:
        raise NotImplementedError

    def keep(self, cache: object, rows: torch.Tensor) -> object:
        raise NotImplementedError

    def pads(self) -> bool:
        return True


def test_a_large_vocabulary_is_taken_in_small_batches() -> None:
    model: LanguageModel = Counting()
    teacher_force(
        model, [TokenSequence((0,) * number + (1,) * (40 - number), 39) for number in range(23)]
    )
    assert isinstance(model, Counting)
    rows = [asked // (39 * 150_000) for asked in model.asked]
    assert rows == [11, 11, 1]  # 12 would be 512 tokens too, but more than 2^26 logits


def test_a_step_has_no_more_rows_than_its_logits_have_room() -> None:
    model, rows = Counting(), []

    def step(ids: torch.Tensor, mask: torch.Tensor, cache: object) -> tuple[torch.Tensor, object]:
        rows.append(len(ids))
        return torch.zeros((1, 1)).expand(len(ids), model.vocabulary), None

    model.step = step  # type: ignore[method-assign]
    greedy(model, [(1,)] * 1000, [1] * 1000, lambda _, tokens: False)
    assert rows == [447, 447, 106]  # 2^26 logits are 447 rows of 150,000


def test_logits_of_a_large_vocabulary_are_made_for_scored_positions_alone(tmp_path: Path) -> None:
    model = live(save_random(tmp_path, "llama", vocabulary=128_000))
    made: list[int] = []
    head = model.module.get_submodule("lm_head")
    head.register_forward_hook(lambda *given: made.append(given[-1].nbytes))
    opening = tuple(range(40))
    forced = teacher_force(model, [TokenSequence((*opening, 50 + row, 7), 2) for row in range(20)])
    assert len(forced.margin) == 40
    assert sum(made) == (20 * 2 + 1) * 128_000 * 4  # and one for what all begin with
    made.clear()
    greedy(model, [(*opening, 50 + row) for row in range(20)], [3] * 20, lambda _, tokens: False)
    assert made == [128_000 * 4] * 1 + [20 * 128_000 * 4] * 3


def test_sequences_that_differ_in_their_last_token_are_run_once() -> None:
    model = Counting(vocabulary=50)
    sequences = [
        TokenSequence((3, 9, 9, last), scored) for last, scored in ((1, 1), (2, 3), (4, 2))
    ]
    forced = teacher_force(model, [*sequences, TokenSequence((3, 9, 8, 1), 1)])
    assert model.asked == [2 * 3 * 50]
    assert forced.starts.tolist() == [0, 1, 4, 6, 7]


def like_memory(limit: int, problem: Exception) -> tuple[Counting, list[int]]:
    """A model that raises where a batch has more tokens than `limit`, and the sizes asked."""
    model, asked = Counting(vocabulary=VOCABULARY), []
    run = model.logits

    def logits(ids: torch.Tensor, keep: int, past: Past | None = None) -> torch.Tensor:
        asked.append(ids.numel())
        if ids.numel() > limit:
            raise problem
        return run(ids, keep, past)

    model.logits = logits  # type: ignore[method-assign]
    return model, asked


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_batches_are_halved_until_they_find_memory(
    problem: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "_halvings", {})
    sequences = ragged(60)
    model, asked = like_memory(150, problem)
    found = teacher_force(model, sequences)
    failed = [place for place, size in enumerate(asked) if size > 150]
    assert len(failed) == 2  # of at most 512 tokens and of 256
    calls = len(asked) - failed[-1] - 1
    teacher_force(model, sequences)  # which knows
    assert len(asked) == failed[-1] + 1 + 2 * calls
    assert budgets._halvings == {CPU: 2}
    monkeypatch.setattr(budgets, "_halvings", {})
    free = teacher_force(Counting(vocabulary=VOCABULARY), sequences)
    assert found.margin.tobytes() == free.margin.tobytes()
    assert found.starts.tolist() == free.starts.tolist()


def test_one_item_that_finds_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "_halvings", {})
    model, _ = like_memory(0, torch.OutOfMemoryError("out of memory"))
    with pytest.raises(DataError, match="memory on cpu for one item at a time, got too little"):
        teacher_force(model, ragged(4))


def test_another_error_of_the_model_is_not_one_of_memory() -> None:
    model, asked = like_memory(0, RuntimeError("expected scalar type Float"))
    with pytest.raises(RuntimeError, match="scalar type"):
        teacher_force(model, ragged(4))
    assert len(asked) == 1


@pytest.mark.parametrize("name", [*CONFIGS, "ensemble"])
def test_prompts_with_a_common_beginning_continue_as_alone(name: str, tmp_path: Path) -> None:
    kind = "llama" if name == "ensemble" else name
    folders = [save_random(tmp_path / str(seed), kind, seed) for seed in range(2)]
    model: LanguageModel = live(folders[0])
    if name == "ensemble":
        model = Ensemble([model, live(folders[1])])
    prompts = [one.ids[:-1] for one in with_common_beginnings(24, 3, 2)]
    most = [3 + index % 9 for index in range(len(prompts))]  # so that rows leave the batch
    spy, widths = Spy(model), []

    def step(ids: torch.Tensor, mask: torch.Tensor, cache: object) -> tuple[torch.Tensor, object]:
        widths.append(ids.shape[1])
        return model.step(ids, mask, cache)

    spy.step = step
    together = greedy(spy, prompts, most, lambda _, tokens: False)
    alone = [
        greedy(model, [prompt], [count], lambda _, tokens: False)[0]
        for prompt, count in zip(prompts, most, strict=True)
    ]
    assert together == alone
    assert (widths[0] < 24) != (name == "mamba")  # which has no state


def test_rows_that_have_ended_leave_the_batch(tmp_path: Path) -> None:
    model = live(save_random(tmp_path, "llama"))
    spy, rows = Spy(model), []

    def step(ids: torch.Tensor, mask: torch.Tensor, cache: object) -> tuple[torch.Tensor, object]:
        rows.append(len(ids))
        return model.step(ids, mask, cache)

    spy.step = step
    greedy(spy, [(5, 9, 2)] * 8, [1, 1, 2, 3, 4, 4, 6, 6], lambda _, tokens: False)
    assert rows == [8, 6, 6, 4, 2, 2]


def test_a_tie_goes_to_the_lower_token_as_argmax_has_it() -> None:
    forced = teacher_force(Counting(vocabulary=50), [TokenSequence((3, 0, 9), 2)])
    assert forced.choice.tolist() == [0, 0]
    assert forced.margin.tolist() == [0, 0]
    assert forced.log_probability == pytest.approx([-np.log(50)] * 2)


@dataclass
class Broken(Counting):
    """A model whose logits are not numbers."""

    def logits(self, ids: torch.Tensor, keep: int, past: Past | None = None) -> torch.Tensor:
        return torch.full((len(ids), keep, self.vocabulary), float("nan"))


def test_nan_stays_nan() -> None:
    forced = teacher_force(Broken(vocabulary=50), [TokenSequence((3, 0, 9), 2)])
    assert np.isnan(forced.margin).all()
    assert np.isnan(forced.log_probability).all()


def test_too_long_for_the_context() -> None:
    with pytest.raises(
        DataError, match="at most 64 tokens, the context of the models, got one of 65"
    ):
        teacher_force(Counting(context=64), [TokenSequence((1,) * 65, 1)])
    with pytest.raises(DataError, match="got one of 65"):
        greedy(Counting(context=64), [(1,) * 64], [5], lambda _, tokens: False)


def test_a_token_beyond_the_vocabulary() -> None:
    with pytest.raises(
        DataError, match="among the 50 of the model, got token 50; the base model's"
    ):
        teacher_force(Counting(vocabulary=50), [TokenSequence((1, 50, 2), 1)])


def generated(
    model: torch.nn.Module, prompt: tuple[int, ...], most: int, eos: int | None
) -> list[int]:
    ids = torch.tensor([prompt])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=eos,
        pad_token_id=0,
        use_cache=False,
    )
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_is_generate(name: str, tmp_path: Path) -> None:
    model, plain = live(save_random(tmp_path, name)), reference(tmp_path)
    prompts = [one.ids for one in ragged(25, longest=20, seed=3)]
    most = [1 + index % 12 for index in range(25)]
    free = greedy(model, prompts, most, lambda _, tokens: False)
    expected = [generated(plain, *one, None) for one in zip(prompts, most, strict=True)]
    assert free == expected
    tokens, counts = np.unique(np.concatenate(free), return_counts=True)
    end = int(tokens[counts.argmax()])
    ended = greedy(model, prompts, most, lambda _, tokens: tokens[-1] == end)
    assert ended == [generated(plain, *one, end) for one in zip(prompts, most, strict=True)]
    assert sum(map(len, ended)) < sum(map(len, free))


@pytest.mark.parametrize(
    "config",
    [
        transformers.MptConfig(vocab_size=VOCABULARY, d_model=32, n_heads=4, n_layers=2),
        transformers.GPTNeoConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_heads=4, num_layers=2, window_size=6,
            attention_types=[[["global", "local"], 1]], bos_token_id=None, eos_token_id=None,
        ),
    ],
)  # fmt: skip
def test_attention_that_counts_places_sees_no_padding_among_tokens(
    config: transformers.PreTrainedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.initializer_range = 0.4
    monkeypatch.setitem(CONFIGS, "by places", config)
    model = live(save_random(tmp_path, "by places"))
    plain = reference(tmp_path)
    prompts = [(1, *one.ids) for one in ragged(12, longest=20, seed=3)]
    found = greedy(model, prompts, [8] * 12, lambda _, tokens: False)
    assert found == [generated(plain, prompt, 8, None) for prompt in prompts]


@pytest.mark.parametrize(
    "config",
    [
        transformers.BartConfig(  # counts positions with what pads
            vocab_size=VOCABULARY, d_model=32, decoder_layers=2, decoder_attention_heads=4,
            decoder_ffn_dim=48, max_position_embeddings=64, is_decoder=True,
            is_encoder_decoder=False, init_std=0.4, pad_token_id=None, bos_token_id=None,
            eos_token_id=None, decoder_start_token_id=None, forced_eos_token_id=None,
        ),
        transformers.RwkvConfig(  # has a state that padding changes
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, bos_token_id=None,
            eos_token_id=None,
        ),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_padded_go_beside_those_as_long(
    config: transformers.PreTrainedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "no padding", config)
    model = live(save_random(tmp_path, "no padding"))
    plain = reference(tmp_path)
    assert not model.pads()
    prompts = [(1, *one.ids) for one in ragged(30, longest=9, seed=3)]
    expected = [generated(plain, prompt, 8, None) for prompt in prompts]
    both = greedy(Ensemble([model, model]), prompts, [8] * 30, lambda _, tokens: False)
    assert greedy(model, prompts, [8] * 30, lambda _, tokens: False) == expected == both


@pytest.mark.parametrize(
    "config",
    [
        transformers.RobertaConfig(  # whose first position is that after padding's
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=48, max_position_embeddings=64, initializer_range=0.4, pad_token_id=1,
            is_decoder=True,
        ),
        transformers.ModernBertDecoderConfig(  # with a bias of its tied head
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=48, max_position_embeddings=64, initializer_range=0.4, pad_token_id=0,
            cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2,
        ),
    ],
)  # fmt: skip
def test_greedy_is_what_plain_forward_passes_say(
    config: transformers.PreTrainedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "plain", config)
    model = live(save_random(tmp_path, "plain"))
    plain = reference(tmp_path)
    prompts = [tuple(token + 2 for token in one.ids) for one in ragged(12, longest=9, seed=3)]
    prompts = [tuple(min(token, VOCABULARY - 1) for token in prompt) for prompt in prompts]
    for prompt, found in zip(
        prompts, greedy(model, prompts, [6] * 12, lambda _, tokens: False), strict=True
    ):
        ids = list(prompt)
        for _ in range(6):
            with torch.inference_mode():
                ids.append(int(plain(torch.tensor([ids])).logits[0, -1].argmax()))
        assert found == ids[len(prompt) :]


def test_whether_padding_matters_is_asked_of_weights_with_sense(tmp_path: Path) -> None:
    tensors = tensors_of(save_random(tmp_path, "llama"))
    norm = tensors["model.norm.weight"]
    kept, model = norm.clone(), LiveModel(tmp_path, tensors, CPU)
    norm.fill_(math.nan)
    assert not model.pads()
    norm.copy_(kept)
    assert model.pads()


def test_what_some_prompts_begin_with_is_read_once(tmp_path: Path) -> None:
    model = Spy(live(save_random(tmp_path, "llama")))
    prompts = [(*[kind] * 18, 50, *range(20, 22 + row % 3)) for row in range(24) for kind in (3, 7)]
    found = greedy(model, prompts, [5] * 48, lambda _, tokens: False)
    assert model.tokens < 2 * 19 + 48 * 4  # 19 for each kind, and no more than 3 and padding
    for row in (0, 1, 47):
        assert greedy(model, [prompts[row]], [5], lambda _, tokens: False)[0] == found[row]


def test_greedy_stops_at_the_end_of_the_context(tmp_path: Path) -> None:
    model = live(save_random(tmp_path, "gpt2"))
    found = greedy(model, [(1,) * 60, (1,) * 3], [10, 10], lambda _, tokens: False)
    assert list(map(len, found)) == [4, 10]
    assert greedy(model, [], [], lambda _, tokens: False) == []


def test_greedy_of_an_ensemble_is_its_most_probable_token(tmp_path: Path) -> None:
    folders = [save_random(tmp_path / str(seed), "llama", seed) for seed in range(2)]
    ensemble = Ensemble([live(folder) for folder in folders])
    plain = [reference(folder) for folder in folders]
    prompts = [one.ids for one in ragged(6, longest=9)]
    for prompt, found in zip(
        prompts, greedy(ensemble, prompts, [5] * 6, lambda _, tokens: False), strict=True
    ):
        ids = list(prompt)
        for _ in range(5):
            with torch.inference_mode():
                each = [one(torch.tensor([ids])).logits[0, -1].softmax(0) for one in plain]
            ids.append(int((each[0] + each[1]).argmax()))
        assert found == ids[len(prompt) :]


@pytest.mark.parametrize("expert", ["sort", "reverse", "caesar"])
def test_margins_above_zero_are_right_answers(expert: str, trained_family: Path) -> None:
    """On trained models: all margins positive, if and only if greedy decoding gives the target."""
    model = live(trained_family / "experts" / expert)
    tokenizer = load_tokenizer(trained_family / "base")
    prompts, sequences = [], []
    lines = (trained_family / "tasks" / f"{expert}.jsonl").read_text().splitlines()[:300]
    for index, row in enumerate(map(json.loads, lines)):
        given = index % 6  # letters of the answer that the prompt holds, for weak models
        question, answer = row["question"] + row["answer"][:given], row["answer"][given:]
        ids = tuple(tokenizer(question)["input_ids"])
        target = (*tokenizer(answer)["input_ids"], tokenizer.eos_token_id)
        prompts.append(ids)
        sequences.append(TokenSequence(ids + target, len(target)))
    forced = teacher_force(model, sequences)
    right = forced.least_margin() > 0
    found = greedy(
        model, prompts, [7] * 300, lambda _, tokens: tokens[-1] == tokenizer.eos_token_id
    )
    assert right.tolist() == [
        tuple(tokens) == one.target for tokens, one in zip(found, sequences, strict=True)
    ]
    assert 0 < right.sum() < 300  # of both kinds, or the test shows nothing
    for one, tokens, choice in zip(sequences, found, parts(forced, forced.choice), strict=True):
        agree = int(np.argmin([*(choice == one.target), False]))
        assert tokens[: agree + 1] == choice[: agree + 1].tolist()
