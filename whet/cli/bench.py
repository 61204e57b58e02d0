"""`whet bench`: the comparisons with other systems, which live beside whet in its repository."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from whet.cli.console import Console
from whet.errors import WhetError


def arguments(parser: argparse.ArgumentParser) -> None:
    """What `bench/` defines; it is imported here, for it may be absent."""
    _bench().add_arguments(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Runs it; it prints, and writes its results, by itself."""
    code = _bench().run(args)
    assert isinstance(code, int)
    return code


def _bench() -> Any:
    try:
        return importlib.import_module("bench.cli")
    except ModuleNotFoundError as fault:
        if fault.name in ("bench", "bench.cli"):
            raise WhetError(
                "the comparisons are not installed with whet",
                expected="the folder bench/ of whet's repository on the import path",
                got=fault,
                hint="run ./run bench in a clone of the repository",
            ) from fault
        raise WhetError(
            f"the comparisons need {fault.name}, which is not installed",
            hint="./run setup bench, or pip install 'whet[bench]'",
        ) from fault
