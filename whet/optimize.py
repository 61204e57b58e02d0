"""The walk: a model goes in, a proven, measured, faster program comes out.

    capture   the model becomes a Graph                                   whet.capture
    rewrite   proven rules, searched with predicted cost                  whet.rewrite, whet.search
    generate  one C program: groups of operators in tuned kernels         whet.run.fusing, .tuned
    native    or of library calls, in planned memory                      whet.run.native
    kernels   the library kernel of each cluster, by measured time        whet.run.choice
    engines   or library calls from Python, or one compiled region        whet.run.engine
    launched  on a device: recordings of library calls, regions, groups   whet.run.launched
    measure   everything against the original, in turns; errors against float64
    program   the fastest that is right, or the original                  whet.run.module

This is the only place where the searches are wired together. A reader who opens only this file
knows the system.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from whet.backend.library import run_opaque
from whet.backend.lowered import lower
from whet.capture.captured import Captured
from whet.capture.torch import capture
from whet.errors import InputError, UnsupportedError, WhetError
from whet.fuse.partition import Partition
from whet.ir.graph import Graph
from whet.ir.interp import evaluate
from whet.machine import Machine
from whet.machine.target import Target
from whet.plan import Plan
from whet.rewrite import certificate
from whet.rewrite.prove import Prover
from whet.run import recall
from whet.run.calling import Runner
from whet.run.choice import Chooser
from whet.run.cuda import Cuda, at_hand
from whet.run.engine import region
from whet.run.gains import Stopwatch, outrun
from whet.run.grouping import SHORTEST_S, USUAL_S, Grouping, reserves
from whet.run.guilty import acquitted
from whet.run.launched import Launched
from whet.run.measure import choose, finalists, interleaved, promising, rather
from whet.run.module import Found, Optimized
from whet.run.native import native
from whet.run.oracle import Oracle
from whet.run.parameters import Parameters
from whet.run.program import Program
from whet.run.record import Opaque, Report, Stage
from whet.run.rehearsal import streams
from whet.run.rewriting import Proofs, Rewritten, Rules, rewritten, texts
from whet.run.save import region_bytes
from whet.run.spread import settled
from whet.run.stages import NOTES
from whet.run.tuned import Tuner
from whet.run.untouched import untouched
from whet.search import Budget, StopReason
from whet.store import Store

SWITCHES = frozenset({"rewrites", "libraries", "regions", "native", "generated"})
"""What can be switched off, to see what each is worth."""

MEASURE_S = 6.0


def optimize(
    model: nn.Module,
    inputs: Sequence[Any] | Tensor,
    kwargs: Mapping[str, Any] | None = None,
    *,
    captured: Captured | None = None,
    budget_s: float = 60.0,
    strict: bool = False,
    store: Store | None = None,
    disable: Collection[str] = (),
    tune_s: float = 0.0,
    device: Cuda | None = None,
    progress: Callable[[str], None] | None = None,
) -> Optimized:
    """Find a faster program for a module, for inputs like these.

    Args:
        model: any module that torch.export traces; it is not changed.
        inputs: example positional arguments; a lone tensor stands for one argument. Their shapes,
            element types and fixed values are what the program is for.
        kwargs: example keyword arguments.
        captured: the model's graph for these inputs, where the way in already made one (ONNX).
        budget_s: seconds to spend; what was found by then is measured and used.
        strict: raise instead of falling back: on library calls without a record now, and on calls
            that the program is not for later.
        store: where measured choices and finished programs are kept; the user's own by default.
        disable: any of "rewrites", "libraries", "regions", "native", "generated".
        tune_s: seconds to spend, beyond `budget_s`, on searching schedules of the program's
            kernels; with 0 they have the best of a few drafts, or what tuning has found before.
            Else no program is taken from the store as a whole.
        device: what runs the model, where it is not the one that its tensors lie on.
        progress: called with a line now and then.

    Returns:
        A module with the same signature and state, and a `report`. It runs the original where
        nothing was measured faster. Interrupted by Ctrl-C it returns the best so far.

    Raises:
        CaptureError: the model cannot be brought in.
        UnsupportedError: with `strict`, a library call has no record.
    """
    unknown = set(disable) - SWITCHES
    if unknown:
        raise WhetError(
            "unknown switch", expected=", ".join(sorted(SWITCHES)), got=", ".join(sorted(unknown))
        )
    args = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    walk = _Walk(
        model, args, dict(kwargs or {}), budget_s, strict, store or Store.open(),
        frozenset(disable), progress or (lambda line: None), captured, tune_s,
    )  # fmt: skip
    if (cuda := device or at_hand(model, [*args, *(kwargs or {}).values()])) is not None:
        walk.launched = Launched(cuda, walk.store, failures=walk.chooser.failures)
    with torch.no_grad(), untouched(model, args, kwargs):
        return walk.run()


@dataclass
class _Candidate:
    """A program that might take the original's place."""

    name: str
    program: Program | None
    rewritten: Rewritten
    region: bytes | None = None
    error: float = 0.0


