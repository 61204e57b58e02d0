"""Saved programs: whole or not at all, the same in another process, refused when damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from tests.unit.run.making import optimized, same
from whet.errors import InputError, StoreError, UnsupportedError
from whet.run import save as saving
from whet.run.module import Optimized
from whet.run.save import MANIFEST, load, save

ROOT = Path(__file__).parents[3]


class Net(nn.Module):
    """Tied, folded and packed weights, a counter, a result that is a tree."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 6)
        self.again = nn.Linear(6, 4, bias=False)
        self.tied = nn.Linear(4, 6)
        self.tied.weight = self.fc.weight
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("scratch", torch.ones(6), persistent=False)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor, scale: float = 1.5) -> dict[str, Any]:
        self.count += 1
        y = self.norm(self.conv(x)).relu().mean((2, 3))
        y = self.fc(self.tied(self.again(self.fc(y)))[:, :4]) * self.scratch
        return {"y": y * scale, "n": (self.count, None, 3)}


X = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(2))


def net() -> Net:
    torch.manual_seed(5)
    return Net().eval()


def made(engine: str = "steps") -> tuple[Net, Optimized]:
    model = net()
    return model, optimized(model, X, engine=engine)


@pytest.fixture(scope="module", params=["steps", "inductor", "original"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("programs") / request.param
    return save(made(request.param)[1], place)


@torch.no_grad()
def test_it_computes_the_same(saved: Path) -> None:
    model, again = net(), load(saved)
    for _ in range(2):
        same(again(X), model(X))
    assert again.program is not None
    assert again.program.engine == ("inductor" if saved.name == "inductor" else "steps")
    assert again.report.model == "Net"


@torch.no_grad()
def test_state_is_there_by_name_and_alive(saved: Path) -> None:
    model, again = net(), load(saved)
    assert set(again.state_dict()) == set(model.state_dict())
    assert {n for n, _ in again.named_parameters()} == {n for n, _ in model.named_parameters()}
    assert again.get_parameter("fc.weight") is again.get_parameter("tied.weight")
    for key, value in again.state_dict().items():
        same(value, model.state_dict()[key])
    values = {k: v * 2 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(values)
    again.load_state_dict(values)
    same(again(X), model(X))
    model.fc.weight.mul_(3)
    again.get_parameter("fc.weight").data.mul_(3)
    same(again(X), model(X))
    same(load(saved)(X), net()(X))  # what was changed in memory stayed there


@torch.no_grad()
def test_calls_are_written_as_before(saved: Path) -> None:
    again = load(saved)
    want = net()(X)
    same(again(x=X)["y"], want["y"])
    same(again(X, scale=1.5)["y"], want["y"])
    with pytest.raises(InputError, match="scale"):
        again(X, scale=2.0)


@torch.no_grad()
def test_other_inputs_are_refused(saved: Path) -> None:
    with pytest.raises(InputError, match="not for this call"):
        load(saved)(X[:1])
    lenient = load(saved, strict=False)
    with (
        pytest.warns(UserWarning, match="expected shape"),
        pytest.raises(InputError, match="the original is not in it"),
    ):
        lenient(X[:1])


@torch.no_grad()
def test_a_loaded_program_is_saved_again(saved: Path, tmp_path: Path) -> None:
    again = load(saved)
    again.get_parameter("fc.bias").add_(1)
    other = load(save(again, tmp_path / "again"))
    same(other(X), again(X))
    assert (tmp_path / "again" / "plan.txt").read_text() == (saved / "plan.txt").read_text()


CHILD = """
import sys, time
import torch
start = time.perf_counter()
import whet
again = whet.load(sys.argv[1])
with torch.no_grad():
    y = again(torch.load(sys.argv[2]))["y"]
torch.save(y, sys.argv[3])
heavy = "z3 sympy torch._inductor torch._dynamo onnx highspy whet.rewrite whet.capture"
print([m for m in heavy.split() if m in sys.modules])
print(time.perf_counter() - start)
"""


def test_another_process_runs_it_without_what_made_it(saved: Path, tmp_path: Path) -> None:
    torch.save(X, tmp_path / "x.pt")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(saved), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    imported, seconds = done.stdout.splitlines()
    assert imported == "[]"
    assert float(seconds) < 15  # a second; machines that test are busy
    with torch.no_grad():
        same(torch.load(tmp_path / "y.pt"), net()(X)["y"])


def files(place: Path) -> list[Path]:
    return sorted(p for p in place.rglob("*") if p.is_file())


def copied(saved: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.mark.parametrize("harm", ["missing", "empty", "truncated", "flipped"])
def test_damage_is_found_in_every_file(saved: Path, tmp_path: Path, harm: str) -> None:
    place = copied(saved, tmp_path)
    for file in files(place):
        before = file.read_bytes()
        if harm == "missing":
            file.unlink()
        elif harm == "empty":
            file.write_bytes(b"")
        elif harm == "truncated":
            file.write_bytes(before[: len(before) * 2 // 3])
        else:
            middle = len(before) // 2
            file.write_bytes(before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :])
        if harm != "flipped" or file.name != MANIFEST:  # which may still read the same
            with pytest.raises(StoreError) as caught:
                load(place)
            assert file.name in str(caught.value)
        file.write_bytes(before)
    load(place)


def rewritten(place: Path, name: str, text: str) -> None:
    """Another content, with the checksum that belongs to it."""
    (place / name).write_text(text)
    manifest = json.loads((place / MANIFEST).read_text())
    size = (place / name).stat().st_size
    manifest["files"][name] = [size, saving._checksum(place / name)]
    (place / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plan.txt", "whet plan 99\n"),
        ("plan.txt", ""),
        ("graph.txt", "n0 = nonsense(\n"),
        ("graph.txt", "return graph(inputs=(), outputs=(), updates=())\n"),
        ("source.txt", "what is this"),
        ("signature.json", "{}"),
        ("signature.json", "[1, 2]"),
        ("report.json", "{}"),
        ("parameters.pt", "not a checkpoint"),
    ],
)
def test_what_cannot_be_read_is_said(saved: Path, tmp_path: Path, name: str, text: str) -> None:
    place = copied(saved, tmp_path)
    rewritten(place, name, text)
    with pytest.raises(StoreError, match="cannot be read") as caught:
        load(place)
    assert str(place) in str(caught.value)


def test_another_format(saved: Path, tmp_path: Path) -> None:
    place = copied(saved, tmp_path)
    (place / MANIFEST).write_text(json.dumps({"format": 7, "files": {}}))
    with pytest.raises(StoreError, match="another version of whet"):
        load(place)


def test_a_compiled_body_for_another_torch(tmp_path: Path) -> None:
    place = save(made("inductor")[1], tmp_path / "p")
    manifest = json.loads((place / "region" / "region.json").read_text())
    manifest["torch"] = "1.0.0"
    rewritten(place, "region/region.json", json.dumps(manifest))
    with pytest.raises(UnsupportedError, match="another torch or another processor") as caught:
        load(place)
    assert "torch 1.0.0" in str(caught.value)


def test_places_without_a_program(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(StoreError, match="there is no program in this folder"):
            load(place)


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    _, fast = made()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(StoreError, match="not written over something else"):
        save(fast, tmp_path / "mine")
    (tmp_path / "file").write_text("text")
    with pytest.raises(StoreError, match="cannot be saved"):
        save(fast, tmp_path / "file")
    with pytest.raises(StoreError, match="cannot be saved"):
        save(fast, tmp_path / "file" / "below")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


@torch.no_grad()
def test_saving_again_replaces_the_program(tmp_path: Path) -> None:
    model, fast = made("inductor")
    place = save(fast, tmp_path / "deep" / "p")
    held = load(place)
    want = held(X)["y"]
    model.fc.weight.mul_(2)
    assert save(optimized(model, X), place) == place
    assert not (place / "region").exists()
    model.count.zero_()
    same(load(place)(X)["y"], model(X)["y"])
    same(held(X)["y"], want)  # a program that is loaded does not lean on its folder
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["p"]


@torch.no_grad()
def test_where_names_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_exchange", lambda a, b: False)
    _, fast = made()
    for _ in range(2):
        save(fast, tmp_path / "p")
    assert [p.name for p in tmp_path.iterdir()] == ["p"]
    load(tmp_path / "p")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@torch.no_grad()
def test_killed_while_saving(tmp_path: Path) -> None:
    """At whatever moment: the folder is absent, or whole."""
    _, fast = made()
    place = tmp_path / "p"
    seen = set()
    for k in range(12):
        child = os.fork()
        if child == 0:
            while True:
                save(fast, place)
        time.sleep(0.001 + 0.006 * k)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen.add(place.exists())
        if place.exists():
            load(place)
    assert True in seen


def test_interrupted_while_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    _, fast = made()
    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(fast, tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    _, fast = made()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StoreError, match="on a disk with room"):
        save(fast, tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


class Odd:
    """A tree that only this process knows."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


def test_results_that_cannot_be_written_down(tmp_path: Path) -> None:
    class Gives(nn.Module):
        def forward(self, x: Tensor) -> Odd:
            return Odd(x + 1)

    pytree.register_pytree_node(Odd, lambda o: ([o.x], None), lambda x, _: Odd(*x))
    fast = optimized(Gives().eval(), X)
    with pytest.raises(StoreError, match="cannot be written down"):
        save(fast, tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_only_what_optimize_returned_is_saved(tmp_path: Path) -> None:
    _, fast = made()
    del vars(fast)["found"]
    with pytest.raises(StoreError, match=r"only what whet\.optimize returned"):
        save(fast, tmp_path / "p")


def test_regions_as_bytes(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a stored region is damaged"):
        saving.region_from(b"nonsense", tmp_path)


@torch.no_grad()
def test_switched_off_there_is_nothing_to_run(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = load(saved)
    monkeypatch.setenv("WHET", "off")
    with pytest.raises(InputError, match="the original is not in it"):
        again(X)
