"""Every candidate of a search, written down as it was judged, and the way back to the best one.

A journal is JSON Lines, one event each, written whole and at once:

    begin    strategy, state, cost, …              the start state and its price
    round    kept, pulled                          the states kept, the proposals pulled before it
    refuted  n, place, how, before, after, reason, data
    scored   n, place, how, before, after, again, cost, reason, resources
    end      stop, best, pulled

States appear by fingerprint, `n` counts the candidates of the search, and `place` is a candidate's
position in what the space proposed that round. A process killed while writing leaves a torn last
line, which is dropped. One file may hold several searches; the last one is read.

`replay` walks the space again as the journal says, without pricing anything.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from whet.errors import SearchError
from whet.search.budget import Budget, StopReason
from whet.search.space import Candidate, Cost, Refutation, S, Scored, Source, Space


def fingerprint(state: Hashable) -> str:
    """A name for a state that is the same in every process: its `digest`, or a hash of its repr.

    Raises:
        SearchError: the state has neither a digest nor a repr of its own.
    """
    digest = getattr(state, "digest", None)
    if isinstance(digest, str):
        return digest
    if type(state).__repr__ is object.__repr__:
        raise SearchError(
            f"a {type(state).__name__} has no name that another process would agree on",
            expected="a `digest: str`, or a __repr__ that shows the whole value",
            got=repr(state),
        )
    return hashlib.sha256(repr(state).encode()).hexdigest()[:16]


class Journal:
    """A journal being written: to a file where `path` is given, else to `lines` in memory.

    An existing file is continued, after its torn last line, if any, is cut off. A disk that fills
    up later does not end the search: `lost` then counts the lines that could not be written.

    Raises:
        SearchError: the file cannot be opened for writing.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.lines: list[str] = []
        self.lost = 0
        self._names: dict[Hashable, str] = {}
        self._file = None
        if path is not None:
            try:
                Path(path).touch()
                # Unbuffered: each line is one write, which no signal can leave half done.
                self._file = open(path, "r+b", buffering=0)  # noqa: SIM115
                whole = self._file.read().rfind(b"\n") + 1
                self._file.truncate(whole)
                self._file.seek(whole)
            except OSError as error:
                raise SearchError(
                    "the journal cannot be written", where=path, got=error, hint="another path"
                ) from error

    def begin(self, strategy: object, start: Scored[S]) -> None:
        self._write("begin", strategy=repr(strategy), state=start.state, **_priced(start))

    def round(self, number: int, kept: Sequence[Scored[S]], pulled: int) -> None:
        self._write("round", round=number, kept=kept, pulled=pulled)

    def refuted(self, n: int, place: int, candidate: Candidate[S], why: Refutation) -> None:
        self._write(
            "refuted", n=n, place=place, candidate=candidate, reason=why.reason, data=why.data
        )

    def scored(
        self, n: int, place: int, candidate: Candidate[S], scored: Scored[S], *, again: bool
    ) -> None:
        priced = {} if again else _priced(scored)
        self._write("scored", n=n, place=place, candidate=candidate, again=again, **priced)

    def end(self, stop: StopReason, best: Scored[S], pulled: int) -> None:
        self._write("end", stop=stop, best=best.state, pulled=pulled)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, event: str, **fields: Any) -> None:
        line: dict[str, Any] = {"event": event}
        for name, value in fields.items():
            if name == "candidate":
                line["how"] = str(value.how)
                line["before"], line["after"] = self._name(value.before), self._name(value.after)
            elif name == "kept":
                line["kept"] = [self._name(scored.state) for scored in value]
            else:
                line[name] = self._name(value) if name in ("state", "best") else value
        self._append(json.dumps(line, default=repr))

    def _name(self, state: Hashable) -> str:
        if state not in self._names:
            self._names[state] = fingerprint(state)
        return self._names[state]

    def _append(self, line: str) -> None:
        if self._file is None:
            self.lines.append(line)
            return
        try:
            self._file.write(line.encode() + b"\n")
        except OSError:
            self.lost += 1


class NoJournal(Journal):
    """Writes nothing, and spends no time on fingerprints."""

    def _write(self, event: str, **fields: Any) -> None:
        pass


def _priced(scored: Scored[Any]) -> dict[str, Any]:
    cost = scored.cost
    return {
        "cost": {
            "seconds": None if math.isinf(cost.seconds) else cost.seconds,  # JSON has no infinity
            "bytes": cost.bytes,
            "source": cost.source,
            "spread": cost.spread,
        },
        "reason": scored.reason,
        "resources": dict(scored.resources),
    }


def _scored(state: S, event: Mapping[str, Any]) -> Scored[S]:
    cost = event["cost"]
    seconds = math.inf if cost["seconds"] is None else cost["seconds"]
    price = Cost(seconds, cost["bytes"], Source(cost["source"]), cost["spread"])
    return Scored(state, price, event["reason"], event["resources"])


@dataclass(slots=True)
class Round:
    """One round as it was written: the names of the kept states, and the verdicts in order."""

    kept: Sequence[str]
    verdicts: list[Mapping[str, Any]] = field(default_factory=list)
    pulled: int | None = None  # None: the process ended before the round did


