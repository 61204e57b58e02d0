"""The cost model that ships with whet: what all recorded tasks have taught.

`prior.txt` is the model's text, `prior.md` its data card: what it was trained on, how well it does
on tasks and families that it has not seen. `whet tune --retrain` makes both anew.
"""

from __future__ import annotations

import functools
from pathlib import Path

from whet.kernel.features import NAMES
from whet.kernel.model import ModelError, Ranker

PLACE = Path(__file__).with_name("prior.txt")
CARD = Path(__file__).with_name("prior.md")
BASE = NAMES.index("seconds")
"""The feature that the model mends."""


@functools.lru_cache(maxsize=1)
def pretrained() -> Ranker | None:
    """The model, or None where it does not fit the features of this version, or LightGBM is not
    installed: the search then learns from nothing."""
    try:
        found = Ranker(PLACE.read_text(encoding="utf-8"), BASE)
        return found if found.features == len(NAMES) else None
    except (OSError, ModelError):
        return None
