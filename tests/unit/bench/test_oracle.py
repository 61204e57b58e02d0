"""The right answer, and the work and traffic that the floor is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench import oracle


class Table(nn.Module):
    """An embedding of a few rows, a linear layer used twice, a parameter nobody uses."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(1000, 8)
        self.linear = nn.Linear(8, 8)
        self.unused = nn.Parameter(torch.zeros(999))

    def forward(self, ids):
        y = self.linear(self.linear(self.rows(ids)))
        return {"y": y, "sum": y.sum()}


def test_each_byte_is_counted_once_and_only_if_touched():
    flops, touched = oracle.work(Table(), (torch.arange(5),))
    ids, rows, linear, outputs = 5 * 8, 5 * 8 * 4, (64 + 8) * 4, 5 * 8 * 4 + 4
    assert touched == ids + rows + linear + outputs
    assert flops == 2 * (2 * 5 * 8 * 8)


def test_a_view_reads_nothing_and_a_slice_what_it_holds():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(10, 4))

        def forward(self, x):
            return x + self.w[:3].transpose(0, 1).transpose(0, 1)

    _, touched = oracle.work(Half(), (torch.ones(3, 4),))
    assert touched == 3 * (3 * 4 * 4)


def test_float64_is_the_module_in_float64():
    module = nn.Linear(4, 3)
    x = torch.randn(2, 4)
    (found,) = oracle.float64(module, (x,))
    assert found.dtype == np.float64
    weight, bias = (p.detach().double() for p in (module.weight, module.bias))
    assert np.array_equal(found, F.linear(x.double(), weight, bias).numpy())
    assert module.weight.dtype == torch.float32


def test_float64_leaves_integers_and_widens_what_the_forward_pass_makes():
    class Makes(nn.Module):
        def forward(self, ids):
            return ids.new_zeros(2) + ids, torch.ones(2) / 3

    ids, third = oracle.float64(Makes(), (torch.tensor([1, 2]),))
    assert ids.dtype == np.int64
    assert third[0] == 1 / 3
    assert torch.get_default_dtype() == torch.float32


def test_error_is_the_worst_output_relative_to_its_size():
    right = [np.array([3.0, 4.0]), np.array([10.0])]
    got = [np.array([3.0, 4.5], np.float32), np.array([10.0], np.float32)]
    assert oracle.error(got, right) == pytest.approx(0.1)
    assert oracle.error([np.zeros(2), np.array([10.0])], right) == 1


def test_error_where_the_answer_is_zero():
    assert oracle.error([np.array([0.5])], [np.array([0.0])]) == 0.5


@pytest.mark.parametrize(
    ("got", "message"),
    [([np.zeros(3)], "shapes"), ([], "shapes"), ([np.array([np.nan, 1])], "not finite")],
)
def test_a_wrong_answer_is_no_number(got, message):
    with pytest.raises(ValueError, match=message):
        oracle.error(got, [np.zeros(2)])


def test_leaves_are_copies():
    x = torch.zeros(2)
    (leaf,) = oracle.leaves({"a": (x, 3)})
    x += 1
    assert leaf.tolist() == [0, 0]
