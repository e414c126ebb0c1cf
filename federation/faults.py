"""What goes wrong on purpose: the seeded plan of a run's faults, and what it does to replies.

Every draw is over partitions and rounds from the run's seed alone, and the server applies the plan
between receiving replies and checking them. So it is the same on every carrier and after a resume,
and what a hostile client says must be plausible to get past the checks.

In the order in which they strike: a client drops out; a hostile one tampers with its reply; the
reply is lost; an earlier one takes its place; a part of it is missing; bytes of it are. Processes
fail where they are, in the carriers of a simulation (:func:`ailments`); the server just notes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from federation.experiment import Experiment
from federation.fault_tables import FaultTable
from federation.records import from_bytes, to_arrays, to_bytes, to_tensors
from federation.strategies.base import Facts
from federation.strategies.prototypes import Upload
from graphcl.errors import ConfigError
from graphcl.training import numpy_rng

_STATE = "faults"


def hostile_clients(experiment: Experiment) -> frozenset[int]:
    """Return the partitions that attack: a fixed share, of which a larger one holds a smaller."""
    clients = experiment.partition.clients
    order = numpy_rng(experiment.run.seed, "faults", "hostile").permutation(clients)
    return frozenset(int(p) for p in order[: round(experiment.faults.hostile * clients)])


# What fails in a process, the gravest first: it hides the others.
AILMENTS = ("crash", "hang", "memory", "slow")


@lru_cache(maxsize=2)
def ailments(experiment: Experiment, server_round: int) -> Mapping[int, str]:
    """Return whose process fails in a round's training, and how, by partition."""
    table = experiment.faults
    found: dict[int, str] = {}
    for kind in reversed(AILMENTS):
        if chance := getattr(table, kind):
            found |= dict.fromkeys(_struck(experiment, kind, chance, server_round), kind)
    return found


def _struck(experiment: Experiment, kind: str, chance: float, server_round: int) -> frozenset[int]:
    rng = numpy_rng(experiment.run.seed, "faults", kind, server_round)
    draws = rng.random(experiment.partition.clients)
    return frozenset(int(p) for p in (draws < chance).nonzero()[0])


@dataclass
class RoundFaults:
    """The faults of one round; without arguments there are none.

    Attributes:
        dropped: Partitions that no message reaches.
        lost, stale, partial, corrupt, hostile: Partitions whose reply meets that fault.
        ailing: Whose process fails, and how.
        table: How the hostile ones attack.
        seed: Decides, by partition, which classes are missing.
        held: The last reply that was on its way, by partition; goes on from round to round.
        struck: What befell a partition in the end, in the order in which it happened.
    """

    dropped: frozenset[int] = frozenset()
    lost: frozenset[int] = frozenset()
    stale: frozenset[int] = frozenset()
    partial: frozenset[int] = frozenset()
    corrupt: frozenset[int] = frozenset()
    ailing: Mapping[int, str] = field(default_factory=dict)
    hostile: frozenset[int] = frozenset()
    table: FaultTable = field(default_factory=FaultTable)
    seed: tuple[int, int] = (0, 0)
    held: dict[int, bytes] = field(default_factory=dict)
    struck: dict[int, list[str]] = field(default_factory=dict)

    def reaches(self, partition: int) -> bool:
        """Say whether a message gets to a client."""
        if partition in self.dropped:
            self._note(partition, "dropped")
        elif partition in self.ailing:
            self._note(partition, self.ailing[partition])
        return partition not in self.dropped

    def arriving(
        self, partition: int, sent: RecordDict, content: RecordDict, num_classes: int
    ) -> RecordDict | None:
        """Return what arrives of a client's reply, if anything.

        Args:
            partition: Whose reply it is.
            sent: What the server had sent it.
            content: Its reply.
            num_classes: Number of classes over all clients.
        """
        if partition in self.hostile:
            attacked = attack(self.table, sent, content, num_classes)
            if attacked is not content:
                self._note(partition, "hostile")
            content = attacked
        if partition in self.lost:
            self._note(partition, "lost")
            return None
        if self.table.stale:
            # As bytes, since strategies may take the arrays out of a reply that they aggregate.
            before, self.held[partition] = self.held.get(partition), to_bytes(content)
            if partition in self.stale:
                self._note(partition, "stale")
                if before is None:
                    return None
                content = from_bytes(before)
        if partition in self.partial:
            incomplete = _without_a_part(content, self.seed, partition)
            if incomplete is not content:
                self._note(partition, "partial")
            content = incomplete
        if partition in self.corrupt:
            damaged = _corrupted(content)
            if damaged is not content:
                self._note(partition, "corrupt")
            content = damaged
        return content

    def reason(self, partition: int) -> str:
        """Say why nothing of a client arrived."""
        return f"fault plan: {self.told(partition)}"

    def told(self, partition: int) -> str:
        """Return the faults that befell a client, by name; empty where none did."""
        return ", ".join(self.struck.get(partition, []))

    def _note(self, partition: int, fault: str) -> None:
        self.struck.setdefault(partition, []).append(fault)


