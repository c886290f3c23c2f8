import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.errors import InputError
from evomerge.zoo import FAMILY, Family, Schedule, build_zoo
from evomerge.zoo.build import draw_items
from evomerge.zoo.tasks import (
    LETTERS,
    TASKS,
    WORD_LENGTH,
    Part,
    draw_distinct_words,
    draw_words,
    parts,
    question,
    spell,
)
from evomerge.zoo.tokenizer import EOS_ID, PAD_ID, VOCABULARY, build_tokenizer, encode
from evomerge.zoo.train import draw_batch

TINY = Family(
    shares=FAMILY.shares,
    base=Schedule(steps=2, adam=4e-3, muon=2e-2, batch=8),
    expert=Schedule(steps=1, adam=3e-4, batch=8),
    items=50,
)

# What the answers are, written once more in plain Python.
ANSWERS = {
    "sort": lambda word: "".join(sorted(word)),
    "reverse": lambda word: word[::-1],
    "caesar": lambda word: word.translate(str.maketrans(LETTERS, LETTERS[4:] + LETTERS[:4])),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def words_of(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[LETTERS.index(letter) for letter in text] for text in texts])


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("zoo") / "zoo"
    build_zoo(directory, family=TINY)
    return directory


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


class TestTasks:
    @pytest.mark.parametrize("name", TASKS)
    def test_answers_agree_with_plain_python(self, name: str) -> None:
        words = draw_words(500, Part.TRAIN, generator(1))
        assert spell(TASKS[name].answer(words)) == [ANSWERS[name](word) for word in spell(words)]

    def test_answers_of_one_word(self) -> None:
        word = words_of(["zebraz"])
        answers = {name: spell(task.answer(word))[0] for name, task in TASKS.items()}
        assert answers == {"sort": "aberzz", "reverse": "zarbez", "caesar": "difved"}

    def test_every_word_is_of_one_part_whose_share_is_its_buckets(self) -> None:
        words = torch.randint(len(LETTERS), (160_000, WORD_LENGTH), generator=generator(2))
        counts = torch.bincount(parts(words), minlength=3).tolist()
        assert counts[Part.POOL] == pytest.approx(10_000, rel=0.05)
        assert counts[Part.DEVELOPMENT] == pytest.approx(10_000, rel=0.05)
        assert sum(counts) == 160_000

    def test_parts_do_not_depend_on_the_batch(self) -> None:
        words = draw_words(300, Part.TRAIN, generator(3))
        assert parts(words[7:8]).item() == Part.TRAIN
        assert torch.equal(parts(words.flip(0)), parts(words).flip(0))

    @pytest.mark.parametrize("part", Part)
    def test_words_are_drawn_from_the_part_asked_for(self, part: Part) -> None:
        words = draw_words(1000, part, generator(4))
        assert words.shape == (1000, WORD_LENGTH)
        assert (parts(words) == part).all()
        assert words.min() == 0
        assert words.max() == len(LETTERS) - 1

    def test_distinct_words_are_distinct_and_a_longer_draw_starts_alike(self) -> None:
        words = draw_distinct_words(5000, Part.POOL, generator(5))
        assert len(set(spell(words))) == 5000
        assert torch.equal(draw_distinct_words(5000, Part.POOL, generator(5)), words)

    def test_training_batches_hold_no_word_of_the_data_files(self) -> None:
        batch = draw_batch({"sort": 1.0, "caesar": 3.0}, 4000, generator(6))
        words = batch[:, 1 : 1 + WORD_LENGTH] - VOCABULARY["a"]
        assert (parts(words) == Part.TRAIN).all()
        asked = (batch[:, 0] == VOCABULARY["[caesar]"]).float().mean().item()
        assert asked == pytest.approx(0.75, abs=0.03)
        assert not (batch[:, 0] == VOCABULARY["[reverse]"]).any()


