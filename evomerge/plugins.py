"""The folder is the registry: a plug-in's name is the name of its file."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from evomerge.errors import InputError, Place


def names(package: ModuleType | str) -> list[str]:
    """Return the names of the plug-ins in a package: its modules without a leading underscore."""
    module = importlib.import_module(package) if isinstance(package, str) else package
    return sorted(
        found.name
        for found in pkgutil.iter_modules(module.__path__)
        if not found.name.startswith("_") and not found.ispkg
    )


def load(package: str, name: object, what: str, place: Place) -> ModuleType:
    """Import the plug-in `name` of `package`.

    Raises the place's error, with the nearest right name, where there is no such file.
    """
    if not isinstance(name, str):
        raise place.fail(f"the name of a {what}", name)
    if name not in names(package):
        raise place.unknown(name, what, names(package))
    return importlib.import_module(f"{package}.{name}")


def summary(module: ModuleType) -> str:
    """Return the first sentence of a plug-in's docstring."""
    if not module.__doc__:
        raise InputError(f"the plug-in {module.__name__} has no docstring")
    return module.__doc__.strip().split("\n\n")[0].replace("\n", " ")
