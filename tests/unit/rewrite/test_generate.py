"""Rules are found from the operator table alone, the same each time, and resumed after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from whet.ir.ops import TABLE
from whet.ir.types import Poly, Size
from whet.rewrite import library
from whet.rewrite.bank import Bank
from whet.rewrite.conjecture import Conjecture, Statement
from whet.rewrite.decide import derivation
from whet.rewrite.expand import expansions
from whet.rewrite.generate import Explorer, assembled, generate, tabulated
from whet.rewrite.guards import guards
from whet.rewrite.lift import holds, lifted
from whet.rewrite.prove import Prover
from whet.rewrite.rule import Rule
from whet.rewrite.scopes import Scope
from whet.rewrite.sketch import Sketch, Tree
from whet.rewrite.table import SCOPES

SMALL = Scope("small", 2, ("x[M, K]", "y[M, K]", "a[K, N]"), ("matmul", "add", "concat"))
PROVER = Prover()


def proven(c: Conjecture, form: object) -> bool:
    return isinstance(PROVER.prove(c.text, form), Rule)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def statements() -> list[str]:
    return [x.statement for x in assembled(generate((SMALL,)))]


def test_what_a_small_scope_holds(statements: list[str]) -> None:
    merged = (
        "concat(matmul(x[*B, M], y[M, K]), matmul(x, z[M, N]), axis=-1) == "
        "matmul(x, concat(y, z, axis=1))"
    )
    assert merged in statements
    assert any("for i in range(T)" in s and "matmul" in s for s in statements)
    assert "add(x[*B], add(y[*B], z[*B])) == add(z, add(y, x))" in statements


def test_generation_is_reproduced_and_resumed(tmp_path: Path, statements: list[str]) -> None:
    tiny = Scope("tiny", 2, ("x[M, K]", "y[M, K]"), ("add", "relu"))
    first = Explorer(tiny, lambda _: None, tmp_path).run()
    (journal,) = tmp_path.glob("*.jsonl")
    whole = journal.read_text().splitlines()
    journal.write_text("\n".join([*whole[:3], whole[3][:20]]))  # killed in the middle of a line
    explorer = Explorer(tiny, lambda _: None, tmp_path)
    assert len(explorer.journal.known) == 3
    assert explorer.run().lines == first.lines
    again = Explorer(tiny, lambda _: None, tmp_path)
    assert again.journal.outcome is not None
    assert again.run().lines == first.lines
    found = tabulated(first.lines)
    assert library.parse(library.printed(found)) == found


_SCRIPT = """
from whet.rewrite import library
from whet.rewrite.expand import expansions
from whet.rewrite.generate import assembled, generate, tabulated
from whet.rewrite.scopes import Scope
from whet.rewrite.table import SCOPES
tiny = Scope("tiny", 2, ("x[M, K]", "y[M, K]", "s[()]"), ("mul", "concat"))
whole = Scope("wholes", 0, (), ("square", "silu", "softmax"))
print(library.printed(tabulated(assembled(generate({})))), end="")
"""


def _generated(scopes: str, seed: int) -> bytes:
    """What a process of its own generates, with another order of all hashed things."""
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    script = _SCRIPT.replace("{}", scopes)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, check=True
    )
    return done.stdout


def test_every_process_generates_the_same_bytes() -> None:
    first, second = (_generated("(whole, tiny)", seed) for seed in (1, 2))
    assert first == second
    assert b"mul(x[*B], sigmoid(x))" in first or b"silu(x[*B]) == mul(x, sigmoid(x))" in first
    assert first.count(b" == ") > 5


def test_the_library_is_what_is_generated(count: Callable[[int, int], int]) -> None:
    """The shipped table, byte for byte; a part that others do not prune in the short form."""
    if count(0, 1):
        assert _generated("SCOPES", 3) == library.PLACE.read_bytes()
    else:
        assert library.printed(library.entries()).encode() == library.PLACE.read_bytes()


def test_what_operators_are_made_of() -> None:
    found = {s.text for s in expansions(("softmax", "batch_norm", "layer_norm", "linear"))}
    assert any("exp(sub(x, reshape(amax" in t for t in found)
    affine = (
        "batch_norm(x[M, K, N], y[K], z[K], None, None, eps=e) == "
        "add(mul(x, reshape(rsqrt(add(z, e)), size=(K, 1))), "
        "reshape(mul(mul(-1, y), rsqrt(add(z, e))), size=(K, 1)))"
    )
    assert affine in found
    assert any("add(mul(layer_norm(x, None, None" in t for t in found)
    assert not any(t.startswith("linear") for t in found)  # its record sums up products
    (inverse,) = expansions(("sub",))
    assert inverse.text == "sub(x[M], y[M]) == add(x, mul(-1, y))"
    assert all(holds(s, proven) for s in expansions(("div", "silu", "square", "rms_norm")))


def test_a_bank_tells_graphs_apart() -> None:
    bank = Bank(SMALL)
    shared = [m for c in bank.members.values() for m in c]
    assert bank.counts[0] < bank.counts[1]
    assert len(shared) < sum(bank.counts)
    assert all(bank.level[c] == 0 for c, m in enumerate(bank.made) if m is None)


def test_lifting_goes_as_far_as_the_prover_agrees() -> None:
    def add(a: Tree | str, b: Tree | str) -> Tree:
        return Tree("add", (), (a, b))

    sketch = Sketch((Tree("relu", (), (add("x", "x"),)),), (Tree("relu", (), (add("x", "x"),)),),
                    {"x": ("M", "K")})  # fmt: skip
    assert lifted(
        sketch, proven
    ).canonical().text == "relu(add(x[*B], y[*B])) == relu(add(y, x))" or (
        "relu(add(x[*B], y[*B]))" in lifted(sketch, proven).canonical().text
    )
    wrong = Sketch(("x",), (add("x", "x"),), {"x": ("M",)})
    assert not holds(wrong, proven)


def _lifted(left: Tree, right: Tree | str, **shapes: str) -> str:
    """The text of the general rule that an equality at some sizes is of."""
    sketch = Sketch((left,), (right,), {n: tuple(s) for n, s in shapes.items()})
    assert holds(sketch, proven)
    return lifted(sketch, proven).canonical().text


def test_kernels_of_different_sizes_are_merged() -> None:
    """Sizes that meet in a formula alone are those that stood for the same one."""
    attrs = (("dilation", (1, 1)), ("groups", 1), ("padding", (0, 0)), ("stride", (2, 1)))

    def conv(w: Tree | str) -> Tree:
        return Tree("conv2d", attrs, ("x", w, None))

    def concat(a: Tree | str, b: Tree | str, axis: int) -> Tree:
        return Tree("concat", (("axis", axis),), (a, b))

    text = _lifted(concat(conv("w"), conv("v"), 1), conv(concat("w", "v", 0)),
                   x="NCHW", w="OCRQ", v="OCRQ")  # fmt: skip
    assert "y[L, K, H, R]" in text
    assert "z[J, K, H, R]" in text


def test_what_is_reshaped_is_so_from_any_sizes_to_any() -> None:
    def reshape(x: Tree | str, *size: Size) -> Tree:
        return Tree("reshape", (("size", size),), (x,))

    m, k = map(Poly.symbol, "MK")
    text = _lifted(Tree("relu", (), (reshape("x", m * k),)),
                   reshape(Tree("relu", (), ("x",)), m * k), x="MK")  # fmt: skip
    assert text == "relu(reshape(x[*B], size=s)) == reshape(relu(x), size=s)"
    text = _lifted(Tree("permute", (("dims", (0, 1)),), ("x",)), "x", x="MK")
    assert text == "permute(x[*B], dims=tuple(range(len(B)))) == x"


def test_dims_are_moved_before_or_after_any_axis() -> None:
    """And the rule is matched from either side: an axis is where the moved dims have it."""

    def turn(x: Tree | str) -> Tree:
        return Tree("permute", (("dims", (1, 0)),), (x,))

    def softmax(x: Tree | str, axis: int) -> Tree:
        return Tree("softmax", (("axis", axis),), (x,))

    text = _lifted(softmax(turn("x"), 0), turn(softmax("x", 1)), x="MK")
    moved = "permute(softmax(x, axis=p[a]), dims=p)"
    assert text == f"softmax(permute(x[*B], dims=p), axis=a) == {moved}"
    rule = {"turned": Conjecture(f"turned: {text}")}
    before = "softmax(permute({}, dims=(2, 0, 1)), axis=0)"
    after = "permute(softmax({}, axis={}), dims=(2, 0, 1))"
    x = "x[M, K, N]"
    for left, right, found in (
        (before.format(x), after.format("x", 2), ["turned"]),
        (after.format(x, 2), before.format("x"), ["turned"]),
        (before.format(x), after.format("x", 1), None),
    ):
        statement = Statement(Conjecture(f"at: {left} == {right}"))
        assert derivation(statement, rule, Prover()) == found


def test_constants_are_part_of_rules() -> None:
    scope = Scope("ones", 1, ("x[M, K]", "ones = full(size=(M, K), value=1.0)",
                              "eye = tril(triu(full(size=(K, K), value=1.0), 0), 0)"),
                  ("mul", "matmul"))  # fmt: skip
    found = [x.statement for x in assembled(generate((scope,)))]
    assert "mul(x[*B], full(size=(*B,), value=1.0)) == x" in found
    eye = "tril(triu(full(size=(M, M), value=1.0), diagonal=0), diagonal=0)"
    assert f"matmul(x[*B, M], {eye}) == x" in found
    assert len(found) == 2  # nothing is said of constants alone


def test_a_number_is_not_negative_where_the_proof_asks_for_it() -> None:
    given = {
        "stride": ["(s, t)"],
        "padding": ["(p, q)", "(p + b, q)"],
        "dilation": ["(1, 1)"],
        "groups": ["1"],
        "axis": ["2"],
        "before": ["b"],
        "after": ["b"],
        "value": ["0.0"],
    }
    scope = Scope("margin", 2, ("x[M, C, H, W]", "w[O, C, R, Q]"), ("conv2d", "pad"), given)
    (larger, *_) = [x.statement for x in assembled(generate((scope,))) if "pad(y[" in x.statement]
    assert "padding=(b + p, q)" in larger
    assert larger.endswith("if b >= 0")


def test_counterexamples_ask_for_guards() -> None:
    scope = Scope("guarded", 1, ("x[M]",), ("slice",), {"start": ["i"], "stop": ["j"]})
    sketch = Sketch(("x",), ("x",), {"x": ("M",)})
    found = [s.test for s in guards(sketch, {"i": 3, "j": 2, "M": 5}, scope)]
    assert "i <= j" in found


def test_scopes_name_operators_of_the_table() -> None:
    assert {op for s in SCOPES for op in s.operators} <= TABLE.keys()
    assert len({s.name for s in SCOPES}) == len(SCOPES)
    for s in SCOPES:
        assert len(s.assignments) >= 3
        assert len(set(s.assignments[0].values())) > 1


def test_the_library_is_in_order() -> None:
    entries = library.entries()
    assert library.parse(library.printed(entries)) == list(entries)
    assert len({e.name for e in entries}) == len(entries)
    covered = [e for e in entries if e.covers.startswith("all-shapes")]
    assert len(covered) >= 0.95 * len(entries)


_ORPHAN = """
import os, subprocess, sys, time
inner = ("import os, time; from whet.rewrite.generate import _attached; _attached(os.getppid());"
         "print(os.getpid(), flush=True); time.sleep(60)")
subprocess.Popen([sys.executable, "-c", inner]).wait()
"""


def test_a_worker_ends_with_whoever_started_it() -> None:
    outer = subprocess.Popen([sys.executable, "-c", _ORPHAN], stdout=subprocess.PIPE, text=True)
    assert outer.stdout is not None
    with outer.stdout as told:
        worker = Path("/proc", told.readline().strip())
        assert worker.exists()
        outer.kill()
        outer.wait()
        assert told.read() == "", "the pipe is closed once the worker has gone too"