class TestTokenizer:
    @pytest.mark.parametrize("name", TASKS)
    def test_prompt_and_answer_concatenate_to_a_training_sequence(self, name: str) -> None:
        tokenizer = build_tokenizer()
        words = draw_words(20, Part.POOL, generator(7))
        for word, row in zip(spell(words), encode(TASKS[name], words).tolist(), strict=True):
            prompt, answer = question(TASKS[name], word), ANSWERS[name](word)
            tokens = tokenizer(prompt)["input_ids"]
            tokens += tokenizer(answer, add_special_tokens=False)["input_ids"]
            assert [*tokens, tokenizer.eos_token_id] == row
            assert tokenizer(prompt + answer)["input_ids"] == tokens
            assert tokenizer.decode(tokens) == prompt + answer
            assert tokenizer.decode(row, skip_special_tokens=True) == prompt + answer

    def test_a_tag_is_one_token_and_the_unknown_is_one_a_character(self) -> None:
        tokenizer = build_tokenizer()
        tokens = tokenizer("[sort]a?=\n")["input_ids"]
        assert tokenizer.convert_ids_to_tokens(tokens) == ["[sort]", "a", "<unk>", "=", "<unk>"]
        assert len(tokenizer) == len(VOCABULARY) == 33

    def test_pads_on_the_left_so_that_batches_can_generate(self) -> None:
        batch = build_tokenizer()(["[sort]ab=", "[sort]b="], padding=True)
        assert batch["input_ids"][1][0] == PAD_ID
        assert batch["attention_mask"] == [[1, 1, 1, 1], [0, 1, 1, 1]]


