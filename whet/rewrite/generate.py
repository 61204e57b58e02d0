"""`generate`: from the operator table to a library of proven rules, with no rule written by hand.

    define      what the record of each operator says that it is made of     expand
    enumerate   every graph of a scope, told apart by fingerprints           bank
    sift        equalities that the rules found so far do not give           sift
    prove       or refute; a counterexample may say which guard is missing   prove, guards
    lift        to the most general tensors, sizes, ranks and axes           lift
    join        outputs side by side, any number of them                     joint
    prune       what the others derive                                       prune

Scopes are independent, so they run side by side, and each keeps a journal of its verdicts: what was
killed goes on where it was. Everything is a function of the table, the scopes and this code.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from whet.errors import WhetError
from whet.ir.types import Poly
from whet.rewrite import joint
from whet.rewrite.bank import Bank
from whet.rewrite.conjecture import Conjecture, Form, Statement, build
from whet.rewrite.expand import expansions
from whet.rewrite.guards import guards, signs
from whet.rewrite.library import Entry
from whet.rewrite.lift import forms_of, holds, lifted
from whet.rewrite.prove import Prover
from whet.rewrite.prune import derivable, minimal, near
from whet.rewrite.rule import Refutation, Rule
from whet.rewrite.scopes import ACTIVATIONS, Scope
from whet.rewrite.sift import Sift
from whet.rewrite.sketch import Side, Sketch, Tree, leaves
from whet.rewrite.table import SCOPES

Tell = Callable[[str], None]
_MOST_GUARDS = 3
_TRIED = 60  # guards that a counterexample asks for
_LOOK_S = 1.0
_TRIALS = 2  # a bank has compared both sides already; what is wrong shows at once


@dataclass(frozen=True)
class Line:
    """One rule of a library: a conjecture's name and statement, and the scope that it is from."""

    name: str
    statement: str
    scope: str

    @property
    def conjecture(self) -> Conjecture:
        return Conjecture(f"{self.name}: {self.statement}")


@dataclass
class Outcome:
    """What a scope came to.

    Attributes:
        lines: rules, in the order in which they were found.
        graphs: how many graphs were enumerated.
        asked: conjectures that went to the prover.
        unknown: those that were neither proven nor refuted.
    """

    lines: list[Line]
    graphs: int
    asked: int
    unknown: list[str]


class Journal:
    """Verdicts that were reached, kept in a file as they are reached; none without a place."""

    def __init__(self, place: Path | None, scope: Scope, known: Sequence[Line] = ()) -> None:
        self.known: dict[str, bool] = {}
        self.outcome: Outcome | None = None
        self._path: Path | None = None
        if place is None:
            return
        place.mkdir(parents=True, exist_ok=True)
        key = hashlib.blake2b(f"{version()} {scope} {known}".encode(), digest_size=8).hexdigest()
        path = place / f"{scope.name.replace(' ', '-')}-{key}.jsonl"
        if path.exists():
            text = path.read_text(encoding="utf-8")
            for line in text.splitlines():
                self._read(line)
            if text and not text.endswith("\n"):  # cut off when it was killed
                path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
        self._path = path

    def _read(self, line: str) -> None:
        try:
            data = json.loads(line)
        except ValueError:
            return
        if "lines" in data:
            lines = [Line(**row) for row in data["lines"]]
            self.outcome = Outcome(lines, data["graphs"], data["asked"], data["unknown"])
        else:
            self.known[data["statement"]] = data["proven"]

    def note(self, statement: str, proven: bool) -> None:
        """One verdict."""
        self.known[statement] = proven
        self._write({"statement": statement, "proven": proven})

    def close(self, outcome: Outcome) -> None:
        """The scope is done."""
        rows = [{"name": x.name, "statement": x.statement, "scope": x.scope} for x in outcome.lines]
        self._write({"lines": rows, "graphs": outcome.graphs, "asked": outcome.asked,
                     "unknown": outcome.unknown})  # fmt: skip

    def _write(self, data: Mapping[str, object]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(data, ensure_ascii=False) + "\n")


