"""The table ``[privacy]`` of the experiment file, and which experiments it can protect."""

from collections.abc import Iterable
from typing import Literal

from federation.keys import Table, key


class Privacy(Table):
    """What happens to prototypes before they leave a node; the defaults let them go as they are."""

    min_support: int = key(1, "classes with fewer samples on a client do not leave it", ge=1)
    clip: float = key(
        0.0, "length to which each sample's embedding is cut before the mean; 0 = off", ge=0
    )
    noise_multiplier: float = key(
        0.0, "standard deviation of the noise over what one sample can change; 0 = off", ge=0
    )
    delta: float = key(1e-5, "probability with which epsilon may fail", gt=0, lt=1)
    noise: Literal["system", "seed"] = key(
        "system",
        "noise from the node's operating system, or from run.seed, which the server knows: "
        "repeatable, so for simulations alone",
    )

    masking: bool = key(
        False,
        "true: the server reads sums over all clients alone; fedproto and feddbp, every client in "
        "every round, and one that fails ends the run",
    )

    @property
    def active(self) -> bool:
        """Whether anything differs from letting prototypes go as they are."""
        return self.masking or self.min_support > 1 or self.clip > 0 or self.noise_multiplier > 0

    def refuse(
        self, planned: Iterable[str], prototypes: Iterable[str], fisher_leaves: bool
    ) -> str | None:
        """Say why strategies cannot run under this table, if they cannot.

        Args:
            planned: The strategies that are to be run.
            prototypes: Those that exchange prototypes.
            fisher_leaves: Whether FedDBP is set such that clients send Fisher information.
        """
        if self.noise_multiplier and not self.clip:
            return (
                f"privacy.noise_multiplier: noise of {self.noise_multiplier:g} times what one "
                "sample can change needs a bound on that; set privacy.clip, e.g. to 1.0"
            )
        if not self.active:
            return None
        open_ones = sorted(set(planned) - {*prototypes, "local", ""})
        if open_ones:
            return (
                f"privacy: it protects prototypes, but strategy '{open_ones[0]}' sends other "
                f"things, which would leave as they are; run {', '.join(prototypes)} or local, or "
                "leave [privacy] at its defaults"
            )
        if self.noise_multiplier and fisher_leaves:
            return (
                "privacy.noise_multiplier: Fisher information would have no noise; set "
                "strategy.feddbp.global_weight to 'count' or 'uniform' and "
                "strategy.feddbp.personal to 'off'"
            )
        return None
