"""What there is to choose from, read from the declarations of every plug-in."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from evomerge import merge_methods, optimizers, plugins, proxy_tasks
from evomerge.errors import InputError, Place
from evomerge.files import read_text
from evomerge.space_reader import space_folder, space_names
from evomerge.study.reference import lines


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
        yield from _fields(module.Settings)
    yield "proxy tasks"
    for name in plugins.names(proxy_tasks):
        module = proxy_tasks.get(name, place)
        yield f"  {name:<18} {plugins.summary(module)}"
        yield from _fields(module.Settings, ("kind",))
    yield "search spaces"
    for name in space_names():
        yield f"  {name:<18} {space_comment(name)}"


def space_comment(name: str) -> str:
    """Return what the comment at the top of a ready-made search space says."""
    text = read_text(space_folder() / f"{name}.yaml", InputError)
    return " ".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))


def _fields(settings: type[BaseModel], left_out: tuple[str, ...] = ()) -> Iterator[str]:
    for one in lines(settings, left_out):
        default = "required" if one.default is None else f"default {one.default}"
        yield f"      {one.name:<14} {one.meaning} ({one.kind}; {default})"