class Explorer:
    """Finds the rules of one scope, as far as they do not follow from known ones."""

    def __init__(
        self, scope: Scope, tell: Tell, place: Path | None = None, known: Sequence[Line] = ()
    ) -> None:
        self.scope, self.tell, self.known = scope, tell, known
        self.journal = Journal(place, scope, known)
        self.prover = Prover(trials=_TRIALS)
        self.lines: list[Line] = []
        self.unknown: list[str] = []
        self.rules: dict[str, Conjecture] = {}

    def run(self) -> Outcome:
        """All of it, or what the journal says that it came to."""
        if self.journal.outcome is not None:
            return self.journal.outcome
        if not self.scope.size:
            return self._defined()
        bank = Bank(self.scope, self.tell)
        sift = Sift(bank, self._accept, self._derives, self.tell)
        for line in self.known:
            self._learnt(line)
            sift.learn(line.conjecture)
        sift.run()
        outcome = Outcome(self.lines, sum(bank.counts), sift.asked, self.unknown)
        self.journal.close(outcome)
        return outcome

    def _defined(self) -> Outcome:
        """What the records say."""
        asked = 0
        for sketch in expansions(self.scope.operators):
            asked += 1
            self.tell(f"{self.scope.name}: {sketch.name}")
            if holds(sketch, self.proven):
                general = lifted(sketch, self.proven).canonical()
                self._line(general if holds(general, self.proven) else sketch)
            else:
                self.unknown.append(sketch.text)
        outcome = Outcome(self.lines, 0, asked, self.unknown)
        self.journal.close(outcome)
        return outcome

    def proven(self, conjecture: Conjecture, form: Form) -> bool:
        """Whether a statement is proven, as far as that is not known."""
        statement = Statement(conjecture, form)
        text = statement.text
        if text not in self.journal.known:
            verdict = self.prover.prove(statement)
            self.journal.note(text, isinstance(verdict, Rule))
        return self.journal.known[text]

    def _learnt(self, line: Line) -> None:
        self.rules[f"{line.name} ({len(self.rules)})"] = line.conjecture

    def _derives(self, sketch: Sketch) -> bool:
        """Whether the rules found so far lead from one side to the other."""
        try:
            rule = Conjecture(f"sketch: {sketch.text}")
        except WhetError:
            return False
        text = f"derived: {rule.text}"
        if text not in self.journal.known:
            self.journal.note(text, derivable(rule, near(rule, self.rules), self.prover))
        return self.journal.known[text]

    def _accept(self, sketch: Sketch) -> Conjecture | None:
        found = self._guarded(sketch)
        if found is None:
            return None
        general = lifted(found, self.proven).canonical()
        if not holds(general, self.proven):  # names ran into each other: as it was, then
            general = found
        line = self._line(general)
        self._learnt(line)
        for wider in joined(general):
            if holds_text(wider, self.proven):
                self._line_of(f"{general.name}, as one", wider)
        for other in activated(general):
            if holds(other, self.proven):
                self._line(other)
        return line.conjecture

    def _guarded(self, sketch: Sketch) -> Sketch | None:
        """The sketch if it is provable, with a guard that counterexamples ask for if need be."""
        for _ in range(_MOST_GUARDS):
            if holds(sketch, self.proven):
                return self._with_fewer(sketch)
            try:
                verdict = self.prover.prove(Statement(Conjecture(f"lifted: {sketch.text}")))
            except WhetError:
                return None
            if not isinstance(verdict, Refutation):
                found = next((g for g in signs(sketch, self.scope) if holds(g, self.proven)), None)
                if found is None:
                    self.unknown.append(sketch.text)
                return found
            more = [*islice(guards(sketch, verdict.counterexample.scope, self.scope), _TRIED)]
            found = next((g for g in more if holds(g, self.proven)), None)
            if found is not None or not more:
                return found if found is None else self._with_fewer(found)
            sketch = more[-1]
        return None

    def _with_fewer(self, sketch: Sketch) -> Sketch:
        """The sketch without guards that later ones make needless."""
        for guard in sketch.test.split(" and ")[:-1]:
            kept = [g for g in sketch.test.split(" and ") if g != guard]
            fewer = replace(sketch, test=" and ".join(kept))
            if holds(fewer, self.proven):
                sketch = fewer
        return sketch

    def _line(self, sketch: Sketch) -> Line:
        return self._line_of(sketch.name, sketch.text)

    def _line_of(self, name: str, statement: str) -> Line:
        line = Line(name, statement, self.scope.name)
        self.lines.append(line)
        return line


