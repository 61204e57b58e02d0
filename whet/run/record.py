"""What was done to a model and what came of it: the report of one optimization, as data.

    Report  := model engine threads Stage* Rewrite* Gain* Blame* coverage … seconds by phase
    Stage   := name seconds spread error note      one measured state of the model
    Rewrite := rule where proof module             one step of the certificate, for reading
    Gain    := rules module times before after     what a rewrite does to the part that it changes
    Blame   := rules module error allowed          a rewrite left out because it was not exact
    Opaque  := target where reason                 a library call carried through untouched

Times are seconds of one call, medians of rounds in which all stages ran in turns. An error is
‖y − r‖ / ‖r‖ against the original in float64, the worst of the outputs; the original's own error is
that of the stage "original". `report/` makes tables of this, `to_json` makes files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from whet.errors import WhetError

VERSION = 1


class ReportError(WhetError):
    """A report that cannot be read."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A measured state of the model.

    Attributes:
        name: "original", "rewrites", "kernels", or what else was tried.
        seconds: median of one call; NaN where it was not timed, as after a wrong answer.
        spread: interquartile range of the calls over their median.
        error: relative error against float64; None where it was not computed.
        note: what ran it, or why it was not timed.
    """

    name: str
    seconds: float
    spread: float = 0.0
    error: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A rewrite that was applied: the rule, the user's line it hit, the proof in one line, and the
    module of the model that it is in."""

    rule: str
    where: str
    proof: str
    module: str = ""


@dataclass(frozen=True, slots=True)
class Tuned:
    """A group of operators whose kernel was searched for.

    Attributes:
        name: its operators, and the shape of its result.
        calls: in a run of the model.
        before_s, after_s: seconds of a call.
        trials, failed: schedules measured; those of them that did not run, or not right.
        by: what runs it now: "schedule", or "library".
    """

    name: str
    calls: int
    before_s: float
    after_s: float
    trials: int
    failed: int
    by: str


@dataclass(frozen=True, slots=True)
class Gain:
    """What a rewrite was measured to be worth where it was found.

    Attributes:
        rules: that it applies.
        module: where in the model, numbers that differ as stars.
        times: how often it occurs.
        before, after: seconds of the part that it changes, library calls one after another; NaN
            where there was no time to measure it.
        together: whether other rewrites change the same part, and this row is all of them.
        kept: whether the program has it.
    """

    rules: str
    module: str
    times: int
    before: float
    after: float
    together: bool = False
    kept: bool = True


@dataclass(frozen=True, slots=True)
class Blame:
    """A rewrite that was left out, because with it the program was not exact enough.

    Attributes:
        rules, module: as in `Gain`.
        error: of the program with it, relative to float64.
        allowed: what it may be.
    """

    rules: str
    module: str
    error: float
    allowed: float


@dataclass(frozen=True, slots=True)
class Opaque:
    """A library call that stayed opaque: which, the user's line, and why."""

    target: str
    where: str
    reason: str


