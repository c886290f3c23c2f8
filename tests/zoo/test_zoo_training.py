import pytest
import torch

from evomerge.threads import one_thread
from evomerge.zoo import Schedule
from evomerge.zoo.family import stream
from evomerge.zoo.tasks import TASKS, Part, draw_words
from evomerge.zoo.tokenizer import encode
from evomerge.zoo.train import (
    answer_loss,
    draw_batch,
    new_model,
    orthogonalize,
    train,
)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestTraining:
    def test_loss_is_the_cross_entropy_of_the_answer_alone(self) -> None:
        model = new_model(0)
        batch = draw_batch({"reverse": 1.0}, 4, generator(8))
        logs = model(input_ids=batch).logits.double().log_softmax(-1)
        expected = -sum(
            logs[row, place - 1, batch[row, place]].item()
            for row in range(4)
            for place in range(8, 15)
        ) / (4 * 7)
        assert answer_loss(model, batch).item() == pytest.approx(expected, rel=1e-5)

    def test_learning_rate_ramps_up_then_falls_to_nothing(self) -> None:
        schedule = Schedule(steps=100, adam=1.0)
        factors = [schedule.factor(step) for step in range(100)]
        assert factors[0] == pytest.approx(0.2)
        assert max(factors) == factors[4] == pytest.approx(0.996, abs=1e-3)
        assert factors[50] == pytest.approx(0.5)
        assert 0 < factors[99] < 1e-3

    @pytest.mark.parametrize("shape", [(96, 96), (256, 96), (96, 256)])
    def test_orthogonalize_keeps_directions_and_levels_singular_values(
        self, shape: tuple[int, int]
    ) -> None:
        matrix = torch.randn(shape, generator=generator(9))
        result = orthogonalize(matrix)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        inside = left.T @ result @ right.T
        # The quintic maps a singular value of more than about 1 % of the norm into this range.
        assert 0.6 < inside.diagonal()[:80].min() < inside.diagonal().max() < 1.3
        assert (inside - inside.diagonal().diag()).abs().max() < 1e-3

    def test_a_short_training_learns_and_is_the_same_twice(self) -> None:
        held_out = encode(TASKS["caesar"], draw_words(256, Part.DEVELOPMENT, generator(10)))
        losses = []
        with one_thread():
            for _ in range(2):
                model = new_model(3)
                before = answer_loss(model, held_out).item()
                schedule = Schedule(steps=15, adam=4e-3, muon=2e-2, batch=16)
                train(model, {"caesar": 1.0}, schedule, 11, lambda _: None)
                losses.append(answer_loss(model, held_out).item())
        assert before > 3.4  # the logarithm of the vocabulary
        assert losses[0] < 3.0
        assert losses[0] == losses[1]

    def test_streams_differ_by_seed_and_use(self) -> None:
        uses = {stream(seed, use) for seed in range(10) for use in ("base", "sort", "sort items")}
        assert len(uses) == 30
        assert all(0 <= use < 2**63 for use in uses)
