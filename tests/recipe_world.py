"""A small family with adapters, recipes of every form that merge it, and what they read."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from evomerge.checkpoints import ModelRef, open_checkpoint
from tests.tiny_adapters import factors, write_adapter
from tests.tiny_models import PLACE, STEPS, Tensors, llama_shapes, write_family

KEPT = ("embed", "q_proj", "down_proj", "input_layernorm", "model.norm", "lm_head")
MODELS = ("base", "a", "b", "c", "a+lora", "b+lora")
Files = dict[str, bytes]  # path → content


class World:
    """The models of a test, which no case may change, and the folder in which cases happen."""

    def __init__(self, folder: Path) -> None:
        self.models = write_family(folder / "models")
        for name in "base", "a", "b", "c":
            file = self.models / name / "model.safetensors"
            kept = {key: one for key, one in load_file(file).items() if any(k in key for k in KEPT)}
            save_file(kept, file, {"format": "pt"})
        modules = {STEPS.removesuffix(".weight"): llama_shapes()[STEPS]}
        write_adapter(self.models / "lora", factors(modules))
        self.case = folder / "case"
        every = dict.fromkeys([*MODELS, "base+lora", "c+lora"])
        self.inputs = {self.ref(name): read(self.ref(name)) for name in every}

    def ref(self, name: str) -> str:
        return "+".join(str(self.models / part) for part in name.split("+"))

    def model(self, name: str, /, **parameters: Any) -> dict[str, Any]:
        return {"model": self.ref(name)} | ({"parameters": parameters} if parameters else {})

    def source(self, name: str, first: int, end: int, /, **parameters: Any) -> dict[str, Any]:
        return self.model(name, **parameters) | {"layer_range": [first, end]}

    def others(self) -> dict[Any, list[Any]]:
        refs = [*(self.ref(name) for name in MODELS), self.ref("none")]
        dtypes: list[Any] = ["float32", "bfloat16", "float16", "float64", None]
        methods = ["linear", "ties", "dare_ties", "task_arithmetic", "slerp", "nuslerp",
                   "passthrough", "breadcrumbs", "multislerp", "della", "model_stock"]  # fmt: skip
        kinds: list[list[Any]] = [refs, dtypes, methods, ["mlp", "self_attn", "*", "lm_head"]]
        return {one: kind for kind in kinds for one in kind if one is not None}


def read(ref: str) -> Tensors:
    """Read a model; that an adapter is applied rightly is tested elsewhere."""
    if "+" not in ref:
        return load_file(Path(ref) / "model.safetensors")
    checkpoint = open_checkpoint(ModelRef.parse(ref, PLACE), PLACE)
    return dict(checkpoint.read(checkpoint.tensors))


def recipes(world: World) -> dict[str, dict[str, Any]]:
    """Recipes that are right, of every form."""
    model, source, base = world.model, world.source, world.ref("base")
    by_part = [{"filter": "mlp", "value": [0.2, 0.8, 0.5]}, {"filter": "lm_head", "value": 0.1},
               {"value": 0.7}]  # fmt: skip
    stacked = {
        "model.layers": {
            "slices": [
                {"sources": [source("base", 0, 2), source("a", 1, 3, weight=by_part)]},
                {"sources": [source("base", 2, 3), source("b", 0, 1, weight=0.5)],
                 "parameters": {"lambda": 0.5}},
            ],
            "parameters": {"normalize": True},
        },
        "default": {"models": [model("c", weight=1.5)], "parameters": {"lambda": [1, 0.5]}},
    }  # fmt: skip
    mapped = {"model": {"path": world.ref("a")}, "lora": world.ref("lora")}
    return {
        "linear": {
            "merge_method": "linear",
            "models": [model("a", weight=by_part), model("b", weight=[0.1, 0.9]), model("c")],
            "parameters": {"weight": 0.5, "normalize": False},
            "out_dtype": "bfloat16",
        },
        "ties": {
            "merge_method": "ties",
            "base_model": base,
            "models": [model("base"), model("a", weight=0.6, density=0.5),
                       model("b+lora", weight=by_part, density=[0.3, 0.9])],
            "parameters": {"normalize": True, "int8_mask": True, "lambda": 0.9},
            "dtype": "float32",
        },
        "dare": {
            "merge_method": "dare_ties",
            "base_model": {"model": base},
            "models": [{"model": mapped, "parameters": {"weight": 0.5}}, model("c", weight=0.7)],
            "parameters": {"density": [{"filter": "q_proj", "value": 0.9}, {"value": 0.4}],
                           "seed": 3},
            "dtype": "bfloat16", "out_dtype": "float32",
        },
        "slices": {
            "merge_method": "slerp",
            "base_model": base,
            "slices": [
                {"sources": [source("base", 0, 2), source("a", 1, 3)],
                 "parameters": {"t": [{"filter": "mlp", "value": [0.1, 0.9]}]}},
                {"sources": [source("a+lora", 2, 3), source("b", 0, 1)],
                 "base_model": world.ref("b")},
            ],
            "parameters": {"t": 0.4},
            "dtype": "float32", "out_dtype": "float16",
        },
        "stack": {
            "merge_method": "passthrough",
            "slices": [{"sources": [source("a", 0, 2)]},
                       {"sources": [source("b", 1, 3, scale=[{"filter": "mlp", "value": 0.5},
                                                             {"value": 1.0}])]}],
            "dtype": "float32",
        },
        "modules": {
            "merge_method": "task_arithmetic", "base_model": base, "modules": stacked,
            "dtype": "float32",
        },
    }  # fmt: skip


def files_of(folder: Path) -> Files:
    paths = (path for path in sorted(folder.rglob("*")) if not path.is_dir())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
