"""Training of one tiny Llama on one thread: Muon and AdamW for a base, AdamW for an expert."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.zoo.tasks import TASKS, Part, draw_words
from evomerge.zoo.tokenizer import (
    ANSWER_LENGTH,
    EOS_ID,
    MAX_LENGTH,
    PAD_ID,
    PROMPT_LENGTH,
    VOCABULARY,
    encode,
)


@dataclass(frozen=True)
class Schedule:
    """Steps and peak learning rates; matrices get Muon where `muon` is set, all else AdamW."""

    steps: int
    adam: float
    muon: float | None = None
    batch: int = 128
    warmup: int = 5

    def factor(self, step: int) -> float:
        """Return the share of the peak rate at a step: a short ramp times half a cosine."""
        ramp = min(1.0, (step + 1) / self.warmup)
        return ramp * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is replaced by the nearest orthogonal one (Jordan et al., 2024).

    It learns the base in about a third of AdamW's steps.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalize(parameter.grad.lerp(momentum, group["momentum"]))
                # A tall matrix is scaled up, so that every output moves by about the same.
                scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                parameter.add_(update, alpha=-group["lr"] * scale)


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Bring all singular values near 1 by Muon's quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    wide: Tensor = matrix.T if tall else matrix
    wide = wide / (torch.linalg.vector_norm(wide) + 1e-7)
    for _ in range(iterations):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.T if tall else wide


def new_model(seed: int) -> LlamaForCausalLM:
    """Make a model of about 450 thousand parameters with weights drawn from the seed."""
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=len(VOCABULARY),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    # transformers draws from PyTorch's global generator, so lend it a seeded state. Seeding the
    # CPU's generator alone leaves those of other devices as they were.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM,
    mixture: Mapping[str, float],
    schedule: Schedule,
    seed: int,
    on_step: Callable[[int], None],
) -> None:
    """Train the model in place on a mixture of tasks (name to share), never on other parts."""
    generator = torch.Generator().manual_seed(seed)
    optimizers = _optimizers(model, schedule)
    for step in range(schedule.steps):
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule.factor(step)
        loss = answer_loss(model, draw_batch(mixture, schedule.batch, generator))
        torch.autograd.backward(loss)
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        on_step(step + 1)


def draw_batch(mixture: Mapping[str, float], count: int, generator: torch.Generator) -> Tensor:
    """Draw sequences of the training part, each of a task drawn by the mixture's shares."""
    names = list(mixture)
    shares = torch.tensor([mixture[name] for name in names])
    chosen = torch.multinomial(shares, count, replacement=True, generator=generator)
    counts = torch.bincount(chosen, minlength=len(names)).tolist()
    return torch.cat(
        [
            encode(TASKS[name], draw_words(n, Part.TRAIN, generator))
            for name, n in zip(names, counts, strict=True)
        ]
    )


def answer_loss(model: LlamaForCausalLM, sequences: Tensor) -> Tensor:
    """Cross entropy of the answers alone: the words themselves are random."""
    output = model(input_ids=sequences[:, :-1], use_cache=False, logits_to_keep=ANSWER_LENGTH)
    gold = sequences[:, PROMPT_LENGTH:]
    return nn.functional.cross_entropy(output.logits.flatten(0, 1), gold.flatten())


def _optimizers(
    model: LlamaForCausalLM, schedule: Schedule
) -> list[tuple[torch.optim.Optimizer, float]]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed_tokens" not in name
        (matrices if is_matrix and schedule.muon is not None else others).append(parameter)
    result: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0), schedule.adam)
    ]
    if schedule.muon is not None:
        result.append((Muon(matrices, schedule.muon), schedule.muon))
    return result
