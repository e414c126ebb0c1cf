"""The table of the experiment file about how fast devices are, and who waits for whom."""

from typing import Self

from pydantic import model_validator

from federation.keys import Table, key


class Asynchrony(Table):
    """Devices of unlike speed, under a clock that the run's seed drives and no machine."""

    spread: float = key(
        0.0,
        "deviation of the logarithm of the devices' speeds; 0 = all alike, 1 = the slowest of ten "
        "clients takes about ten times as long as the fastest",
        ge=0,
        le=3,
    )
    buffer: int = key(
        0,
        "replies that the server waits for before it aggregates, whoever sends them (FedBuff); 0 = "
        "rounds that wait for their whole cohort",
        ge=0,
    )
    concurrency: int = key(
        0, "buffer: clients at work at any time; 0 = twice the buffer, or all if fewer", ge=0
    )
    staleness: float = key(
        0.5,
        "buffer: an update of weights that s aggregates overtook counts 1 / (1 + s)^staleness",
        ge=0,
    )

    @property
    def timed(self) -> bool:
        """Whether a run tells its virtual time."""
        return bool(self.spread or self.buffer)

    @model_validator(mode="after")
    def _enough_at_work(self) -> Self:
        if self.concurrency and not self.buffer:
            raise ValueError("concurrency is of asynchronous runs; set buffer too, or leave it")
        if self.concurrency and self.concurrency < self.buffer:
            raise ValueError(
                f"concurrency = {self.concurrency} clients never fill a buffer of {self.buffer}; "
                "raise the one or lower the other"
            )
        return self
