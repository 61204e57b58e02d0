"""A decoder as placed blocks, by arithmetic: what published runs of language models did.

The runs that the simulator is compared with used frameworks of their own, so their models are
written down here directly: which kernels and collectives one layer issues, with which sizes.

Source of the layer: Narayanan et al., SC 2021, section 2.3 (tensor parallelism); Korthikanti et
al., 2022, sections 4 and 5 (sequence parallelism, selective recomputation, saved activations).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from whet.machine import Mesh
from whet.parallel.placed import Block, Optimizer, Placed, Run, Stage, Step, Weights

HALF, FULL = 2, 4  # bytes


@dataclass(frozen=True, slots=True)
class Decoder:
    """A language model.

    Attributes:
        layers, hidden, heads, vocabulary, sequence: as papers state them.
        ffn: width inside the MLP; 4 times `hidden` if 0.
        kv_heads: heads of keys and values; as many as `heads` if 0.
        gated: the MLP has a gate (SwiGLU).
        dropout: it trains with dropout.
    """

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    sequence: int
    ffn: int = 0
    kv_heads: int = 0
    gated: bool = False
    dropout: bool = True

    @property
    def inner(self) -> int:
        return self.ffn or 4 * self.hidden

    @property
    def kv(self) -> int:
        return (self.kv_heads or self.heads) * self.hidden // self.heads

    @property
    def layer_parameters(self) -> int:
        mlp = (3 if self.gated else 2) * self.hidden * self.inner
        return 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv + mlp

    def model_flops(self, samples: float) -> float:
        """Operations of forward and backward that the model itself needs, for whole sequences."""
        dense = self.layers * self.layer_parameters + self.hidden * self.vocabulary
        attention = 2 * self.layers * self.hidden * self.sequence
        return 6 * samples * self.sequence * (dense + attention)


@dataclass(frozen=True, slots=True)
class Split:
    """How a run placed it.

    Attributes:
        tensor, pipeline, data: degrees.
        microbatch, microbatches: samples of one device in one pass, and passes in a step.
        chunks: of interleaved pipelines.
        recompute: "full", "selective" or "none".
        sequence: sequence parallelism beside tensor parallelism.
        flash: attention is one kernel.
        zero: 0 to 3.
        gradient, state: bytes of each parameter's gradient and optimizer's state.
        uneven: layers that the first and the last stage have fewer than the others.
    """

    tensor: int
    pipeline: int
    data: int
    microbatch: int
    microbatches: int
    chunks: int = 1
    recompute: str = "full"
    sequence: bool = False
    flash: bool = False
    zero: int = 0
    gradient: int = HALF
    state: int = 12
    uneven: bool = False

    @property
    def devices(self) -> int:
        return self.tensor * self.pipeline * self.data


def placed(model: Decoder, split: Split) -> Placed:
    """The run as a placed model."""
    writer = _Writer(model, split)
    layer, first, last = writer.layer(), writer.embedding(), writer.head()
    stages, pieces = [], split.pipeline * split.chunks
    each = split.tensor * split.data
    counts = layers_of(model.layers, pieces, uneven=split.uneven)
    for k, count in enumerate(counts):
        group = k % split.pipeline
        mesh = Mesh.of((("data", split.data), ("tensor", split.tensor)), first=group * each)
        runs = [Run(layer, count)]
        if k == 0:
            runs.insert(0, Run(first))
        if k == pieces - 1:
            runs.append(Run(last))
        output = writer.residual // split.tensor if k < pieces - 1 else 0
        stages.append(
            Stage(
                mesh,
                tuple(runs),
                recompute=split.recompute == "full",
                zero=split.zero,
                output=output,
                # Megatron reduces gradients behind the pipeline; FSDP beside backward.
                overlap=split.zero >= 2,
            )
        )
    schedule = "interleaved" if split.chunks > 1 else "1f1b"
    optimizer = Optimizer(split.state, split.gradient)
    return Placed(tuple(stages), split.microbatches, schedule, split.chunks, optimizer).checked()


def layers_of(layers: int, pieces: int, *, uneven: bool) -> list[int]:
    """Layers of each piece; with `uneven` the first and last have one fewer than the others."""
    if uneven:
        each = (layers + 2) // pieces
        return [each - 1, *[each] * (pieces - 2), each - 1]
    each, more = divmod(layers, pieces)
    return [each + (k < more) for k in range(pieces)]


class _Writer:
    """The blocks of one model under one split."""

    def __init__(self, model: Decoder, split: Split) -> None:
        self.model, self.split = model, split
        self.rows = split.microbatch * model.sequence
        self.residual = self.rows * model.hidden * HALF  # bytes of the residual stream, whole
        self.part = self.residual // (split.tensor if split.sequence else 1)  # on one device
        self.steps: list[Step] = []

    # ---- steps ----

    def _add(self, step: Step) -> int:
        self.steps.append(step)
        return len(self.steps) - 1

    def stream(self, name: str, read: int, written: int, *after: int) -> int:
        """A memory-bound kernel."""
        return self._add(Step(name, "stream", read=read, written=written, after=after))

    def matmul(
        self, name: str, m: int, n: int, k: int, *after: int, batch: int = 1, weight: bool = False
    ) -> int:
        """A product of matrices in half precision."""
        return self._add(
            Step(
                name,
                "contraction",
                flops=2 * batch * m * n * k,
                read=batch * (m * k + k * n) * HALF,
                written=batch * m * n * HALF,
                dims=(batch, m, n, k),
                dtype="bfloat16",
                after=after,
                weight=weight,
            )
        )

    def collective(self, kind: str, *after: int) -> int:
        """Over the tensor axis, of the residual stream."""
        if self.split.tensor == 1:
            return after[0] if after else -1
        return self._add(Step(kind, kind, bytes=self.residual, axes=("tensor",), after=after))

    def gather(self, *after: int) -> tuple[int, ...]:
        """With sequence parallelism, the whole sequence before a layer's products."""
        return _known(self.collective("all_gather", *after)) if self.split.sequence else after

    def reduce(self, *after: int) -> tuple[int, ...]:
        """The sum of the products' parts."""
        kind = "reduce_scatter" if self.split.sequence else "all_reduce"
        return _known(self.collective(kind, *after))

    def norm(self, name: str, *after: int) -> int:
        return self.stream(name, self.part, self.part, *after)

    def add(self, name: str, *after: int) -> int:
        """Bias, dropout and residual in one kernel."""
        mask = self.part // 2 if self.model.dropout else 0
        return self.stream(name, 2 * self.part, self.part + mask, *after)

    # ---- a layer ----

    def layer(self) -> Block:
        """A decoder layer."""
        model, t = self.model, self.split.tensor
        self.steps = []
        self._forward()
        forward, self.steps = self.steps, []
        self._backward()
        backward = self.steps
        h = model.hidden
        saved = self._saved()
        forward[0] = _with(forward[0], alloc=(saved,))
        backward[-1] = _with(backward[-1], free=(saved,))
        weights = (
            Weights("matrices", model.layer_parameters // t, HALF, ("data",)),
            Weights("vectors", 13 * h, HALF, ("data",)),
        )
        return Block("layer", tuple(forward), tuple(backward), weights, boundary=self.part)

    def _saved(self) -> int:
        """Bytes of activations that a layer keeps (Korthikanti et al., table 2)."""
        model, t = self.model, self.split.tensor
        whole = self.rows * model.hidden
        tensor = 24 if not model.gated else 8 + 6 * model.inner / model.hidden
        outside = 10 / t if self.split.sequence else 10
        scores = 5 * model.heads * model.sequence / model.hidden
        if self.split.flash or self.split.recompute == "selective":
            scores = 0
        return int(whole * (outside + (tensor + scores) / t))

    def _attention(self, backward: bool = False) -> None:
        """Scores, softmax and their product with the values, of the heads on this device."""
        model, split = self.model, self.split
        heads, s = split.microbatch * model.heads // split.tensor, model.sequence
        d = model.hidden // model.heads
        if split.flash:
            # Causal: half of the scores; backward computes them again and has five products.
            flops = (5 if backward else 2) * 2 * heads * s * s * d // 2
            bytes = 4 * heads * s * d * HALF
            self._add(
                Step(
                    "attention",
                    "fused",
                    flops=flops,
                    read=bytes,
                    written=bytes // 4,
                    dtype="bfloat16",
                )
            )
            return
        scores = heads * s * s
        if backward:
            self.matmul("values'", s, d, s, batch=heads)
            self.matmul("probabilities'", s, s, d, batch=heads)
            self.stream("dropout'", 3 * scores, 2 * scores)
            self.stream("softmax'", 4 * scores, 2 * scores)
            self.matmul("queries'", s, d, s, batch=heads)
            self.matmul("keys'", s, d, s, batch=heads)
            return
        self.matmul("scores", s, s, d, batch=heads)
        self.stream("softmax", 2 * scores, 2 * scores)
        if model.dropout:
            self.stream("dropout", 2 * scores, 3 * scores)
        self.matmul("values", s, d, s, batch=heads)

    def _forward(self) -> None:
        model, t, rows = self.model, self.split.tensor, self.rows
        h, inner = model.hidden, model.inner // t
        whole = self.gather(self.norm("norm 1"))
        self.matmul("queries, keys, values", rows, (h + 2 * model.kv) // t, h, *whole)
        self._attention()
        done = self.reduce(self.matmul("projection", rows, h, h // t))
        self.add("add 1", *done)
        whole = self.gather(self.norm("norm 2"))
        wide = 2 if model.gated else 1
        self.matmul("up", rows, wide * inner, h, *whole)
        self.stream("activation", wide * rows * inner * HALF, rows * inner * HALF)
        done = self.reduce(self.matmul("down", rows, h, inner))
        self.add("add 2", *done)

    def _backward(self) -> None:
        model, t, rows = self.model, self.split.tensor, self.rows
        h, inner = model.hidden, model.inner // t
        wide = 2 if model.gated else 1
        whole = self.gather(self.stream("add 2'", self.part, self.part))
        self.matmul("down'", rows, inner, h, *whole)
        self.matmul("down weights'", h, inner, rows, weight=True)
        self.stream("activation'", (wide + 1) * rows * inner * HALF, wide * rows * inner * HALF)
        done = self.reduce(self.matmul("up'", rows, h, wide * inner))
        self.matmul("up weights'", wide * inner, h, rows, weight=True)
        self.stream("norm 2'", 3 * self.part, self.part, *done)
        whole = self.gather(self.stream("add 1'", self.part, self.part))
        self.matmul("projection'", rows, h // t, h, *whole)
        self.matmul("projection weights'", h, h // t, rows, weight=True)
        if self.split.recompute == "selective" and not self.split.flash:
            self._attention()
        self._attention(backward=True)
        heads = (h + 2 * model.kv) // t
        done = self.reduce(self.matmul("queries, keys, values'", rows, h, heads))
        self.matmul("queries, keys, values weights'", heads, h, rows, weight=True)
        self.stream("norm 1'", 3 * self.part, self.part, *done)

    # ---- the ends ----

    def embedding(self) -> Block:
        """Tokens to vectors; the table is split over the tensor axis."""
        self.steps = []
        row = self._add(Step("look up", "gather", read=self.residual, written=self.residual))
        self.add("dropout", *self.reduce(row))
        forward, self.steps = self.steps, []
        whole = self.gather(self.stream("dropout'", self.part, self.part))
        self._add(Step("table'", "gather", read=self.residual, written=self.residual, after=whole))
        elements = self.model.vocabulary * self.model.hidden // self.split.tensor
        weights = (Weights("table", elements, HALF, ("data",)),)
        return Block(
            "embedding", tuple(forward), tuple(self.steps), weights, boundary=8 * self.rows
        )

    def head(self) -> Block:
        """The last norm, logits over the vocabulary, and the loss in single precision."""
        model, t, rows = self.model, self.split.tensor, self.rows
        h, words = model.hidden, model.vocabulary // t
        logits = rows * words
        self.steps = []
        whole = self.gather(self.norm("last norm"))
        self.matmul("logits", rows, words, h, *whole)
        self.stream("loss", logits * (HALF + 2 * FULL), logits * 2 * FULL)
        forward, self.steps = self.steps, []
        self.stream("loss'", logits * FULL, logits * HALF)
        done = self.reduce(self.matmul("logits'", rows, h, words))
        self.matmul("logits weights'", words, h, rows, weight=True)
        self.stream("last norm'", 3 * self.part, self.part, *done)
        backward = self.steps
        saved = logits * FULL + self.part
        forward[0] = _with(forward[0], alloc=(saved,))
        backward[-1] = _with(backward[-1], free=(saved,))
        weights = (Weights("table", words * h, HALF, ("data",)),)
        return Block("head", tuple(forward), tuple(backward), weights, boundary=self.part)


def _known(step: int) -> tuple[int, ...]:
    return (step,) if step >= 0 else ()


def _with(step: Step, **changes: object) -> Step:
    return replace(step, **changes)  # type: ignore[arg-type]
