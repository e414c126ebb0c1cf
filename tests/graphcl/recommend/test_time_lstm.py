"""The cell that is told the time against its equations."""

import torch
from torch import Tensor

from graphcl.recommend.time_lstm import TimeLSTM


def slow(cell: TimeLSTM, x: Tensor, age: Tensor, since: Tensor) -> Tensor:
    """Return the states of one run by the equations, a matrix at a time."""
    weights = cell.input.weight.chunk(6), cell.input.bias.chunk(6), cell.hidden.weight.chunk(4)
    (Wi, Wf, Wo, Wg, Wa, Wb), (bi, bf, bo, bg, ba, bb), (Ui, Uf, Uo, Ug) = weights
    (Oa, Va), (Ob, Vb) = cell.by_age.weight.chunk(2), cell.by_since.weight.chunk(2)
    h = c = torch.zeros(x.size(1), dtype=x.dtype)
    states = []
    for row, a, b in zip(x, age, since, strict=True):
        A = torch.tanh(a * cell.age.weight[:, 0] + cell.age.bias)
        B = torch.tanh(b * cell.since.weight[:, 0] + cell.since.bias)
        Ta, Tb = torch.sigmoid(Wa @ row + Va @ A + ba), torch.sigmoid(Wb @ row + Vb @ B + bb)
        i, f = Wi @ row + Ui @ h + bi, Wf @ row + Uf @ h + bf
        g, o = Wg @ row + Ug @ h + bg, Wo @ row + Uo @ h + bo
        c = torch.sigmoid(f + 1) * Tb * c + torch.sigmoid(i) * Ta * torch.tanh(g)
        h = torch.sigmoid(o + Oa @ A + Ob @ B) * torch.tanh(c)
        states.append(h)
    return torch.stack(states)


def test_states_of_packed_runs_are_those_of_each_run_alone() -> None:
    torch.manual_seed(0)
    cell = TimeLSTM(4).double()
    lengths = (4, 2, 1)
    runs = [
        (torch.randn(n, 4).double(), torch.randn(n).double(), torch.randn(n).double())
        for n in lengths
    ]
    steps = [(run, step) for step in range(4) for run in range(3) if step < lengths[run]]
    packed = (torch.stack([runs[run][part][step] for run, step in steps]) for part in range(3))
    found = cell(*packed, [3, 2, 1, 1])
    for run, parts in enumerate(runs):
        own = torch.tensor([place for place, (r, _) in enumerate(steps) if r == run])
        torch.testing.assert_close(found[own], slow(cell, *parts))


def test_without_events_there_are_no_states() -> None:
    assert TimeLSTM(4)(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), []).shape == (0, 4)
