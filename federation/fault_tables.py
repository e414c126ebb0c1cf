"""The tables of the experiment file about what goes wrong, and how the server stands against it."""

from typing import Literal, Self

from pydantic import model_validator

from federation.keys import Table, key

# Of the attacks, those that move whole values; the others are about classes.
UPDATE_ATTACKS = ("sign_flip", "scale")


class FaultTable(Table):
    """Faults, drawn from ``run.seed``; evaluations are spared, since they measure."""

    drop: float = key(
        0.0,
        "availability: chance, per client and round, to take no part; counts as failed for "
        "run.min_success",
        ge=0,
        le=1,
    )
    lose: float = key(
        0.0, "connectivity: chance that a reply is lost on the way; counts as failed", ge=0, le=1
    )
    partial: float = key(
        0.0,
        "completeness: chance that half of a reply's classes are missing, or an array where there "
        "are none, and the reply is refused",
        ge=0,
        le=1,
    )
    stale: float = key(
        0.0,
        "responsiveness: chance that the reply of the round before arrives in place of this one; "
        "nothing arrives where there was none",
        ge=0,
        le=1,
    )
    corrupt: float = key(
        0.0,
        "integrity: chance that a reply arrives with bytes of an array missing, and is refused",
        ge=0,
        le=1,
    )
    crash: float = key(
        0.0,
        "chance, per client and round, that its process dies in training, whenever it is tried; of "
        "processes, as are the next four, so on the engines local, which fails the update instead, "
        "and ray",
        ge=0,
        le=1,
    )
    hang: float = key(
        0.0, "chance that training never ends; ray: until simulation.client_timeout", ge=0, le=1
    )
    memory: float = key(0.0, "chance that memory runs out in training", ge=0, le=1)
    slow: float = key(0.0, "chance that training takes slow_seconds more", ge=0, le=1)
    slow_seconds: float = key(1.0, "see slow", gt=0)
    hostile: float = key(
        0.0, "share of the clients that attack in every round, the same ones", ge=0, le=1
    )
    attack: Literal["sign_flip", "scale", "label_swap", "backdoor"] = key(
        "sign_flip",
        "prototypes or updates turned round, or multiplied; prototypes claimed for the class "
        "after theirs; or that of one class drawn towards another's",
    )
    strength: float = key(
        1.0, "factor of sign_flip and scale; backdoor: share of the way, may exceed 1", gt=0
    )
    backdoor_class: int = key(0, "backdoor: the class whose prototype is drawn", ge=0)
    backdoor_target: int = key(1, "backdoor: the class that it is drawn towards", ge=0)

    @model_validator(mode="after")
    def _an_attack_that_changes_something(self) -> Self:
        if self.hostile and self.attack == "scale" and self.strength == 1:
            raise ValueError(
                "'scale' by strength = 1 changes nothing; take another strength, e.g. 10"
            )
        if self.hostile and self.attack == "label_swap" and self.strength != 1:
            raise ValueError(
                f"'label_swap' has no strength, but it is {self.strength:g}; leave it at 1"
            )
        if self.attack == "backdoor" and self.backdoor_class == self.backdoor_target:
            raise ValueError(
                f"backdoor_target = {self.backdoor_target} is backdoor_class itself; name another"
            )
        return self

    @property
    def backdoor(self) -> tuple[int, int] | None:
        """Which class would be drawn towards which; None under another attack."""
        drawn = self.backdoor_class, self.backdoor_target
        return drawn if self.attack == "backdoor" else None

    @property
    def summary(self) -> str:
        """What goes wrong, in words; empty where nothing does."""
        attack: str = self.attack
        if self.attack == "backdoor":
            attack += f" of class {self.backdoor_class} to {self.backdoor_target}"
        if self.attack != "label_swap":
            attack += f", strength {self.strength:g}"
        parts = [
            (self.hostile, f"hostile ({attack})"),
            (self.drop, "dropped a round"),
            (self.lose, "of replies lost"),
            (self.partial, "partial"),
            (self.stale, "stale"),
            (self.corrupt, "corrupt"),
            (self.crash, "of processes crash"),
            (self.hang, "hang"),
            (self.memory, "out of memory"),
            (self.slow, f"{self.slow_seconds:g} s late"),
        ]
        return ", ".join(f"{100 * share:g} % {what}" for share, what in parts if share)

    @property
    def of_processes(self) -> bool:
        """Whether processes fail, and not only what they send."""
        return any((self.crash, self.hang, self.memory, self.slow))


class RobustTable(Table):
    """What keeps few clients from deciding for all; the first two are of fedproto and feddbp."""

    rule: Literal["mean", "median", "trimmed", "krum"] = key(
        "mean",
        "how prototypes of a class are joined: weighted mean, median or trimmed mean of every "
        "channel, or the mean without the most remote; from three holders on",
    )
    max_weight: float = key(
        2.0,
        "all but mean: bound on a client's weight in a class, in medians of its holders' weights",
        gt=0,
    )
    trim: float = key(
        0.2, "trimmed, fedtrimmedavg: share that is cut off at either end", ge=0, lt=0.5
    )
    hostile: int = key(
        2,
        "krum, as rule and as strategy: clients assumed hostile; less than half the holders",
        ge=0,
    )
