"""What counts as a public benchmark's own test items."""

import pytest

from evomerge.errors import DataError, Place
from evomerge.proxy_tasks._benchmarks import refuse_benchmark

PLACE = Place("study.yaml", DataError, "tasks.maths.data")


@pytest.mark.parametrize(
    ("dataset", "split"),
    [
        ("openai/gsm8k", "test"),
        ("gsm8k", "test[:100]"),
        ("someone/GSM8K", "train[:50%]+test"),
        ("cais/mmlu", "test"),
        ("TIGER-Lab/MMLU-Pro", "test"),
        ("EleutherAI/hendrycks_math", "test"),
        ("HuggingFaceH4/MATH-500", "test"),
        ("allenai/ai2_arc", "test"),
        ("allenai/openbookqa", "test"),
        ("Rowan/hellaswag", "validation"),
        ("allenai/winogrande", "validation[10:]"),
        ("ybisk/piqa", "validation"),
        ("google/boolq", "validation"),
        ("ucinlp/drop", "validation"),
        ("truthfulqa/truthful_qa", "validation"),
        ("openai/openai_humaneval", "test"),
        ("google-research-datasets/mbpp", "test"),
        ("google/IFEval", "train"),
        ("Idavidrein/gpqa", "train"),
        ("lukaemon/bbh", "test"),
        ("TAUR-Lab/MuSR", "murder_mysteries"),
        ("HuggingFaceH4/mt_bench_prompts", "train"),
        ("tatsu-lab/alpaca_eval", "eval"),
        ("nyu-mll/glue", "validation_matched"),
        ("openai/gsm8k", "all"),
        ("hails/mmlu_no_train", "test"),
        ("CohereLabs/Global-MMLU", "test"),
        ("haonan-li/cmmlu", "test"),
        ("edinburgh-dawg/mmlu-redux-2.0", "test"),
        ("DigitalLearningGmbH/MATH-lighteval", "test"),
        ("lighteval/MATH-Hard", "test"),
        ("madrylab/gsm8k-platinum", "test"),
        ("math-ai/aime24", "test"),
        ("EleutherAI/truthful_qa_mc", "validation"),
        ("GBaker/MedQA-USMLE-4-options", "test"),
        ("GBaker/MedQA-USMLE-4-options-hf", "test"),
        ("facebook/anli", "test_r1"),
    ],
)
def test_refused(dataset: str, split: str) -> None:
    with pytest.raises(DataError) as caught:
        refuse_benchmark(dataset, split, False, PLACE)
    found = str(caught.value)
    assert f"got the split {split!r} of {dataset} at tasks.maths.data in study.yaml" in found
    assert "results on this benchmark would no longer mean anything" in found
    refuse_benchmark(dataset, split, True, PLACE)


@pytest.mark.parametrize(
    ("dataset", "split"),
    [
        ("openai/gsm8k", "train"),
        ("openai/gsm8k", "train[:100]"),
        ("cais/mmlu", "auxiliary_train"),
        ("cais/mmlu", "validation"),  # no one's score
        ("DigitalLearningGmbH/MATH-lighteval", "train"),
        ("facebook/anli", "train_r3"),
        ("Rowan/hellaswag", "train"),
        ("allenai/ai2_arc", "validation"),
        ("google-research-datasets/mbpp", "train"),
        ("someone/gsm8k-like", "test"),
        ("someone/drops", "test"),
        ("someone/own", "validation"),
    ],
)
def test_not_refused(dataset: str, split: str) -> None:
    refuse_benchmark(dataset, split, False, PLACE)


def test_what_to_do() -> None:
    for dataset, instead in (("a/gsm8k", "use its train split"), ("a/gpqa", "items of your own")):
        with pytest.raises(DataError, match=f"{instead}, or set `contaminates: true` beside"):
            refuse_benchmark(dataset, "test", False, PLACE)
