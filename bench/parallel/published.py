"""The simulator against published training runs, on none of which anything was calibrated.

    Published := name machine Decoder Split seconds source

A run's seconds of one step come from what its authors report: seconds themselves, tokens a second,
or operations a second by the formula that they state. Machines are the presets, whose kernels and
links are described by data sheets and by measurements of kernels and of collectives alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bench.parallel.transformer import Decoder, Split, placed
from whet.machine import topology
from whet.parallel.simulate import Simulator

SC21 = "Narayanan et al., SC 2021, table 1; microbatches: Megatron-LM, examples/sc21/run_table_1.sh"
RECOMPUTATION = "Korthikanti et al., Reducing Activation Recomputation, 2022, tables 3 and 5"
MPT = "MosaicML, llm-foundry, scripts/train/benchmarking/README.md"
LLAMA3 = "Llama Team, The Llama 3 Herd of Models, 2024, table 4"


@dataclass(frozen=True, slots=True)
class Published:
    """One run.

    Attributes:
        name: the model and its devices.
        machine: a preset.
        model, split: what was run.
        seconds: of one step, as published.
        source: where.
        assumed: what the source does not say.
    """

    name: str
    machine: str
    model: Decoder
    split: Split
    seconds: float
    source: str
    assumed: str = ""


def sc21() -> list[Published]:
    """Ten models from 1.7 billion to a trillion parameters; half precision, full recomputation."""
    # fmt: off
    rows = (
        # name  layers hidden heads tp  pp  dp   mbs  batch chunks TFLOP/s of a GPU
        ("1.7B",  24,  2304,  24,  1,   1,  32,  16,   512,  1,  137),
        ("3.6B",  30,  3072,  32,  2,   1,  32,  16,   512,  1,  138),
        ("7.5B",  36,  4096,  32,  4,   1,  32,  16,   512,  1,  142),
        ("18B",   40,  6144,  48,  8,   1,  32,   8,  1024,  1,  135),
        ("39B",   48,  8192,  64,  8,   2,  32,   4,  1536,  1,  138),
        ("76B",   60, 10240,  80,  8,   4,  32,   2,  1792,  3,  140),
        ("145B",  80, 12288,  96,  8,   8,  24,   2,  2304,  2,  148),
        ("310B",  96, 16384, 128,  8,  16,  15,   1,  2160,  2,  155),
        ("530B", 105, 20480, 128,  8,  35,   9,   1,  2520,  3,  163),
        ("1T",   128, 25600, 160,  8,  64,   6,   1,  3072,  1,  163),
    )
    # fmt: on
    found = []
    for name, layers, hidden, heads, tp, pp, dp, mbs, batch, chunks, rate in rows:
        model = Decoder(layers, hidden, heads, 51200, 2048)
        split = Split(tp, pp, dp, mbs, batch // (dp * mbs), chunks)
        found.append(_megatron(f"Megatron {name}", model, split, batch, rate, SC21))
    # Section 5.1: 175 billion parameters on 1,024 GPUs at 140 TFLOP/s, the estimate of 34 days.
    found.append(
        _megatron(
            "Megatron 175B",
            Decoder(96, 12288, 96, 51200, 2048),
            Split(8, 8, 16, 1, 96, 2),
            1536,
            140,
            "Narayanan et al., SC 2021, section 5.1",
            assumed="the split: 8 x 8 x 16, microbatches of 1, two chunks",
        )
    )
    return found


def _megatron(
    name: str, model: Decoder, split: Split, batch: int, rate: float, source: str, assumed: str = ""
) -> Published:
    """Seconds from the paper's count of operations, recomputation included (its equation 3)."""
    s, h, layers, words = model.sequence, model.hidden, model.layers, model.vocabulary
    flops = 96 * batch * s * layers * h * h * (1 + s / (6 * h) + words / (16 * layers * h))
    seconds = flops / (rate * 1e12 * split.devices)
    name = f"{name}, {split.devices} A100"
    machine = f"a100x8:{-(-split.devices // 8)}"
    return Published(name, machine, model, split, seconds, source, assumed)


