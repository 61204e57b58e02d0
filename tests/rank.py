"""One rank of a test: run by `whet.run.parallel.launch`, told what to do as JSON.

{"model", "plan", "dtype", "batch", "inference", "options": {…}, "out",
 "fault": {"rank", "step", "kind"}}
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tests.plans import PLANS, planned
from whet.capture import planned as glue
from whet.errors import WhetError
from whet.run.parallel import session
from whet.run.parallel.session import Options
from whet.run.parallel.torchdist import leave


def faulty(fault: dict[str, Any]) -> None:
    """Make one rank misbehave at one step."""
    rank, step, kind = int(os.environ["RANK"]), fault["step"], fault["kind"]
    if rank != fault["rank"]:
        return
    original = session.Session.step

    def broken(self: session.Session, batch: Any) -> None:
        if self.watch.step == step:
            if kind == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "hangs":
                time.sleep(600)
            if kind == "fails":
                raise ValueError("out of paper")
        original(self, batch)
        if self.watch.step == step and kind == "diverges":
            row = next(iter(self.runner.weights.values()))[0]
            row.held[rank].add_(0.1)

    session.Session.step = broken


def main(job: dict[str, Any]) -> int:
    torch.set_num_threads(1)
    if "fault" in job:
        faulty(job["fault"])
    plan = planned(
        job["model"], PLANS[job["plan"]], job["dtype"], job["batch"],
        inference=job.get("inference", False),
    )  # fmt: skip
    given = dict(job["options"])
    if given.get("folder"):
        given["folder"] = Path(given["folder"])
    options = Options(**given)
    try:
        run, wholes = glue.rank(plan, options, job.get("timeout", 60))
    except WhetError as error:
        print(f"error: {error}", flush=True)
        return 1
    last = plan.program.members(len(plan.program.stages) - 1)[0]
    losses = leave(run.losses if run.rank == last else None, last)
    if run.rank == 0:
        torch.save({"losses": losses, "wholes": wholes, "first": run.first}, str(job["out"]))
    return 0


if __name__ == "__main__":
    code = main(json.loads(sys.argv[1]))
    sys.stdout.flush()
    os._exit(code)  # a group that a rank has left does not hold the others up
