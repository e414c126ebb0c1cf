"""What carries messages between one ServerApp and many ClientApps: three engines, one contract."""

from importlib import import_module

from federation.experiment import Experiment
from simulations.carriers.base import Carrier

_ENGINES = {"local": "LocalCarrier", "ray": "RayCarrier", "flower": "FlowerCarrier"}


def carrier_for(experiment: Experiment) -> Carrier:
    """Return the carrier that ``simulation.engine`` names; use it as a context manager."""
    engine = experiment.simulation.engine
    module = import_module(f"simulations.carriers.{engine}")  # only Ray's users wait for Ray
    carrier: Carrier = getattr(module, _ENGINES[engine])(experiment)
    return carrier


__all__ = ["Carrier", "carrier_for"]
