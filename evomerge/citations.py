"""What to cite of a merge and of the search that found it, as BibTeX."""

from __future__ import annotations

import functools
import re
from pathlib import Path

METHODS = {
    "linear": ("wortsman2022soups",),
    "task_arithmetic": ("ilharco2023arithmetic",),
    "ties": ("yadav2023ties",),
    "dare_linear": ("yu2024dare",),
    "dare_ties": ("yu2024dare", "yadav2023ties"),
    "della": ("deep2024della", "yadav2023ties"),
    "della_linear": ("deep2024della",),
    "breadcrumbs": ("davari2023breadcrumbs",),
    "breadcrumbs_ties": ("davari2023breadcrumbs", "yadav2023ties"),
    "model_stock": ("jang2024stock",),
    "sce": ("wan2024fusechat",),
    "slerp": ("shoemake1985rotation",),
    "nuslerp": ("shoemake1985rotation", "goddard2024mergekit"),
    "karcher": ("karcher1977center", "buss2001spherical"),
    "multislerp": ("goddard2025multislerp",),
    "nearswap": ("alchemonaut2024quartet",),
    "arcee_fusion": ("arcee2025fusion", "goddard2024mergekit"),
    "passthrough": ("goddard2024mergekit",),
}
OPTIMIZERS = {
    "cma_es": ("hansen2016cma",),
    "cma_mixed": ("hamano2025catcma",),
    "gp": ("ament2023unexpected", "akiba2019optuna"),
    "tpe": ("bergstra2011tpe", "akiba2019optuna"),
    "nsga2": ("deb2002nsga",),
    "random_search": (),
}
_ENTRY = re.compile(r"^@\w+\{([^,]+),.*?^\}", re.MULTILINE | re.DOTALL)


@functools.cache
def entries() -> dict[str, str]:
    """Return all BibTeX entries by their keys."""
    text = Path(__file__).with_suffix(".bib").read_text(encoding="utf-8")
    return {found[1]: found[0] for found in _ENTRY.finditer(text)}


def bibtex(method: str, optimizer: str | None = None) -> str:
    """Return BibTeX of evomerge, a merge method and, of a search, its optimizer.

    Methods and optimizers that nobody has entered here have no entries of their own.
    """
    keys = ["evomerge", *METHODS.get(method, ())]
    if optimizer is not None:
        keys += ["akiba2025evolutionary", *OPTIMIZERS.get(optimizer, ())]
    return "\n\n".join(entries()[key] for key in dict.fromkeys(keys))