def holds_text(statement: str, proven: Callable[[Conjecture, Form], bool]) -> bool:
    """Whether a statement is proven at all its forms."""
    try:
        conjecture = Conjecture(f"lifted: {statement}")
        return all(proven(conjecture, form) for form in forms_of(conjecture))
    except WhetError:
        return False


def joined(sketch: Sketch) -> Iterator[str]:
    """Statements with the parts of a concatenation as outputs: two, or any number of them."""
    if len(sketch.left) != 1 or not any(
        isinstance(s, Tree) and s.op == "concat" for s in (*sketch.left, *sketch.right)
    ):
        return
    for both in joint.split(sketch, _extents(sketch)):
        first, second = (set(leaves(s)) for s in both.left[:2])
        if not any(sketch.shapes[n] for n in first & second if n in sketch.shapes):
            continue  # nothing is gained by putting side by side what shares nothing
        wide = joint.family(both)
        yield wide if wide is not None else both.text


def _extents(sketch: Sketch) -> dict[Side, str]:
    """Extent along the axis of each part of a concatenation at a root, where it is one size."""
    found: dict[Side, str] = {}
    for root in (*sketch.left, *sketch.right):
        if not (isinstance(root, Tree) and root.op == "concat"):
            continue
        for part in root.args:
            if not isinstance(part, Tree):
                continue
            alone = Sketch((part,), (part,), sketch.shapes)
            try:
                conjecture = Conjecture(f"part: {alone.text}")
                statement = Statement(conjecture, next(forms_of(conjecture)))
                scope = statement.symbols
                (node,) = build(statement.sides.left, statement.leaves(scope), scope)
                axis = int(str(dict(conjecture_attrs(root))["axis"]))
                extent = node.shape[axis]
            except (WhetError, ValueError, IndexError):
                continue
            if isinstance(extent, Poly) and str(extent).isalnum():
                found[part] = str(extent)
    return found


def conjecture_attrs(tree: Tree) -> list[tuple[str, object]]:
    """Attributes of a tree as written."""
    from whet.rewrite.sketch import spelled

    return [(k, spelled(v)) for k, v in tree.attrs]


def activated(sketch: Sketch) -> Iterator[Sketch]:
    """The same with other functions of one number in the place of the one that scopes name."""
    first, *others = ACTIVATIONS

    def side(s: Side | None, name: str) -> Side | None:
        if not isinstance(s, Tree):
            return s
        args = tuple(side(a, name) for a in s.args)
        return Tree(name if s.op == first else s.op, s.attrs, args)

    for name in others:
        left, right = (tuple(side(s, name) for s in x) for x in (sketch.left, sketch.right))
        if left != sketch.left:
            yield Sketch(left, right, sketch.shapes, sketch.test)  # type: ignore[arg-type]


def generate(
    scopes: Sequence[Scope] = SCOPES, tell: Tell = lambda _: None,
    place: Path | None = None, jobs: int = 1,
) -> list[Outcome]:  # fmt: skip
    """What each scope comes to.

    Args:
        tell: gets lines of progress.
        place: folder for journals.
        jobs: scopes that run side by side.
    """
    found: dict[str, Outcome] = {}
    for number in sorted({s.wave for s in scopes}):
        known = [x for s in scopes if s.name in found for x in found[s.name].lines]
        wave = [s for s in scopes if s.wave == number]
        if jobs == 1:
            found |= {s.name: Explorer(s, tell, place, known).run() for s in wave}
        else:
            found |= _side_by_side(wave, tell, place, known, jobs)
    return [found[s.name] for s in scopes]


