"""Severity: which class a count is of, and that its boundaries are exact."""

import pytest
import torch

from graphcl.outages import NUM_SEVERITIES, severity


@pytest.mark.parametrize(
    ("outages", "customers", "wanted"),
    [
        (0, 1000, 0),
        (1, 1000, 1),
        (10, 1000, 1),  # 1 %, which float32 has as less
        (11, 1000, 2),
        (100, 1000, 2),  # 10 %, which float32 has as more
        (101, 1000, 3),
        (1000, 1000, 3),
        (1, 10**6, 1),
        (0, 0, 0),
        (1, 0, 3),  # nobody is served, yet something broke
    ],
)
def test_a_class_begins_above_the_share_of_the_one_before(outages, customers, wanted):
    assert int(severity(torch.tensor([outages]), torch.tensor([float(customers)]))) == wanted


def test_counts_of_any_type_and_number_of_events_have_classes():
    outages = torch.tensor([[0, 1, 50, 500], [500, 50, 1, 0]])
    customers = torch.full((4,), 1000.0)
    wanted = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    assert torch.equal(severity(outages, customers), wanted)
    assert torch.equal(severity(outages.float(), customers), wanted)
    assert int(wanted.max()) + 1 == NUM_SEVERITIES