class Faults:
    """The plan of a run, and the replies that are on their way from round to round.

    Raises:
        ConfigError: If the backdoor is about a class that the data do not have.
    """

    def __init__(self, experiment: Experiment, facts: Facts):
        self.experiment = experiment
        self._held: dict[int, bytes] = {}
        table = experiment.faults
        if table.hostile and table.attack == "backdoor":
            for name in ("backdoor_class", "backdoor_target"):
                if getattr(table, name) >= facts.num_classes:
                    raise ConfigError(
                        f"faults.{name}: {getattr(table, name)}, but the data have the classes "
                        f"0..{facts.num_classes - 1}"
                    )

    def of_round(self, server_round: int) -> RoundFaults:
        """Return the faults of one round."""
        experiment, table = self.experiment, self.experiment.faults
        return RoundFaults(
            dropped=_struck(experiment, "drop", table.drop, server_round),
            lost=_struck(experiment, "lose", table.lose, server_round),
            stale=_struck(experiment, "stale", table.stale, server_round),
            partial=_struck(experiment, "partial", table.partial, server_round),
            corrupt=_struck(experiment, "corrupt", table.corrupt, server_round),
            ailing=ailments(experiment, server_round),
            hostile=hostile_clients(experiment),
            table=table,
            seed=(experiment.run.seed, server_round),
            held=self._held,
        )

    def state(self) -> dict[str, ConfigRecord]:
        """Return what a resumed run needs: the replies on their way, if there are any."""
        held = {str(partition): self._held[partition] for partition in sorted(self._held)}
        return {_STATE: ConfigRecord(dict(held))} if held else {}

    def load_state(self, state: RecordDict) -> None:
        """Inverse of :meth:`state`."""
        held = state.config_records.get(_STATE, ConfigRecord())
        self._held = {int(partition): bytes(data) for partition, data in held.items()}  # type: ignore[arg-type]


def attack(
    table: FaultTable, sent: RecordDict, content: RecordDict, num_classes: int
) -> RecordDict:
    """Return what a hostile client replies; the very same content where it sends nothing.

    Args:
        table: Which attack.
        sent: What the server had sent: an update is what weights differ by from those.
        content: The honest reply: ``prototypes``, or weights as ``arrays``.
        num_classes: Number of classes over all clients.
    """
    records = content.array_records
    if "prototypes" in records:
        upload = Upload.from_arrays(records["prototypes"])
        known = to_tensors(sent.array_records["prototypes"])
        lying = _attack_prototypes(table, upload, known, num_classes)
        if lying is upload:
            return content
        return RecordDict({**content, "prototypes": lying.to_arrays()})
    if "arrays" in records and sent.array_records["arrays"]:
        start = to_tensors(sent.array_records["arrays"])
        factor = -table.strength if table.attack == "sign_flip" else table.strength
        lying_weights = {
            name: start[name] + factor * (value - start[name])
            if value.is_floating_point()
            else value
            for name, value in to_tensors(records["arrays"]).items()
        }
        return RecordDict({**content, "arrays": to_arrays(lying_weights)})
    return content


def _attack_prototypes(
    table: FaultTable, upload: Upload, known: dict[str, torch.Tensor], num_classes: int
) -> Upload:
    """Return a hostile client's prototypes; the honest ones where a backdoor finds no class."""
    if table.attack == "sign_flip":
        return replace(upload, values=-table.strength * upload.values)
    if table.attack == "scale":
        return replace(upload, values=table.strength * upload.values)
    if table.attack == "label_swap":
        return replace(upload, classes=(upload.classes + 1) % num_classes)
    drawn = upload.classes == table.backdoor_class
    target = upload.values[upload.classes == table.backdoor_target]
    if not len(target):  # it has none of its own, but was sent one
        target = known["values"][known["classes"] == table.backdoor_target]
    if not len(target) or not bool(drawn.any()):
        return upload
    values = upload.values.clone()
    values[drawn] += table.strength * (target - values[drawn])
    return replace(upload, values=values)


def _corrupted(content: RecordDict) -> RecordDict:
    """Return a reply of whose first array half of the bytes are missing, if it has one."""
    for name, record in content.array_records.items():
        for key, array in record.items():
            cut = Array(array.dtype, array.shape, array.stype, array.data[: len(array.data) // 2])
            return RecordDict({**content, name: ArrayRecord({**record, key: cut})})
    return content


def _without_a_part(content: RecordDict, seed: tuple[int, int], partition: int) -> RecordDict:
    """Return a reply without half of its classes, or without an array where it has no classes.

    A reply of one class, or of no array, has no part that could be missing.
    """
    records = content.array_records
    if "prototypes" in records:
        tensors = to_tensors(records["prototypes"])
        held = len(tensors["classes"])
        if held < 2:
            return content
        run_seed, server_round = seed
        rng = numpy_rng(run_seed, "faults", "classes", server_round, partition)
        kept = torch.from_numpy(rng.permutation(held)[: -(-held // 2)]).sort().values
        part = {name: tensor[kept] for name, tensor in tensors.items()}
        told = {"num-examples": int(part["support"].sum())}
        metrics = MetricRecord({**content.metric_records["metrics"], **told})
        return RecordDict({**content, "prototypes": to_arrays(part), "metrics": metrics})
    for name, record in records.items():
        if record:
            left = dict(list(record.items())[:-1])
            return RecordDict({**content, name: ArrayRecord(left)})
    return content
