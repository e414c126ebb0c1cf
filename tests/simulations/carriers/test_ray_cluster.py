"""Joining a Ray cluster that somebody else started."""

import json
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from federation.experiment import Experiment
from graphcl.errors import FederationError
from simulations.carriers.local import LocalGrid
from simulations.carriers.ray import RayCarrier

pytestmark = pytest.mark.processes

UNLIKE = {"model.encoders": "gcn, sage, gat", "strategy.name": "feddbp"}


def digest(experiment: Experiment) -> str:
    return json.loads((Path(experiment.run.directory) / "summary.json").read_text())["digest"]


def test_ray_joins_a_running_cluster_and_leaves_it_running(tiny, ray_folder) -> None:
    local = tiny(UNLIKE, folder="local")
    LocalGrid(local).serve()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        keys = {"simulation.address": cluster.address, "simulation.actors": 2}
        experiment = tiny({**UNLIKE, **keys}, folder="joined")
        with RayCarrier(experiment) as carrier:
            carrier.run(experiment)
        assert digest(experiment) == digest(local)
        ray.init(address=cluster.address, log_to_driver=False)  # it is still there
        assert ray.cluster_resources()["CPU"] == 2
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_an_address_without_a_cluster_is_a_clear_error(tiny) -> None:
    experiment = tiny({"simulation.address": "127.0.0.1:1", "simulation.engine": "ray"})
    with pytest.raises(FederationError, match=r"no Ray cluster answers at '127\.0\.0\.1:1'"):
        RayCarrier(experiment).__enter__()
