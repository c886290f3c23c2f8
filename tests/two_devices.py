"""Runs tiny models over two made-up devices: tensors have a device and a shape, and no values.

An operation on tensors of two devices is an error, as it is between two GPUs. It is a process of
its own, since PyTorch has one made-up kind of device for good.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import masking_utils

from evomerge.language_model import Past
from evomerge.spread import connect, spread
from tests.architectures import live, save_random

B, T = 3, 5


def split(model: Any, devices: list[torch.device]) -> None:
    """Replace a model's tensors by empty ones over the devices."""
    places = spread(dict.fromkeys(dict(model.module.named_parameters()), 1), devices)
    assert set(places.values()) == {*devices}
    made: dict[int, torch.nn.Parameter] = {}  # the tied ones are one still
    for path, old in [*model.module.named_parameters(remove_duplicate=False)]:
        if id(old) not in made:
            empty = torch.empty(old.shape, dtype=old.dtype, device=places[path])
            made[id(old)] = torch.nn.Parameter(empty, requires_grad=False)
        owner, _, last = path.rpartition(".")
        setattr(model.module.get_submodule(owner), last, made[id(old)])
    for part in model.module.modules():
        for last, old in [*part.named_buffers(recurse=False)]:
            part._buffers[last] = torch.empty(old.shape, dtype=old.dtype, device=devices[0])
    connect(model.module, devices[0])
    model.device = devices[0]


def check(model: Any, devices: list[torch.device]) -> None:
    """Do all that scoring asks of a model."""
    first = devices[0]
    ids = torch.zeros((B, T), dtype=torch.int64, device=first)
    rows = torch.zeros(B, dtype=torch.int64, device=first)
    plain = model.logits(ids, 2)
    assert (plain.shape, plain.device) == ((B, 2, model.vocabulary), first)
    state = model.remember(ids[:2])
    assert [layer.keys.device for layer in state.layers] == devices
    assert model.logits(ids, 2, Past(state, rows)).device == first
    cache, width = None, T
    if (whole := model.remember(ids)) is not None:
        each: Any = SimpleNamespace(tolist=lambda: [*range(B)])  # a tensor would have no values
        cache, width = model.join([Past(whole, each)], [T, T - 1, T]), T + 1
    for turn in range(2):
        mask = torch.ones((B, width + turn), dtype=torch.int64, device=first)
        step = ids[:, :1] if cache is not None else ids
        logits, cache = model.step(step, mask, cache)
        assert (logits.shape, logits.device) == ((B, model.vocabulary), first)
    assert {layer.keys.shape[0] for layer in model.keep(cache, rows[:2]).layers} == {2}


def main() -> None:
    """Run the models of the names given, below a folder."""
    folder, *names = sys.argv[1:]
    _setup_privateuseone_for_python_backend("toy")
    devices = [torch.device("toy:0"), torch.device("toy:1")]
    # The one looks at values, of which there are none; the other gives some to a device.
    masking_utils.find_packed_sequence_indices = lambda *_: None
    torch.tensor = lambda data, **kind: (
        torch.empty(len(data), **kind) if isinstance(data, list) else torch.full((), data, **kind)
    )
    for name in names:
        model = live(save_random(Path(folder) / name, name))
        with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
            split(model, devices)
            check(model, devices)
        print(name, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