@dataclass(slots=True)
class Report:
    """See the module's docstring. Filled in as the walk goes on, so one that was stopped tells too.

    Attributes:
        model: its name, or its class.
        engine: what runs the body: "original", "steps", "inductor" or
            "native".
        threads: threads that kernels were chosen for.
        stages: what was timed, the one named "original" among them.
        rewrites: in the order they were applied.
        gains: what rewrites were measured to be worth, alone and together.
        tuned: groups of operators whose kernels were searched for.
        blames: rewrites left out for their errors.
        coverage: how often each library call occurs in the captured model.
        kernels: how many clusters each kernel runs.
        fusion: what kernels said of a partition, and what that led to.
        opaques: calls that no record computes.
        dropped: run-time checks that the program does not make.
        fallbacks: calls that ran the original, by reason: the module's own counter, thus live.
        hits, misses: what the store was asked.
        notes: what went wrong and was worked around (a store in memory only), with how often.
        failures: kernels that did not run, by reason.
        phases: seconds spent, by phase.
        stop: why the walk ended: "Saturated", "Budget", "Interrupted", …
        plan: where the saved program lies, if it was saved.
    """

    model: str = ""
    engine: str = "original"
    threads: int = 0
    stages: list[Stage] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)
    gains: list[Gain] = field(default_factory=list)
    tuned: list[Tuned] = field(default_factory=list)
    blames: list[Blame] = field(default_factory=list)
    coverage: Mapping[str, int] = field(default_factory=dict)
    kernels: Mapping[str, int] = field(default_factory=dict)
    fusion: list[str] = field(default_factory=list)
    opaques: list[Opaque] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    fallbacks: Mapping[str, int] = field(default_factory=dict)
    hits: int = 0
    misses: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, int] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    stop: str = ""
    plan: str = ""

    @property
    def original(self) -> Stage | None:
        """The stage of that name; None where nothing was measured."""
        return self.stage("original")

    @property
    def original_error(self) -> float | None:
        """The original's own error against float64."""
        return self.original.error if self.original else None

    @property
    def kept(self) -> Stage | None:
        """The stage that the program is: the original, or the fastest of the others."""
        others = [s for s in self.stages if s.name != "original" and not math.isnan(s.seconds)]
        if self.engine == "original" or not others:
            return self.original
        return min(others, key=lambda s: s.seconds)

    @property
    def speedup(self) -> float:
        """Seconds of the original over those of what was kept; 1 where nothing is known."""
        if self.original is None or self.kept is None or not self.kept.seconds:
            return 1.0
        return self.original.seconds / self.kept.seconds

    def stage(self, name: str) -> Stage | None:
        """The last stage of that name."""
        return next((s for s in reversed(self.stages) if s.name == name), None)

    def __str__(self) -> str:
        return (
            f"{self.model}: {self.speedup:.2f}x, {len(self.rewrites)} rewrites, "
            f"{len(self.opaques)} opaque, engine {self.engine}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data; `Report.from_json` takes it back."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in data.items():
            if name in _ROWS:
                data[name] = [{k: _plain(v) for k, v in asdict(row).items()} for row in value]
            elif isinstance(value, Mapping):
                data[name] = dict(value)
        return {"whet report": VERSION} | data

    @classmethod
    def from_json(cls, data: object) -> Report:
        """The report of `to_json`.

        Raises:
            ReportError: another version, or something else altogether.
        """
        if not isinstance(data, Mapping) or data.get("whet report") != VERSION:
            got = data.get("whet report") if isinstance(data, Mapping) else type(data).__name__
            raise ReportError(
                "this is not a report that can be read here",
                expected=f'{{"whet report": {VERSION}, …}}', got=got,
                hint="optimize the model again with this version of whet",
            )  # fmt: skip
        values = {k: v for k, v in data.items() if k != "whet report"}
        try:
            for name, row in _ROWS.items():
                values[name] = [row(**cells) for cells in values.get(name, ())]
            values["stages"] = [_timed(stage) for stage in values["stages"]]
            values["gains"] = [_measured(gain) for gain in values["gains"]]
            return cls(**values)
        except TypeError as fault:
            raise ReportError(
                "a report has other fields than expected",
                expected=", ".join(f.name for f in fields(cls)), got=fault,
            ) from fault  # fmt: skip


_Row = Stage | Rewrite | Gain | Tuned | Blame | Opaque
_ROWS: Mapping[str, type[_Row]] = {
    "stages": Stage,
    "rewrites": Rewrite,
    "gains": Gain,
    "tuned": Tuned,
    "blames": Blame,
    "opaques": Opaque,
}


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _timed(stage: Stage) -> Stage:
    return stage if stage.seconds is not None else replace(stage, seconds=math.nan)


def _measured(gain: Gain) -> Gain:
    known = gain.before is not None and gain.after is not None
    return gain if known else replace(gain, before=math.nan, after=math.nan)
