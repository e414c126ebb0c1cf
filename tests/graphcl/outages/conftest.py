"""Small storms that the room's tests share, and one shuffle of their locations."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from graphcl.datasets import OutageEvents, simulate_storms


@dataclass(frozen=True)
class Shuffled:
    """Events whose locations stand in another order, the former ``order[i]`` at place i."""

    events: OutageEvents
    order: Tensor


@pytest.fixture(scope="session")
def events() -> OutageEvents:
    return simulate_storms(50, 6, seed=1).events


@pytest.fixture(scope="session")
def shuffled(events) -> Shuffled:
    order = torch.randperm(events.num_locations, generator=torch.Generator().manual_seed(3))
    return Shuffled(events.at(order), order)