def _side_by_side(
    scopes: Sequence[Scope], tell: Tell, place: Path | None, known: Sequence[Line], jobs: int
) -> dict[str, Outcome]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing.managers import SyncManager

    context, own = multiprocessing.get_context("spawn"), (os.getpid(),)
    manager = SyncManager(ctx=context)
    manager.start(_attached, own)
    with manager, ProcessPoolExecutor(jobs, context, _attached, own) as pool:
        served = {p.pid for p in multiprocessing.active_children()}
        lines = manager.Queue()
        futures = {s.name: pool.submit(_explored, s, lines, place, known) for s in scopes}
        left = len(futures)
        try:
            while left:
                text = lines.get()
                if text is None:
                    left -= 1
                else:
                    tell(text)
        except BaseException:  # nobody waits for what is being explored: its journal is kept
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                if process.pid not in served:
                    process.kill()
            raise
        return {name: f.result() for name, f in futures.items()}


def _attached(parent: int) -> None:
    """A process that ends with the one that started it, however that ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _explored(scope: Scope, lines: object, place: Path | None, known: Sequence[Line]) -> Outcome:
    put: Callable[[str | None], None] = lines.put  # type: ignore[attr-defined]
    try:
        return Explorer(scope, put, place, known).run()
    finally:
        put(None)


def assembled(outcomes: Iterable[Outcome]) -> list[Line]:
    """All rules, each once, with names of their own."""
    seen: set[str] = set()
    names: dict[str, int] = {}
    found: list[Line] = []
    for outcome in outcomes:
        for line in outcome.lines:
            if line.statement in seen:
                continue
            seen.add(line.statement)
            names[line.name] = names.get(line.name, 0) + 1
            number = f" ({names[line.name]})" if names[line.name] > 1 else ""
            found.append(Line(line.name + number, line.statement, line.scope))
    return found


def tabulated(
    lines: Sequence[Line], tell: Tell = lambda _: None, place: Path | None = None
) -> list[Entry]:
    """The lines that are not derivable from the others, with what their proofs say.

    Args:
        place: folder for a journal.
    """
    prover = Prover()
    rules = {x.name: x.conjecture for x in lines}
    journal = Journal(place, Scope("pruning", 0, (), ()), lines)
    kept = minimal(rules, prover, tell, journal.known, journal.note)
    scopes = {x.name: x for x in lines}
    found: list[Entry] = []
    for name, rule in kept.items():
        proof = covered(rule, prover)
        if proof is not None:
            found.append(Entry(name, scopes[name].statement, scopes[name].scope, *proof))
    return found


def covered(rule: Conjecture, prover: Prover) -> tuple[str, str] | None:
    """What the proofs of a rule at its forms cover, and what it does to rounding."""
    verdicts = [prover.prove(Statement(rule, form)) for form in forms_of(rule)]
    proofs = [v.proof for v in verdicts if isinstance(v, Rule)]
    if len(proofs) < len(verdicts):
        return None
    kind = "bounded" if any(p.coverage.startswith("bounded") for p in proofs) else "all-shapes"
    forms = [v.statement.form for v in verdicts]
    parts = [f"width {f}" for f in dict.fromkeys(x.width for x in forms) if f]
    for name, _ in forms[0].ranks:
        ranks = sorted({r for x in forms for n, r in x.ranks if n == name})
        parts.append(f"rank of {name} {', '.join(map(str, ranks))}")
    for name, _ in forms[0].values:
        values = sorted({str(v) for x in forms for n, v in x.values if n == name})
        parts.append(f"{name} = {', '.join(values)}")
    covers = f"{kind} ({'; '.join(parts)})" if parts else kind
    return covers, str(proofs[0].floating)


def version() -> str:
    """A digest of the code that verdicts depend on; a scope is told apart by itself."""
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *here.parent.glob("ir/**/*.py")])
    files.remove(here / "table.py")
    digest = hashlib.blake2b(digest_size=8)
    for f in files:
        digest.update(f.read_bytes())
    return digest.hexdigest()