def recomputation() -> list[Published]:
    """Four models, each with full recomputation and with sequence parallelism and selective one."""
    # fmt: off
    rows = (
        # name  layers hidden heads pp  mbs batch chunks  full s  selective s
        ("22B",   48,  6144,  64,   1,   4,    4,  1,      1.42,   1.10),
        ("175B",  96, 12288,  96,   8,   1,   64,  3,     18.13,  13.75),
        ("530B", 105, 20480, 128,  35,   1,  280,  3,     49.05,  37.83),
        ("1T",   128, 25600, 160,  64,   1,  512,  1,     94.42,  71.49),
    )
    # fmt: on
    found = []
    for name, layers, hidden, heads, pp, mbs, batch, chunks, full, selective in rows:
        model = Decoder(layers, hidden, heads, 51200, 2048)
        for kind, seconds in (("full", full), ("selective", selective)):
            split = Split(8, pp, 1, mbs, batch // mbs, chunks, kind, sequence=kind == "selective")
            label = f"{name}, {split.devices} A100, {kind} recomputation"
            machine = f"a100x8:{pp}"
            found.append(Published(label, machine, model, split, seconds, RECOMPUTATION))
    return found


def mpt() -> list[Published]:
    """FSDP of MPT models on 2,048 tokens: one run of each model and device."""
    # fmt: off
    rows = (
        # name layers hidden heads machine        GPUs mbs accumulate ckpt   tokens/s of a GPU
        ("3b",  32,  2560,  20, "a100x8",           8,  10,  2, False,  10811),
        ("7b",  32,  4096,  32, "a100x8",           8,   6,  2, False,   4641),
        ("13b", 40,  5120,  40, "a100x8",           8,   2,  3, False,   2262),
        ("30b", 48,  7168,  56, "a100x8",           8,   3, 21, True,     916),
        ("70b", 80,  8192,  64, "a100x8",          64,   8,  4, True,     410),
        ("3b",  32,  2560,  20, "h100x8",          64,   6,  3, False,  22525),
        ("7b",  32,  4096,  32, "h100x8",           8,   6,  1, False,  10643),
        ("13b", 40,  5120,  40, "h100x8",          64,   2,  1, False,   4800),
        ("30b", 48,  7168,  56, "h100x8",          32,  14,  3, True,    2308),
        ("70b", 80,  8192,  64, "h100x8",          64,   8,  4, True,    1039),
    )
    # fmt: on
    found = []
    for name, layers, hidden, heads, preset, gpus, mbs, times, ckpt, rate in rows:
        model = Decoder(layers, hidden, heads, 50368, 2048, dropout=False)
        kind = "full" if ckpt else "none"
        split = Split(1, 1, gpus, mbs, times, 1, kind, flash=True, zero=3, gradient=FULL_PRECISION)
        seconds = mbs * times * model.sequence / rate
        of = "A100" if preset == "a100x8" else "H100"
        # They ran the first FlashAttention: 25 to 40% of an A100's peak (Dao, 2023, section 1).
        kernels = ",device.curves.2.top=0.33"
        machine = f"{preset}:{-(-gpus // 8)}{kernels}"
        found.append(Published(f"MPT {name}, {gpus} {of}", machine, model, split, seconds, MPT))
    return found


FULL_PRECISION = 4


def llama3() -> list[Published]:
    """405 billion parameters on 8,192 H100: 430 TFLOP/s a GPU."""
    model = Decoder(126, 16384, 128, 128256, 8192, 53248, 8, gated=True, dropout=False)
    split = Split(
        8, 16, 64, 1, 32, 8, "none", sequence=True, flash=True, zero=1, gradient=4, uneven=True
    )
    samples = 64 * 32
    seconds = model.model_flops(samples) / (430e12 * split.devices)
    return [
        Published(
            "Llama 3 405B, 8192 H100",
            "h100x8:1024",
            model,
            split,
            seconds,
            LLAMA3,
            assumed="chunks of one layer (its section 3.3.2: the first and last have none)",
        )
    ]


def runs() -> list[Published]:
    """All of them, in the order of their sources."""
    return [*sc21(), *recomputation(), *mpt(), *llama3()]


def predicted(run: Published) -> dict[str, Any]:
    """The simulator's figures for one run."""
    began = time.perf_counter()
    found = Simulator(topology(run.machine)).simulate(placed(run.model, run.split))
    return {
        "model": run.name,
        "system": "simulator",
        "median_s": found.seconds,
        "published_s": run.seconds,
        "error": found.seconds / run.seconds - 1,
        "memory_gb": max(found.memory) / 1e9,
        "fits": found.fits,
        "computing": min(found.computing),
        "exposed": max(found.exposed),
        "idle": max(found.idle),
        "took_s": time.perf_counter() - began,
        "machine": run.machine,
        "source": run.source,
        "assumed": run.assumed,
        "split": asdict(run.split),
    }


def measure(
    args: argparse.Namespace, progress: Callable[[str], None]
) -> tuple[list[dict[str, Any]], str]:
    """Every run, predicted; the records and the page."""
    records = []
    for run in runs():
        progress(run.name)
        records.append(predicted(run))
    return records, page(records)


def page(records: list[dict[str, Any]]) -> str:
    """The table: published and predicted seconds of a step, and the error."""
    lines = [
        "Seconds of one training step, published and simulated; nothing is calibrated on these.",
        "",
        f"{'run':<42}{'published':>10}{'simulated':>10}{'error':>8}   source",
    ]
    lines += [
        f"{r['model']:<42}{r['published_s']:>10.2f}{r['median_s']:>10.2f}"
        f"{100 * r['error']:>+7.1f}%   {r['source'].split(',')[0]}"
        for r in records
    ]
    within = sum(abs(r["error"]) <= 0.15 for r in records)
    mean = sum(abs(r["error"]) for r in records) / len(records)
    lines += [
        "",
        f"{within} of {len(records)} within 15%; mean error {100 * mean:.1f}%",
        "MPT on H100: measured in 2023 with the first software for that device, which its source",
        "announces to measure again; the machine's kernels are described as of 2024.",
        *(f"assumed for {r['model']}: {r['assumed']}" for r in records if r["assumed"]),
        "",
        *(f"- {source}" for source in dict.fromkeys(r["source"] for r in records)),
        "",
        "reproduce: whet bench --suite parallel --part published",
    ]
    return "\n".join(lines) + "\n"