@dataclass(frozen=True, slots=True)
class Log:
    """The last search of a journal, read back.

    `torn` says that the last line was cut off; `stop` and `answer` (the name of the state that was
    returned) are None where the search never ended.
    """

    begin: Mapping[str, Any]
    rounds: Sequence[Round]
    stop: StopReason | None
    answer: str | None
    torn: bool

    @property
    def best(self) -> Mapping[str, Any]:
        """The event that priced the best state."""
        best, price = self.begin, _scored("", self.begin).cost
        for event in self.verdicts():
            if event["event"] == "scored" and not event["again"]:
                cost = _scored("", event).cost
                if cost.beats(price):
                    best, price = event, cost
        return best

    def verdicts(self) -> Iterator[Mapping[str, Any]]:
        """Every candidate in the order it was judged or, within a batch, priced."""
        for round in self.rounds:
            yield from round.verdicts

    def moves(self) -> list[str]:
        """The moves that lead from the start to the best state."""
        found = {e["after"]: e for e in self.verdicts() if not e.get("again", True)}
        name, start = self.best.get("after", self.begin["state"]), self.begin["state"]
        moves: list[str] = []
        while name != start:
            moves.append(found[name]["how"])
            name = found[name]["before"]
        return moves[::-1]


def read(journal: Journal | str | os.PathLike[str]) -> Log:
    """Read the last search of a journal or of a journal's file.

    Raises:
        SearchError: there is none, or a line other than the last is damaged.
    """
    if isinstance(journal, Journal):
        where, lines, torn = "memory", list(journal.lines), False
        if journal._file is not None:
            return read(journal._file.name)
    else:
        where = os.fspath(journal)
        try:
            text = Path(journal).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise SearchError("the journal cannot be read", where=where, got=error) from error
        *lines, rest = text.split("\n")
        torn = bool(rest)
    begin: Mapping[str, Any] | None = None
    rounds: list[Round] = []
    stop: StopReason | None = None
    answer: str | None = None
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            match event["event"]:
                case "begin":
                    begin, rounds, stop, answer = event, [], None, None
                case "round":
                    if rounds:
                        rounds[-1].pulled = event["pulled"]
                    rounds.append(Round(event["kept"]))
                case "refuted" | "scored":
                    rounds[-1].verdicts.append(event)
                case "end":
                    stop, answer = StopReason(event["stop"]), event["best"]
                    if rounds:
                        rounds[-1].pulled = event["pulled"]
                case other:
                    raise ValueError(f"event {other!r}")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise SearchError(
                "the journal is damaged",
                expected="one event per line",
                got=f"{line[:80]!r} ({type(error).__name__}: {error})",
                where=f"{where}, line {number}",
                hint="search again; a journal is not repaired",
            ) from error
    if begin is None:
        raise SearchError("the journal holds no search", where=where, expected="a `begin` line")
    return Log(begin, rounds, stop, answer, torn)


def replay(journal: Journal | Log | str | os.PathLike[str], space: Space[S]) -> Scored[S]:
    """Walk `space` again as the journal says, and return the best state, at its recorded price.

    The space has to be as it was at the beginning of the search. Every round is proposed anew from
    the states that were kept, and every candidate is checked anew; nothing is priced.

    Raises:
        SearchError: the journal cannot be read, or the space goes another way than it did; the
            message names the first candidate where they part.
    """
    log = journal if isinstance(journal, Log) else read(journal)
    start = space.start()
    if fingerprint(start) != log.begin["state"]:
        raise _parted("the start state", log.begin["state"], fingerprint(start))
    known = {log.begin["state"]: _scored(start, log.begin)}
    for number, round in enumerate(log.rounds, 1):
        try:
            kept = [known[name] for name in round.kept]
        except KeyError as error:
            raise _parted(f"round {number}", "only known states kept", error.args[0]) from None
        proposals = iter(space.propose(kept, Budget()))
        stream: list[Candidate[S]] = []
        for event in sorted(round.verdicts, key=lambda event: int(event["n"])):
            stream += islice(proposals, max(0, event["place"] + 1 - len(stream)))
            where = f"round {number}, candidate {event['n']}: {event['how']}"
            if event["place"] >= len(stream):
                raise _parted(where, event["how"], f"only {len(stream)} proposals")
            candidate = stream[event["place"]]
            _compare(where, event, candidate)
            if event.get("again"):
                continue
            refutation = space.check(candidate)
            if (refutation is not None) != (event["event"] == "refuted"):
                was = event["reason"] if event["event"] == "refuted" else "allowed"
                raise _parted(where, was, refutation.reason if refutation else "allowed")
            if refutation is None:
                known[event["after"]] = _scored(candidate.after, event)
        # What was pulled beyond the last verdict may have moved the space's random numbers on.
        stream += islice(proposals, max(0, (round.pulled or 0) - len(stream)))
    best = log.best.get("after", log.begin["state"])
    if log.answer not in (None, best) and log.stop is not StopReason.INTERRUPTED:
        raise _parted("the best state", log.answer, best)
    return known[best]


def _compare(where: str, event: Mapping[str, Any], candidate: Candidate[Any]) -> None:
    if str(candidate.how) != event["how"]:
        raise _parted(where, event["how"], candidate.how)
    for side, state in (("before", candidate.before), ("after", candidate.after)):
        if fingerprint(state) != event[side]:
            raise _parted(f"{where}, {side}", event[side], fingerprint(state))


def _parted(where: str, expected: object, got: object) -> SearchError:
    return SearchError(
        "the space does not go the way the journal says",
        expected=expected,
        got=got,
        where=where,
        hint="replay with the same start state, rules and seed, or search again",
    )
