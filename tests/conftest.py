"""What every test shares: a fixed environment, `--all`, goldens, and seeds.

Tests are sorted by what they need: `unit` mirrors `whet/`, `property` draws its cases, `golden`
compares texts with files, `peers` runs other systems, `device` needs an accelerator.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported by anybody: one thread, so that workers do not fight for cores; and no
# network, so that a test that would need it fails instead of hanging.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("WHET", None)

import hypothesis
import numpy as np
import pytest

VERIFY = [True]
GOLDEN = Path(__file__).parent / "golden"

# The same examples in every run, so that a red test is about the change at hand; `--all` looks
# further, with new examples each time, and prints how to repeat the one that failed.
COMMON = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("quick", derandomize=True, max_examples=50, **COMMON)
hypothesis.settings.register_profile("full", print_blob=True, max_examples=1000, **COMMON)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also the long tests, at their full counts")
    parser.addoption("--update-golden", action="store_true", help="write the goldens anew")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("full" if config.getoption("--all") else "quick")
    # A job in the background is started deaf to Ctrl-C, and hands that down to what tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    everything = config.getoption("--all")
    for item in items:
        if item.get_closest_marker("full") and not everything:
            item.add_marker(pytest.mark.skip(reason="long: runs with --all"))
        if item.get_closest_marker("device") and not has_device():
            item.add_marker(pytest.mark.skip(reason="torch finds no accelerator"))


def has_device() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session", autouse=True)
def private_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store of this run's own: tests never read, or leave anything in, the user's."""
    place = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHET_CACHE", str(place))
        yield place


@pytest.fixture(scope="session", autouse=True)
def verified_graphs() -> Iterator[None]:
    """Every Graph that a test makes is checked where it is made; equal graphs once.

    A test of what is not well formed asks for the fixture `unverified`.
    """
    if importlib.util.find_spec("whet.ir.verify") is None:
        yield
        return
    from whet.ir.graph import Graph
    from whet.ir.verify import verify

    make, seen = Graph.__init__, set()

    def checked(graph: Graph, *args: object, **named: object) -> None:
        make(graph, *args, **named)
        if VERIFY and graph.digest not in seen:
            verify(graph)
            seen.add(graph.digest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Graph, "__init__", checked)
        yield


@pytest.fixture
def unverified() -> Iterator[None]:
    """Graphs are not checked as they are made."""
    VERIFY.clear()
    yield
    VERIFY.append(True)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same random numbers, alone or among others."""
    random.seed(0)
    np.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`count(quick, full)`: how often to repeat something, here or under `--all`."""
    everything = request.config.getoption("--all")
    return lambda quick, full: full if everything else quick


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: `text` is what tests/golden/NAME holds; `--update-golden` writes it."""
    update = request.config.getoption("--update-golden")

    def compare(name: str, text: str) -> None:
        __tracebackhide__ = True
        file = GOLDEN / name
        text = text.rstrip("\n") + "\n"
        if update:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            return
        if not file.exists():
            pytest.fail(
                f"no golden {file}\n  try: ./run test --update-golden, and read what it wrote"
            )
        before = file.read_text(encoding="utf-8")
        if before != text:
            lines = difflib.unified_diff(
                before.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm=""
            )
            pytest.fail(
                "\n".join([*lines, "  try: --update-golden if the change is meant"]), pytrace=False
            )

    return compare