@dataclass
class _Walk:
    """The state of one optimization; each method is one room of the house."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    budget_s: float
    strict: bool
    store: Store
    disable: frozenset[str]
    progress: Callable[[str], None]
    captured: Captured | None = None
    tune_s: float = 0.0
    machine: Machine = field(default_factory=Machine.detect)
    report: Report = field(default_factory=Report)
    began: float = field(default_factory=time.monotonic)
    recalls: int = 0
    unsure: bool = False
    tuned_whole: bool = False
    launched: Launched | None = None  # where the model lies on a device

    def __post_init__(self) -> None:
        libraries, region = ("libraries" not in self.disable, "regions" not in self.disable)
        self.chooser = Chooser(self.store, self.machine, libraries, region)

    def run(self) -> Optimized:
        with self._phase("capture"):
            captured = self._capture()
        with self._phase("oracle"):
            oracle = self._oracle(captured)
        place = recall.place(captured.graph, self.machine, self.disable, texts())
        with self._phase("recall"):
            best = None if self.tune_s or self.launched else self._recalled(place, captured, oracle)
        if best is None:
            best = self._searched(captured, oracle)
            self._describe(best)
            self._keep(place, captured, best)
        self._describe(best)
        return self._module(captured, best)

    def _describe(self, best: _Candidate) -> None:
        """What the report says of the program that was kept, and of the way there."""
        report, chooser = self.report, self.chooser
        report.rewrites = list(best.rewritten.rows)
        report.gains = list(best.rewritten.gains)
        report.engine = best.program.engine if best.program else "original"
        report.kernels = dict(best.program.lowered.kernels) if best.program else {}
        report.hits, report.misses = self.recalls + chooser.hits, chooser.measured
        report.failures = dict(chooser.failures)
        report.notes = dict(self.store.notes)

    def _module(self, captured: Captured, best: _Candidate) -> Optimized:
        """What the user gets, with all that saving it takes."""
        graph = best.rewritten.graph
        optimized = Optimized(
            self.model, best.program, captured.signature,
            updates=tuple(leaf.name for leaf, _ in captured.graph.updates),
            report=self.report, strict=self.strict,
        )  # fmt: skip
        vars(optimized)["found"] = Found(
            captured.graph, graph, self._plan(captured, best), best.region,
            self._parameters(graph, captured), best.rewritten.journals,
        )  # fmt: skip
        self.report.fallbacks = optimized.fallbacks
        return optimized

    def _capture(self) -> Captured:
        captured = self.captured or capture(self.model, self.args, self.kwargs)
        self.report.model = type(self.model).__name__
        self.report.threads = torch.get_num_threads()
        self.report.coverage = dict(captured.coverage)
        self.report.opaques = [Opaque(f.target, f.where, f.reason) for f in captured.foreign]
        self.report.dropped = list(captured.dropped)
        if self.strict and captured.foreign:
            raise UnsupportedError(
                "library calls without a record, met where they are forbidden",
                expected="operators of the table only (strict)",
                got="\n".join(map(str, captured.foreign)),
                hint="write a record (docs/adding-an-operator.md), or leave strict off",
            )
        return captured

    def _oracle(self, captured: Captured) -> Oracle:
        def exact() -> Sequence[Tensor]:
            feeds = captured.feeds(self.args, self.kwargs)
            return evaluate(captured.graph, feeds, library=run_opaque)

        return Oracle(self.model, self.args, self.kwargs, exact)

    def _searched(self, captured: Captured, oracle: Oracle) -> _Candidate:
        """Rewrite, lower, compile, measure; the best, which may be the original."""
        candidates: list[_Candidate] = []
        try:
            with self._phase("rewrite"):
                variants = self._rewrite(captured, oracle)
            graph = variants[0][1]
            if "rewrites" not in self.disable:
                candidates.append(self._steps("rewrites", graph, captured))
            if self.report.stop == str(StopReason.INTERRUPTED):
                raise KeyboardInterrupt  # the search has kept it to itself: nothing more is begun
            if self.launched is not None:
                with self._phase("launched"):
                    self.progress("programs for the device")
                    made = self.launched.variants(
                        self._affordable(variants), lambda g: self._parameters(g, captured),
                        self._inputs(captured), left=self._left, without=self.disable,
                    )  # fmt: skip
                    candidates += [_Candidate(*row) for row in made]
                variants = []
            _, least = reserves(self.budget_s)
            wanted = self.budget_s >= SHORTEST_S and self._left() > 1.2 * least
            wanted = wanted or self.tune_s > 0
            if not self.disable & {"native", "generated"} and wanted and variants:
                with self._phase("generate"):
                    self.progress("tuning kernels")
                    candidates += self._generated(variants, captured)
            if self._left() < 0.2 * self.budget_s and any(c.region for c in candidates):
                variants = []  # a short walk: no time for programs that are mostly slower
            if "native" not in self.disable and variants:
                with self._phase("native"):
                    self.progress("compiling a native program")
                    for name, variant in self._affordable(variants):
                        name = f"native-{name}" if name else "native"
                        candidates += self._natives(name, variant, captured)
            enough = self._left() < 0.5 * self.budget_s and len(candidates) > 2
            if enough and (self.tuned_whole or self._outdone(candidates, captured)):
                variants = []  # there are programs already, and most of those are better
            if "libraries" not in self.disable and variants:
                with self._phase("kernels"):
                    self.progress("choosing kernels")
                    candidates.append(self._steps("kernels", graph, captured, self.chooser))
                    last, source = variants[-1]
                    if last and self._left() > 0.5 * self.budget_s:
                        candidates.append(self._steps(last, source, captured, self.chooser))
                        if self._is_slower(candidates[-2], candidates[-1], captured):
                            variants.insert(0, variants.pop())
            if "regions" not in self.disable and variants:
                with self._phase("compile"):
                    self.progress("compiling the body")
                    for name, variant in self._affordable(variants):
                        name = {"": "region", "unmerged": name}.get(name, f"region-{name}")
                        candidates += self._regions(name, variant, captured)
        except KeyboardInterrupt:
            self.report.stop = "Interrupted"
        with self._phase("measure"):
            return self._measure(captured, candidates, oracle)

    def _affordable(
        self, variants: Sequence[tuple[str, Rewritten]]
    ) -> Iterator[tuple[str, Rewritten]]:
        """The first graph, and others while there is much time left."""
        for k, variant in enumerate(variants):
            if k == 0 or self._left() > (0.25 + 0.15 * k) * self.budget_s:
                yield variant

    def _rewrite(self, captured: Captured, oracle: Oracle) -> list[tuple[str, Rewritten]]:
        """The graphs worth compiling by name, the most rewritten first, the captured one last."""
        if "rewrites" in self.disable:
            return [("", Rewritten(captured.graph))]
        self.progress("searching rewrites")
        budget = Budget(seconds=0.3 * self.budget_s)
        chooser = replace(self.chooser, region=False)
        at, watched = self.launched, 0.1 * self.budget_s
        watch = at.watch(watched) if at else Stopwatch(chooser, watched, self.store)
        found = rewritten(captured.graph, self.store, budget, watch=watch)
        self.report.stop = found[0].stop
        if found[0].steps and found[0].stop != str(StopReason.INTERRUPTED):
            best, self.report.blames = acquitted(
                found[0], lambda g: self._judged(g, captured, oracle), oracle.allowed,
                lambda names: rewritten(
                    captured.graph, self.store, budget, watch=watch, rules=Rules().without(names)
                )[0],
            )  # fmt: skip
            if self.report.blames:
                found = [best, *(f for f in found[-1:] if f.graph != best.graph)]
        names = ("", "unmerged", "unrewritten")
        return [(names[k] if f.steps or not k else names[-1], f) for k, f in enumerate(found)]

    def _judged(self, graph: Graph, captured: Captured, oracle: Oracle) -> tuple[float, bool]:
        """A graph's error as plain library calls, and whether it may stand for the original's."""
        program = self._steps("rewrites", Rewritten(graph), captured).program
        assert program is not None
        return oracle.judge(self._result(program, captured))

    def _result(self, program: Program, captured: Captured) -> Any:
        """What a program answers to the example inputs."""
        leaves = captured.signature.flatten(self.args, self.kwargs)
        assert leaves is not None
        return captured.signature.unflatten(program(captured.signature.inputs(leaves)), leaves)

    def _is_slower(self, new: _Candidate, old: _Candidate, captured: Captured) -> bool:
        """Whether a program is surely slower than another, in turns."""
        inputs = self._inputs(captured)
        pair = [lambda p=c.program: p and p(inputs) for c in (new, old)]
        return outrun(*pair, seconds=MEASURE_S / 6)

    def _outdone(self, candidates: Sequence[_Candidate], captured: Captured) -> bool:
        """Whether kernels of our own surely beat library calls in the same kind of program."""
        named = {c.name: c for c in candidates}
        ours, theirs = named.get("recast", named.get("generated")), named.get("native")
        return ours is not None and theirs is not None and self._is_slower(theirs, ours, captured)

    def _left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget_s - (time.monotonic() - self.began)

    def _parameters(self, graph: Graph, captured: Captured) -> Parameters:
        at = self.launched.cuda.device if self.launched else "cpu"
        constants = {k: v.to(at) for k, v in graph.constants.items() if isinstance(v, Tensor)}
        return Parameters(constants, self.model, [n.name for n in graph.parameters])

    def _steps(
        self, name: str, graph: Rewritten, captured: Captured, chooser: Chooser | None = None
    ) -> _Candidate:
        """Library calls one after another, from Python; plain ones without a chooser."""
        at, plain = self.launched, replace(self.chooser, libraries=False)
        lowered = at.plain(graph.graph) if at else lower(graph.graph, chooser or plain)
        return _Candidate(name, Program(lowered, self._parameters(graph.graph, captured)), graph)

    def _regions(self, name: str, graph: Rewritten, captured: Captured) -> Iterator[_Candidate]:
        """The body compiled as one region; nothing where that cannot be done, counted."""
        lowered = lower(graph.graph, self.chooser, literals="inline")
        parameters = self._parameters(graph.graph, captured)
        derived = lowered.derive(parameters.tensors())
        try:
            built = region(lowered, self._inputs(captured), derived)
        except UnsupportedError as fault:
            self.chooser.failures[f"inductor: {fault.got or fault.summary}"] += 1
            return
        program = Program(lowered, parameters, built.runner().bind, "inductor")
        yield _Candidate(name, program, graph, region_bytes(built))

    def _generated(
        self, variants: Sequence[tuple[str, Rewritten]], captured: Captured
    ) -> Iterator[_Candidate]:
        """Groups of operators in tuned kernels, in several ways: see `Grouping`."""
        (_, graph), *others = variants
        reserved = reserves(self.budget_s)
        budget, last = (Budget(seconds=max(0, self._left() - s)) for s in reserved)
        chooser = replace(self.chooser, region=False)
        threads = torch.get_num_threads()
        far = streams(graph.graph, Target.of(self.machine, threads).l3)
        tuner = Tuner(self.store, self.machine, chooser, threads, budget, last, far)
        rooms = Grouping(tuner, self.report, self._left, reserved[0], self.tune_s, self.progress)
        try:
            prover = None if "rewrites" in self.disable else Prover(Proofs(self.store))
            for name, kept, partition in rooms.found(graph, others, prover):
                yield from self._natives(name, kept, captured, (partition, tuner))
        finally:
            self.began += rooms.beyond_s
            self.tuned_whole = rooms.whole
            self.chooser.failures.update(tuner.failures)

    def _natives(
        self, name: str, graph: Rewritten, captured: Captured,
        grouped: tuple[Partition | None, Tuner | None] = (None, None),
    ) -> Iterator[_Candidate]:  # fmt: skip
        """The body as one C program; nothing where that cannot be done, counted."""
        try:
            parameters = self._parameters(graph.graph, captured)
            chooser = replace(self.chooser, region=False)
            built, lowered = native(graph.graph, chooser, parameters.tensors(), *grouped)
            program = Program(lowered, parameters, Runner.of(built).bind, "native")
        except (UnsupportedError, InputError) as fault:
            self.chooser.failures[f"native: {fault.got or fault.summary}"] += 1
            return
        yield _Candidate(name, program, graph, region_bytes(built))

    def _measure(
        self, captured: Captured, candidates: Sequence[_Candidate], oracle: Oracle
    ) -> _Candidate:
        """The fastest candidate that is right and surely faster than the original, or that.

        Timed is what the user will call, checks of the arguments included.
        """
        right: dict[str, _Candidate] = {}
        stages: list[Stage] = []
        calls: dict[str, Callable[[], object]] = {
            "original": lambda: self.model(*self.args, **self.kwargs)
        }
        for c in candidates:
            assert c.program is not None
            c.error, good = oracle.judge(self._result(c.program, captured))
            if good:
                right[c.name], module = c, self._module(captured, c)
                calls[c.name] = lambda m=module: m(*self.args, **self.kwargs)  # type: ignore[misc]
            else:
                note = f"rejected: error {c.error:.2e}, allowed {oracle.allowed:.2e}"
                stages.append(Stage(c.name, math.nan, error=c.error, note=note))
        if self.launched is not None:
            calls = {name: self.launched.cuda.waited(call) for name, call in calls.items()}
        self.progress("measuring")
        seconds = MEASURE_S * min(1.0, max(self.budget_s, 1.0) / USUAL_S)
        screened = interleaved(calls, budget_s=seconds / 6, min_rounds=3, warmup=1, settle=settled)
        calls = {name: calls[name] for name in finalists(screened, "original")}
        timings = interleaved(calls, budget_s=seconds, min_rounds=9, settle=settled)
        if choose(timings, "original") == "original" and promising(timings, "original"):
            self.progress("measuring again: the machine is noisy")
            timings = interleaved(calls, budget_s=3 * seconds, min_rounds=21, settle=settled)
        for name, t in (screened | timings).items():
            error = right[name].error if name in right else oracle.error
            stages.append(Stage(name, t.median_s, t.spread, error, NOTES[name]))
        self.report.stages = stages
        self.unsure = promising(timings, "original")
        better = [name for name, c in right.items() if c.rewritten.steps]  # as predicted
        name = rather(choose(timings, "original"), better, timings, "original")
        return right.get(name, _Candidate("original", None, Rewritten(captured.graph)))

    def _recalled(self, place: str, captured: Captured, oracle: Oracle) -> _Candidate | None:
        """What an earlier run found for the same graph here, if it is still right."""
        found = recall.recall(
            self.store, place, captured.graph, self._parameters(captured.graph, captured),
            self.budget_s,
        )  # fmt: skip
        if found is None:
            return None
        if found.program is not None:
            if not oracle.judge(self._result(found.program, captured))[1]:
                return None
        before = Report.from_json(found.report)
        names = ("stages", "rewrites", "gains", "tuned", "blames", "kernels", "engine", "stop")
        for name in names:
            setattr(self.report, name, getattr(before, name))
        self.recalls += 1
        steps = tuple(map(certificate.parse, found.plan.rewrites))
        kept = Rewritten(found.graph, steps, tuple(before.rewrites), before.stop)
        return _Candidate("recalled", found.program, kept, found.region)

    def _keep(self, place: str, captured: Captured, best: _Candidate) -> None:
        stopped = self.report.stop == "Interrupted" or (best.program is None and self.unsure)
        if stopped or self.launched is not None:  # of a device the store has each group
            return
        plan = self._plan(captured, best)
        recall.keep(
            self.store, place, plan, best.rewritten.graph, best.region, self.report.to_json(),
            self.budget_s,
        )  # fmt: skip

    def _plan(self, captured: Captured, best: _Candidate) -> Plan:
        program = best.program
        return Plan(
            captured.graph.digest, best.rewritten.graph.digest,
            program.engine if program else "original", torch.get_num_threads(),
            program.lowered.chosen if program else {}, best.rewritten.certificate,
        )  # fmt: skip

    def _inputs(self, captured: Captured) -> list[Tensor]:
        leaves = captured.signature.flatten(self.args, self.kwargs)
        assert leaves is not None
        return captured.signature.inputs(leaves)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.report.phases[name] = self.report.phases.get(name, 0.0) + time.monotonic() - start
