"""The mistakes, section by section, in the order in which somebody new comes to them."""

from typing import Any

import torch

from tests.tour.changes import (
    SPACE,
    a_file_in_the_way,
    busy,
    cards,
    config,
    cut_off,
    full_disk,
    gone,
    half_a_model,
    item,
    lacks,
    merged,
    own,
    pickled,
    port_8080,
    put,
    recipe,
    small_disk,
    small_memory,
    space,
    study,
    task,
    tensors,
)
from tests.tour.world import RECIPE, Change, Mistake

CHECK = "evomerge check study.yaml"
MERGE = "evomerge merge recipe.yaml out"
SEARCH = "evomerge search study.yaml --name wednesday --quiet"
INIT = "evomerge init {} -o new.yaml"
CANCELLING = """\
merge_method: linear
models:
  - {model: maths, parameters: {weight: 1}}
  - {model: code, parameters: {weight: -1}}
"""
STOPPING = """\
asked.append(os.kill(os.getpid(), signal.SIGINT) if len(asked) == 60 else None)
    return [0.5 for row in rows]"""


def mistake(title: str, command: str, *changes: Change, **rest: Any) -> Mistake:
    return Mistake(title, command, changes, **rest)


SECTIONS: dict[str, list[Mistake]] = {
    "The command line": [
        mistake("A command is misspelt", "evomerge serch study.yaml"),
        mistake("An option is misspelt", "evomerge search study.yaml --trails 10"),
        mistake("An argument is missing", "evomerge search"),
        mistake("An option has no number", "evomerge search study.yaml --trials many"),
        mistake("An option has another choice", "evomerge search study.yaml --memory ram"),
        mistake("A path is wrong", "evomerge search stduy.yaml"),
        mistake("A folder where a file is wanted", "evomerge search maths"),
        mistake("A recipe where a study is wanted", "evomerge search recipe.yaml"),
        mistake("A study where a recipe is wanted", "evomerge merge study.yaml out"),
        mistake("A device that there is not", "evomerge search study.yaml --device gpu"),
        mistake("A study's name that is no name", "evomerge search study.yaml --name 'my study'"),
        mistake("A split that there is not", "evomerge evaluate base study.yaml --split test"),
        mistake("A model to evaluate that there is not", "evomerge evaluate ./mathz study.yaml"),
        mistake("A tracker is misspelt", SEARCH + " --track tensorbord"),
    ],
    "A first study, by evomerge init": [
        mistake("No items are named", INIT.format("base maths")),
        mistake("Only a base is named", INIT.format("base --task sums.jsonl")),
        mistake("The file is there already", "evomerge init base maths --task sums.jsonl"),
        mistake(
            "Fields that say nothing",
            INIT.format("base maths --task odd.jsonl"),
            put(
                "odd.jsonl", '{"a": 1, "b": 2}\n', 'Each line of `odd.jsonl` is `{"a": 1, "b": 2}`.'
            ),
        ),
        mistake("Models of two vocabularies", INIT.format("base wide --task sums.jsonl")),
        mistake("Models of two architectures", INIT.format("base gpt --task sums.jsonl")),
        mistake(
            "An expert is named first, and the cards know better",
            INIT.format("maths base code --task sums.jsonl") + " | grep taken",
            cards("base"),
            status=0,
        ),
        mistake(
            "A base that the cards name, and that is not there",
            INIT.format("maths code --task sums.jsonl"),
            cards("org/llama"),
        ),
        mistake(
            "Too few items to divide",
            INIT.format("base maths --task few.jsonl"),
            put(
                "few.jsonl", '{"question": "1 + 1 =", "answer": "2"}\n', "`few.jsonl` has one item."
            ),
        ),
        mistake("A folder for the tiny family that is not empty", "evomerge zoo maths"),
    ],
    "YAML": [
        mistake(
            "A bracket is not closed",
            CHECK,
            study("{maths: maths, code: code}", "{maths: maths, code: code"),
        ),
        mistake(
            "A line is indented otherwise",
            CHECK,
            study(
                "  experts:",
                " experts:",
                "In `study.yaml` one space too few stands before `experts:`.",
            ),
        ),
        mistake(
            "A tab",
            CHECK,
            study("  experts:", "\texperts:", "In `study.yaml` a tab stands before `experts:`."),
        ),
        mistake("A key stands twice", CHECK, study("fitness: {worst: 0}", "space: ties")),
        mistake(
            "Another encoding",
            CHECK,
            put("study.yaml", "# été\n".encode("latin-1"), "`study.yaml` was saved as Latin-1."),
        ),
        mistake("An empty file", CHECK, put("study.yaml", "", "`study.yaml` is empty.")),
    ],
    "A typo in each section": [
        mistake("At the top", CHECK, study("tasks:", "task:")),
        mistake("In models", CHECK, study("experts:", "expert:")),
        mistake("In the name of a space", CHECK, study("task_arithmetic", "task_aritmetic")),
        mistake("In a space", CHECK, space("{rnage: [0, 1]}")),
        mistake("In tasks", CHECK, study("prompt:", "promt:")),
        mistake("In a kind of task", CHECK, study("multiple_choice", "multiplechoice")),
        mistake("In splits", CHECK, study("heldout:", "held_out:")),
        mistake("In search", CHECK, study("trials:", "trails:")),
        mistake("In the name of an optimizer", CHECK, study("random_search", "cmaes")),
        mistake("In racing", CHECK, study("trials: 4", "trials: 4, racing: {frist: 4}")),
        mistake("In fitness", CHECK, study("worst:", "wrost:")),
    ],
    "Models": [
        mistake("A model's path is wrong", CHECK, study("base: base", "base: bse")),
        mistake(
            "A Hub id, and no network",
            CHECK,
            study("base: base", "base: org/base"),
            Change("`HF_HUB_OFFLINE` is set."),
        ),
        mistake("A folder that is no checkpoint", CHECK, study("maths: maths", "maths: runs")),
        mistake(
            "A file where a model's folder is wanted",
            CHECK,
            study("maths: maths", "maths: sums.jsonl"),
        ),
        mistake(
            "Base and expert are swapped",
            "evomerge inspect study.yaml | grep base?",
            study("base: base", "base: maths"),
            study("maths: maths", "maths: base"),
            status=0,
        ),
        mistake("A model stands twice", CHECK, study("code: code", "code: maths")),
        mistake(
            "Models of different shape",
            CHECK,
            tensors(
                "The final norm of `maths` has 40 entries.",
                lambda found: found.update({"model.norm.weight": torch.ones(40)}),
            ),
        ),
        mistake(
            "An expert that lacks a tensor",
            CHECK + " | grep note",
            tensors("`maths` has no final norm.", lambda found: found.pop("model.norm.weight")),
            status=0,
        ),
        mistake("Models of different vocabulary", CHECK, study("maths: maths", "maths: wide")),
        mistake("Models of different architecture", CHECK, study("maths: maths", "maths: gpt")),
        mistake(
            "A quantized model",
            CHECK,
            tensors(
                "The final norm of `maths` is stored as int8.",
                lambda found: found.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}),
            ),
        ),
        mistake("An adapter without its model", CHECK, study("maths: maths", "maths: lora")),
        mistake(
            "An adapter whose base is missing", CHECK, study("maths: maths", "maths: bse+lora")
        ),
        mistake("An adapter of another model", CHECK, study("maths: maths", "maths: gpt+lora")),
        mistake("An adapter's path is wrong", CHECK, study("maths: maths", "maths: base+lroa")),
        mistake(
            "Pickled weights that hold code",
            CHECK,
            Change(
                "`maths` has a `pytorch_model.bin` that would run a command when it is loaded.",
                pickled,
            ),
        ),
        mistake(
            "A download that broke off",
            CHECK,
            Change("`maths/model.safetensors` ends after 5000 bytes.", cut_off),
        ),
        mistake(
            "A shard is missing",
            CHECK,
            Change("The index of `maths` names a file that is not there.", half_a_model),
        ),
        mistake("No weights", CHECK, gone("maths/model.safetensors")),
        mistake("No configuration", CHECK, gone("maths/config.json")),
        mistake(
            "A configuration that is no JSON",
            CHECK,
            put("maths/config.json", '{"model_type": ', "`maths/config.json` breaks off."),
        ),
        mistake(
            "A configuration of another model",
            CHECK,
            config("`base/config.json` says `hidden_size: 48`.", hidden_size=48),
        ),
        mistake(
            "A model that needs code of its own",
            CHECK,
            config(
                "`base/config.json` names Python files that come with the model.",
                model_type="own",
                auto_map={"AutoConfig": "configuration_own.OwnConfig"},
            ),
        ),
        mistake("No tokenizer", CHECK, gone("base/tokenizer.json", "base/tokenizer_config.json")),
        mistake(
            "Weights that are not numbers",
            SEARCH,
            tensors(
                "The final norm of `maths` is NaN.",
                lambda found: found["model.norm.weight"].fill_(float("nan")),
            ),
        ),
    ],
    "Tasks and their items": [
        mistake(
            "A field of the task is missing",
            CHECK,
            study('    answer: "{answer}"\n', "", "The task `sums` has no `answer`."),
        ),
        mistake("The file of items is missing", CHECK, study("sums.jsonl", "sum.jsonl")),
        mistake(
            "The file of items is empty", CHECK, put("sums.jsonl", "", "`sums.jsonl` is empty.")
        ),
        mistake(
            "A line is no JSON",
            CHECK,
            item('"2 + 1 ="', '"2 + 1 =', "A quotation mark is missing in `sums.jsonl`."),
        ),
        mistake(
            "A line is no object",
            CHECK,
            item('{"question": "2 + 1 =", "options": [2, 3], "answer": 1}', '["2 + 1 =", 3]'),
        ),
        mistake("An item lacks a field", CHECK, item('"question": "2', '"qestion": "2')),
        mistake(
            "A prompt asks for a field that there is not", CHECK, study("{question}", "{qestion}")
        ),
        mistake("An item's field has another type", CHECK, item("[2, 3]", '"2, 3"')),
        mistake(
            "A right answer that is none of the options",
            CHECK,
            item('[2, 3], "answer": 1', '[2, 3], "answer": 2'),
        ),
        mistake("Too few items", CHECK, study("heldout: 8", "heldout: 512")),
        mistake(
            "An item longer than the context",
            CHECK,
            item(
                '"2 + 1 ="',
                f'''"{"2 + 1 = " * 20}"''',
                "The third item of `sums.jsonl` is far longer than the others.",
            ),
        ),
        mistake(
            "A table with a row too short",
            CHECK,
            study("sums.jsonl", "sums.csv"),
            put(
                "sums.csv",
                "question,options,answer\n1 + 1 =,2\n",
                "Its second line has two fields of three.",
            ),
        ),
        mistake(
            "A public benchmark's test items",
            CHECK,
            study("data: sums.jsonl", "data: {dataset: openai/gsm8k, name: main, split: test}"),
        ),
        mistake(
            "A data set of the Hub, and no network",
            CHECK,
            study("data: sums.jsonl", "data: {dataset: org/sums}"),
            Change("`HF_HUB_OFFLINE` is set."),
        ),
        mistake(
            "A chat, and a tokenizer without a template",
            CHECK,
            study(
                "    prompt:", "    chat: true\n    prompt:", "The task `sums` has `chat: true`."
            ),
        ),
        mistake(
            "Classification by language models",
            CHECK,
            task('{kind: classification, data: sums.jsonl, text: "{question}", label: "{answer}"}'),
        ),
        mistake(
            "A function's file is missing",
            CHECK,
            task('{kind: python, data: sums.jsonl, function: "own.py:score"}'),
        ),
        mistake(
            "A function of another name",
            CHECK,
            task('{kind: python, data: sums.jsonl, function: "own.py:scores"}'),
            own("return [0.5 for row in rows]", "`own.py` has a function `score`.")[1],
        ),
        mistake(
            "A function that fails",
            SEARCH,
            *own(
                "return [row['anwser'] for row in rows]",
                "`score` in `own.py` returns `[row['anwser'] for row in rows]`.",
            ),
        ),
        mistake(
            "A function that returns no scores",
            SEARCH,
            *own(
                "return [row['answer'] + 1 for row in rows]",
                "`score` in `own.py` returns 2 for every row.",
            ),
        ),
        mistake(
            "lm-evaluation-harness is not installed",
            CHECK,
            task("{kind: lm_eval, task: gsm8k}"),
            machine=lacks("lm_eval.api.task"),
        ),
    ],
    "The space and the search": [
        mistake(
            "A density that there is not",
            CHECK,
            study(
                "space: task_arithmetic",
                "space: " + (SPACE % 1).replace("0.5", "{range: [0.1, 1.5]}"),
                "The space has `density: {range: [0.1, 1.5]}`.",
            ),
        ),
        mistake("A first value out of its range", CHECK, space("{range: [0, 1], init: 2}")),
        mistake("A range from high to low", CHECK, space("{range: [1, 0]}")),
        mistake("A hole that there is not", CHECK, space("{product: [{range: [0, 1]}, depth]}")),
        mistake("Nothing to search", CHECK, space("0.5")),
        mistake("A space's file is missing", CHECK, study("task_arithmetic", "ties2.yaml")),
        mistake("No trials", CHECK, study("trials: 4", "trials: 0")),
        mistake(
            "Stages out of order",
            CHECK,
            study(
                "trials: 4",
                "trials: 40, stages: [{after: 30, knots: 4}, {after: 20, knots: 8}]",
                "`search` has `stages: [{after: 30, knots: 4}, {after: 20, knots: 8}]`.",
            ),
        ),
        mistake(
            "A setting of another optimizer", CHECK, study("trials: 4", "trials: 4, sigma: 0.1")
        ),
        mistake(
            "CMA-ES on one number",
            CHECK,
            Change("", space("{range: [0, 1]}").make),
            study("random_search", "cma_es", ""),
            study(
                "{maths: maths, code: code}",
                "{maths: maths}",
                "One expert, a space of one weight, and `optimizer: cma_es`.",
            ),
        ),
        mistake(
            "A recipe to begin with that the space does not hold",
            CHECK,
            study("trials: 4", "trials: 4, start: [recipe.yaml]"),
        ),
        mistake("A weight of the worst task above 1", CHECK, study("worst: 0", "worst: 1.5")),
    ],
    "Recipes and merged models": [
        mistake("A method is misspelt", MERGE, recipe("ties", "tise")),
        mistake("A parameter is misspelt", MERGE, recipe("weight", "wieght")),
        mistake("A density out of its range", MERGE, recipe("density: 0.5", "density: 50")),
        mistake(
            "A number that YAML reads as a text", MERGE, recipe("density: 0.5", "density: 5e-1")
        ),
        mistake(
            "A weight is missing",
            MERGE,
            recipe("weight: 0.5, ", "", "The first model of `recipe.yaml` has no weight."),
        ),
        mistake(
            "The base model is missing",
            MERGE,
            recipe("base_model: base\n", "", "`recipe.yaml` has no `base_model`."),
        ),
        mistake(
            "Too many models for the method",
            MERGE,
            put(
                "recipe.yaml",
                RECIPE.replace("ties\n", "slerp\nparameters: {t: 0.5}\n").replace(
                    ", parameters: {weight: 0.5, density: 0.5}", ""
                ),
                "`recipe.yaml` asks for `slerp` of two experts.",
            ),
        ),
        mistake(
            "Weights whose sum is zero",
            MERGE,
            put(
                "recipe.yaml",
                CANCELLING,
                "`recipe.yaml` is `linear` with the weights 1 and -1.",
            ),
        ),
        mistake("The output folder exists", "evomerge merge recipe.yaml maths"),
        mistake("A size that is none", "evomerge merge recipe.yaml out --shard-size 4X"),
        mistake("A model that evomerge did not merge", "evomerge push maths me/merged"),
        mistake(
            "No network to upload by",
            "evomerge push out me/merged",
            Change("`out` is merged; `HF_HUB_OFFLINE` is set.", merged),
        ),
        mistake("A name without its owner", "evomerge push maths merged"),
    ],
    "Studies": [
        mistake("The name is taken", "evomerge search study.yaml --name monday"),
        mistake(
            "The name is taken by another study",
            "evomerge search study.yaml --name monday",
            study("random_search", "tpe"),
        ),
        mistake("There is no study of that name", "evomerge resume mondya"),
        mistake(
            "The study file has changed", "evomerge resume tuesday", study("worst: 0", "worst: 0.5")
        ),
        mistake("The items have changed", "evomerge resume tuesday", item("2 + 1 =", "2 + 2 =")),
        mistake(
            "The weights have changed",
            "evomerge resume monday --quiet",
            tensors(
                "`maths` has been trained further.",
                lambda found: found["model.norm.weight"].mul_(2),
            ),
        ),
        mistake(
            "A model has gone",
            "evomerge resume tuesday",
            Change(
                "The folder `maths` is now called `math`.",
                lambda folder: (folder / "maths").rename(folder / "math"),
            ),
        ),
        mistake("Fewer trials than are done", "evomerge resume monday --trials 2"),
        mistake("Another process runs it", "evomerge resume tuesday", machine=busy),
        mistake("A fork without a name", "evomerge resume monday --study study.yaml"),
        mistake("A fork whose name is taken", "evomerge resume monday --fork tuesday"),
        mistake("Nothing to export yet", "evomerge export tuesday"),
        mistake("A trial that there is not", "evomerge export monday --trial 99"),
        mistake(
            "An exported recipe would overwrite another", "evomerge export monday -o recipe.yaml"
        ),
        mistake("A report before the end", "evomerge report tuesday"),
        mistake("A recipe that the study does not search", "evomerge enqueue tuesday recipe.yaml"),
        mistake("Nothing to compare with", "evomerge compare monday sunday"),
        mistake("Nothing to watch", "evomerge watch tusday --once"),
        mistake(
            "A damaged database",
            "evomerge status monday",
            put(
                "runs/monday/study.db",
                "x" * 5000,
                "`runs/monday/study.db` is no database any more.",
            ),
        ),
        mistake(
            "A database that is none of ours", "evomerge status --storage mysql://localhost/studies"
        ),
        mistake(
            "A server that cannot be reached",
            "evomerge status --storage postgresql://127.0.0.1:1/studies",
        ),
    ],
    "The machine": [
        mistake(
            "Ctrl-C",
            SEARCH.replace("--quiet", "2>&1 | grep stop"),
            study("trials: 4", "trials: 40", ""),
            *own(
                STOPPING,
                "Ctrl-C is pressed while a trial runs.",
                before="import os, signal\nasked = []\n",
            ),
            status=130,
            real=True,
        ),
        mistake(
            "Memory does not suffice",
            SEARCH + " --memory device",
            Change("The models are larger than the memory of the GPU."),
            machine=small_memory,
        ),
        mistake("The disk has no room for the model", MERGE, machine=small_disk),
        mistake("The disk is full", "evomerge export monday -o best.yaml", machine=full_disk),
        mistake(
            "A folder where nothing can be written",
            SEARCH,
            Change("`runs` is a file.", a_file_in_the_way),
        ),
        mistake("A tracker is not installed", SEARCH + " --track wandb", machine=lacks("wandb")),
        mistake(
            "The dashboard is not installed",
            "evomerge dashboard monday",
            machine=lacks("optuna_dashboard"),
        ),
        mistake("The dashboard's port is taken", "evomerge dashboard monday", machine=port_8080),
    ],
}
