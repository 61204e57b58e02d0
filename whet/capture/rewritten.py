"""Rewrites and strategies that decide together: an outer loop over what proven rules lead to.

    candidate  the step's graph after a rule at all its places, again and again (whet.rewrite.space)
    price      seconds of the fastest strategy known so far, with the candidate's own blocks solved
               and simulated
    search     the cheapest candidates get a search for a strategy of their own, which begins there

What is neutral on one device may win on eight: a product told apart can be cut where the whole
could not, products that are joined fill a device that has an eighth of the samples. The simulation
decides; a result is never worse than what was found without rewrites.

A plan says which rules it stands on, at which places, and how each was proven. Who reads it proves
them again (`applied`); where a plan is proven at another size, the same rules are applied there to
all their places (`again`), and what comes out is held against the step as it was.

Sources: Unger et al., "Unity", OSDI 2022 (algebraic rewrites and parallelization in one search).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from whet.capture.training import Training, training
from whet.errors import WhetError
from whet.ir.graph import Graph
from whet.parallel import blocks
from whet.parallel.library import Library
from whet.parallel.planfile import PlanFileError
from whet.parallel.search import Found, Search
from whet.parallel.strategy import Strategy
from whet.rewrite.certificate import CertificateError, Step, parse, step_of, verify_certificate
from whet.rewrite.conjecture import Conjecture
from whet.rewrite.conjectures import CONJECTURES
from whet.rewrite.dividing import DIVIDING
from whet.rewrite.match import apply_matches
from whet.rewrite.pattern import matches
from whet.rewrite.prove import Prover
from whet.rewrite.saturate import is_safe
from whet.rewrite.space import RewriteSpace
from whet.search import Beam, Budget, Cost, Source, search

RULES: Mapping[str, Conjecture] = {**DIVIDING, **CONJECTURES}
DEPTH = 3  # rules in a row
WIDTH = 4  # candidates from which rules are applied further
OWN = 2  # candidates that are searched by themselves
GAIN = 0.998  # what a rewrite has to bring the time to, or the step stays as it is
LARGE = 4000  # nodes of a step beyond which rewrites are left out unless asked for

Searching = Callable[[Library, float, Sequence[Strategy]], Search]


@dataclass(frozen=True, slots=True)
class Together:
    """What rewrites and strategies found together.

    Attributes:
        step: rewritten; the given one where no rewrite pays.
        library: of its blocks.
        found: the strategy.
        without: seconds of the best strategy of the step as it was.
        looked: rewritten graphs that were simulated.
        searched: those that had a search of their own.
    """

    step: Training
    library: Library
    found: Found
    without: float
    looked: int
    searched: int

    def __str__(self) -> str:
        head = f"rewrites: {self.looked} graphs simulated, {self.searched} searched"
        if not self.step.rewrites:
            return f"{head}; none pays"
        names = ", ".join(f"{r.name} ({len(r.places)} places)" for r in steps(self.step))
        gain = self.without / self.found.simulated.seconds
        return f"{head}; {gain:.3f}x the best without, by {names}"


def steps(step: Training) -> list[Step]:
    """The rewrites that a step stands on."""
    return [s for s in map(parse, step.rewrites) if isinstance(s, Step)]


def rewritten(step: Training, graph: Graph, lines: Iterable[str]) -> Training:
    """A step whose graph was rewritten.

    Args:
        graph: equal to the step's, with its inputs and outputs in order.
        lines: the certificate.
    """
    joint = replace(step.joint, graph=graph)
    model = blocks.model(graph, joint.gradients, step.model.batch, small=step.least)
    return replace(
        step, joint=joint, model=model, rewrites=(*step.rewrites, *lines), given=step.reference
    )


def applied(step: Training, lines: Sequence[str], prover: Prover | None = None) -> Training:
    """The rewrites of a certificate, each proven anew.

    Raises:
        PlanFileError: the step is not the one that they were found for, or one is not proven.
    """
    if not lines:
        return step
    try:
        graph = verify_certificate(step.joint.graph, lines, prover)
    except CertificateError as fault:
        raise PlanFileError(
            "the plan is for something else", expected="the model that its rewrites were found for",
            got=fault.summary + (f" ({fault.got})" if fault.got is not None else ""),
            where=fault.where, hint="search again: whet parallelize",
        ) from fault  # fmt: skip
    return rewritten(step, graph, lines)


def again(step: Training, names: Sequence[str], prover: Prover | None = None) -> Training:
    """Rules by name, each at all its places: what `together` did, at another size.

    Raises:
        WhetError: a rule has no place here.
    """
    prover, graph, lines = prover or Prover(), step.joint.graph, list[str]()
    for name in names:
        found = [m for m in matches(graph, RULES[name], prover) if is_safe(m)]
        if not found:
            raise WhetError("a rule of the plan has no place in its twin", got=name)
        before, graph = graph, apply_matches(graph, found)
        lines.append(str(step_of(before, found, graph)))
    return rewritten(step, graph, lines) if lines else step


def of_plan(data: Mapping[str, Any], name: str) -> Training:
    """The step that a plan is for, captured and rewritten.

    Raises:
        WhetError: it does not trace, or is no longer what the plan was made for.
    """
    source = data.get("source", {})
    step = training(
        name, int(data["model"]["batch"]), str(source.get("dtype", "float32")),
        inference=source.get("pass") == "forward",
    )  # fmt: skip
    return applied(step, [str(row["step"]) for row in data.get("rewrites", ())])


def rows(step: Training) -> list[dict[str, Any]]:
    """Rewrites as a plan says them: the rule, its proof, how many places, and the certificate."""
    return [
        {"rule": s.name, "places": len(s.places), "proof": s.places[0].proof, "step": str(s)}
        for s in steps(step)
    ]


def together(
    step: Training, library: Library, found: Found, searching: Searching, *, budget: float,
    rules: Mapping[str, Conjecture] = RULES,
) -> Together:  # fmt: skip
    """Search rewrites of a step and strategies for them.

    Args:
        found: what a search found for the step as it is.
        searching: makes the search of a library, with seconds and strategies to begin with.
        budget: seconds by the searches' clock, half of them to look, half to search.
    """
    loop = _Loop(step, library, found, searching, rules)
    clock = searching(library, 0.0, ()).clock
    looking = Budget(seconds=0.5 * budget, clock=clock, batch=1)
    search(loop.space, Beam(WIDTH, patience=DEPTH), looking)
    return loop.best(budget)


@dataclass(slots=True)
class _Loop:
    step: Training
    library: Library
    found: Found
    searching: Searching
    rules: Mapping[str, Conjecture]
    space: RewriteSpace = field(init=False)
    _seconds: dict[Graph, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.step.joint.graph
        self.space = RewriteSpace(graph, self.price, Prover(), self.rules, single=False)

    def price(self, graph: Graph) -> Cost:
        """The fastest of the strategies known, on a graph."""
        _, library = self._placed(graph)
        seconds = min(
            (ran.seconds for _, ran in self._begun(library)), default=Cost.IMPOSSIBLE.seconds
        )
        self._seconds[graph] = seconds
        return Cost(seconds, source=Source.SIMULATED)

    def _placed(self, graph: Graph) -> tuple[Training, Library]:
        if graph == self.step.joint.graph:
            return self.step, self.library
        lines = map(str, self.space.certificate(graph))
        step = rewritten(self.step, graph, lines)
        old = self.library
        return step, Library.of(step.model, old.cluster, old.optimizer, old.pins)

    def _begun(self, library: Library) -> list[tuple[Strategy, Any]]:
        """The known strategies on a library's blocks, as far as they can be and fit."""
        moves = self.searching(library, 0.0, ())
        rows = []
        for s in self._known():
            try:
                there = moves.carried(s)
                ran = library.simulator.simulate(library.place(there)) if there else None
            except WhetError:
                continue
            if there is not None and ran is not None and ran.fits:
                rows.append((there, ran))
        return rows

    def _known(self) -> list[Strategy]:
        """The best, the one of another kind that came next, and the best of each family."""
        second = [self.found.runner_up[0]] if self.found.runner_up else []
        members = sorted(self.found.baselines.values(), key=lambda x: x[1].seconds)
        return list(dict.fromkeys([self.found.best, *second, *(s for s, _ in members[:3])]))

    def best(self, budget: float) -> Together:
        """The best of the step as it is and of its rewrites, the cheapest of them searched."""
        without = self.found.simulated.seconds
        source = self.step.joint.graph
        ahead = sorted((x for x in self._seconds.items() if x[0] != source), key=lambda x: x[1])
        result = Together(self.step, self.library, self.found, without, len(ahead), 0)
        for k, (graph, seconds) in enumerate(ahead[:OWN]):
            if seconds > 1.05 * without:
                break
            step, library = self._placed(graph)
            also = [s for s, _ in self._begun(library)]
            try:
                own = self.searching(library, 0.5 * budget / OWN, also).run()
            except WhetError:
                continue
            result = replace(result, searched=k + 1)
            if own.simulated.seconds < GAIN * result.found.simulated.seconds:
                own = replace(own, baselines=self.found.baselines)
                result = replace(result, step=step, library=library, found=own)
        return result
