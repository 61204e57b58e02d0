"""What the stages of a walk run, in words, by their names."""

from __future__ import annotations

_DEVICE = {
    "graphed": "one recording of plain library calls",
    "channels": "the same, images with their channels last",
    "tiles": "one recording: groups of operators in generated kernels, libraries where faster",
    "graphed-lanes": "one recording of plain library calls, independent ones beside one another",
    "tiles-lanes": "generated kernels and libraries, independent ones beside one another",
    "compiled": "one recording of a compiled region",
    "searched": "the same, its kernels searched for by the compiler",
}
_GRAPHS = {"": "", "-unmerged": ", without rewrites that merge or hoist",
           "-unrewritten": ", without rewrites"}  # fmt: skip
NOTES = {
    f"{kind}{graph}": f"{said}{apart}"
    for kind, said in _DEVICE.items()
    for graph, apart in _GRAPHS.items()
} | {
    "original": "eager",
    "rewrites": "plain library calls, one after another",
    "kernels": "chosen library kernels, one after another",
    "region": "chosen library kernels inside one compiled region",
    "unrewritten": "chosen library kernels, one after another, without rewrites",
    "unmerged": "the same, without rewrites that merge or hoist",
    "region-unrewritten": "the same, without rewrites",
    "native": "one C program: generated kernels and library calls in planned memory",
    "native-unmerged": "the same, without rewrites that merge or hoist",
    "native-unrewritten": "the same, without rewrites",
    "generated": "one C program: groups of operators in tuned kernels, libraries where faster",
    "generated-unmerged": "the same, without rewrites that merge or hoist",
    "generated-unrewritten": "the same, without rewrites",
    "recast": "the same, convolutions in blocks where fewer products are faster",
    "fused": "the same, groups found by a search that hears what their kernels say",
    "tuned": "the same, with schedules that were searched for",
}
