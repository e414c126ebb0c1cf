"""Features as networks read them: a logarithmic scale, and flags where they are missing."""

import pytest
import torch

from graphcl.outages import Standardization

NAN = float("nan")


def test_what_it_was_fitted_to_has_mean_0_and_deviation_1():
    x = 100 * torch.randn(500, 3, generator=torch.Generator().manual_seed(0)).exp()
    x[::7, 1] = NAN
    scale = Standardization(3)
    scale.fit(x)
    values = scale(x)[:, :3]
    seen = ~x[:, 1].isnan()
    for column in (values[:, 0], values[seen, 1], values[:, 2]):
        assert float(column.mean()) == pytest.approx(0, abs=1e-4)
        assert float(column.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_a_missing_value_is_the_mean_and_says_so():
    scale = Standardization(2)
    scale.fit(torch.tensor([[1.0, 5.0], [3.0, NAN]]))
    out = scale(torch.tensor([[NAN, 5.0], [1.0, NAN]]))
    assert torch.equal(out[:, 2:], torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert out[0, 0] == 0
    assert out[1, 1] == 0
    assert out.isfinite().all()


def test_constant_and_absent_features_stay_finite():
    scale = Standardization(2)
    scale.fit(torch.tensor([[7.0, NAN], [7.0, NAN]]))
    out = scale(torch.tensor([[7.0, 2.0]]))
    assert out[0, 0] == pytest.approx(0, abs=1e-6)
    assert out.isfinite().all()


def test_negative_values_mirror_positive_ones_and_order_is_kept():
    scale = Standardization(1)
    x = torch.tensor([[-1000.0], [-1.0], [0.0], [1.0], [1000.0]])
    out = scale(x)[:, 0]
    torch.testing.assert_close(out, -out.flip(0))
    assert (out.diff() > 0).all()