class TestBuild:
    def test_same_seed_same_bytes_and_another_seed_other_ones(
        self, zoo: Path, tmp_path: Path
    ) -> None:
        build_zoo(tmp_path / "again", family=TINY)
        build_zoo(tmp_path / "other", family=TINY, seed=1)
        first, again, other = (contents(d) for d in (zoo, tmp_path / "again", tmp_path / "other"))
        assert again == first
        assert other.keys() == first.keys()
        weights_and_items = {f for f in first if f.endswith((".safetensors", ".jsonl"))}
        assert {file for file in first if first[file] != other[file]} == weights_and_items
        assert len(weights_and_items) == 7

    def test_leaves_random_state_and_threads_alone(self, tmp_path: Path) -> None:
        torch.manual_seed(5)
        state, threads = torch.get_rng_state(), torch.get_num_threads()
        build_zoo(tmp_path / "zoo", family=TINY)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_num_threads() == threads

    def test_models_load_and_hold_their_tied_weights_once(self, zoo: Path) -> None:
        base = AutoModelForCausalLM.from_pretrained(zoo / "base")
        expert = AutoModelForCausalLM.from_pretrained(zoo / "experts" / "sort")
        assert type(base).__name__ == "LlamaForCausalLM"
        assert base.lm_head.weight is base.model.embed_tokens.weight
        assert base.dtype == torch.float32
        assert sum(parameter.numel() for parameter in base.parameters()) == 446_400
        assert base.generation_config.eos_token_id == EOS_ID
        moved = [
            not torch.equal(a, b)
            for a, b in zip(base.parameters(), expert.parameters(), strict=True)
        ]
        assert all(moved)

    def test_loaded_tokenizer_is_the_one_trained_with(self, zoo: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(zoo / "experts" / "caesar")
        assert (
            tokenizer("[caesar]abc=")["input_ids"] == build_tokenizer()("[caesar]abc=")["input_ids"]
        )
        assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (EOS_ID, PAD_ID)

    def test_items_are_right_distinct_and_of_the_pool(self, zoo: Path) -> None:
        for name in TASKS:
            lines = (zoo / "tasks" / f"{name}.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            texts = [row["question"].removeprefix(f"[{name}]").removesuffix("=") for row in rows]
            assert [row["answer"] for row in rows] == [ANSWERS[name](text) for text in texts]
            assert len(set(texts)) == len(rows) == 50
            assert (parts(words_of(texts)) == Part.POOL).all()

    def test_shipped_family_has_items_for_every_split(self) -> None:
        rows = draw_items(TASKS["sort"], FAMILY.items, Part.POOL, 0)
        assert len({row["question"] for row in rows}) == FAMILY.items >= 2048

    def test_study_names_what_was_written(self, zoo: Path) -> None:
        study = yaml.safe_load((zoo / "study.yaml").read_text())
        assert study["models"] == {
            "base": "base",
            "experts": {name: f"experts/{name}" for name in ("sort", "reverse", "caesar")},
        }
        assert study["space"] == "per_layer"
        assert study["tasks"]["reverse"] == {
            "kind": "generation",
            "data": "tasks/reverse.jsonl",
            "prompt": "{question}",
            "answer": "{answer}",
        }
        assert list(study["tasks"]) == ["sort", "reverse", "caesar"]
        assert study["splits"] == {"search": 128, "select": 256, "heldout": 1024}
        assert study["search"] == {"optimizer": "cma_es", "trials": 300, "seed": 0}
        for path in [*study["models"]["experts"].values(), study["models"]["base"]]:
            assert (zoo / path / "config.json").exists()

    def test_progress_tells_every_step(self, tmp_path: Path) -> None:
        told: list[tuple[str, int, int]] = []
        build_zoo(tmp_path / "zoo", family=TINY, progress=lambda *call: told.append(call))
        assert told == [
            ("training base", 1, 2),
            ("training base", 2, 2),
            ("training sort", 1, 1),
            ("training reverse", 1, 1),
            ("training caesar", 1, 1),
        ]

    def test_an_interrupted_build_leaves_nothing(self, tmp_path: Path) -> None:
        def interrupt(phase: str, done: int, total: int) -> None:
            if phase == "training caesar":
                assert not (tmp_path / "zoo").exists()
                raise KeyboardInterrupt

        threads = torch.get_num_threads()
        with pytest.raises(KeyboardInterrupt):
            build_zoo(tmp_path / "zoo", family=TINY, progress=interrupt)
        assert list(tmp_path.iterdir()) == []
        assert torch.get_num_threads() == threads

    def test_never_overwrites_a_zoo(self, zoo: Path) -> None:
        before = contents(zoo)
        with pytest.raises(InputError, match=r"expected no zoo at .* found a complete one"):
            build_zoo(zoo, family=TINY, seed=1)
        assert contents(zoo) == before

    def test_never_overwrites_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        for place in (tmp_path, tmp_path / "notes.txt"):
            with pytest.raises(InputError, match="found other files"):
                build_zoo(place, family=TINY)
        assert contents(tmp_path).keys() == {"notes.txt"}

    def test_files_that_come_while_it_builds_are_kept(self, tmp_path: Path) -> None:
        def intrude(phase: str, done: int, total: int) -> None:
            (tmp_path / "zoo").mkdir(exist_ok=True)
            (tmp_path / "zoo" / "notes.txt").write_text("mine")

        with pytest.raises(InputError):
            build_zoo(tmp_path / "zoo", family=TINY, progress=intrude)
        assert contents(tmp_path).keys() == {"zoo/notes.txt"}

    def test_fills_an_empty_folder_and_makes_its_parents(self, tmp_path: Path) -> None:
        directory = tmp_path / "deep" / "zoo"
        directory.mkdir(parents=True)
        build_zoo(directory, family=TINY)
        assert (directory / "study.yaml").exists()
        assert [path.name for path in directory.parent.iterdir()] == ["zoo"]


def test_replay_gives_an_expert_a_part_of_the_other_tasks() -> None:
    assert FAMILY.mixture("sort") == {"sort": 1.0}
    mixture = dataclasses.replace(FAMILY, replay=0.04).mixture("sort")
    assert mixture == pytest.approx({"sort": 0.96, "reverse": 0.02, "caesar": 0.02})
    alone = dataclasses.replace(FAMILY, shares={"sort": 1.0}, replay=0.04)
    assert alone.mixture("sort") == {"sort": 1.0}
