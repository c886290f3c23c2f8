"""What there is to choose from, read from the declarations of every plug-in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evomerge import merge_methods, optimizers, plugins, proxy_tasks
from evomerge.errors import InputError, Place
from evomerge.files import read_text
from evomerge.space_reader import space_folder, space_names


def catalogue() -> Iterator[str]:
    """Yield the lines of `evomerge list`."""
    place = Place("the registry", InputError)
    yield "merge methods"
    for name in plugins.names(merge_methods):
        module = plugins.load(merge_methods.__name__, name, "merge method", place)
        yield f"  {name:<18} {plugins.summary(module)}"
        for declared in module.METHOD.parameters:
            default = "required" if declared.default is None else f"default {declared.default}"
            each = ", per model" if declared.scope == "model" else ""
            yield f"      {declared.name:<14} {declared.help} ({declared.bounds}{each}; {default})"
    yield "optimizers"
    yield f"  {optimizers.AUTO:<18} Chosen by the space and the number of trials."
    for name in plugins.names(optimizers):
        module = optimizers.get(name, place)
        yield f"  {name:<18} {plugins.summary(module)}"
        yield from _fields(module.Settings, ())
    yield "proxy tasks"
    for name in plugins.names(proxy_tasks):
        module = proxy_tasks.get(name, place)
        yield f"  {name:<18} {plugins.summary(module)}"
        yield from _fields(module.Settings, ("kind",))
    yield "search spaces"
    for name in space_names():
        text = read_text(space_folder() / f"{name}.yaml", InputError)
        comment = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
        yield f"  {name:<18} {' '.join(comment)}"


def _fields(settings: Any, left_out: tuple[str, ...]) -> Iterator[str]:
    for name, field in settings.model_fields.items():
        if name not in left_out:
            default = "required" if field.is_required() else f"default {field.default!r}"
            yield f"      {name:<14} {field.description} ({default})"
