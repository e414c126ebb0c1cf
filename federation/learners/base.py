"""The contract between a node's model and the federated algorithms."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from federation.experiment import Experiment
from federation.tables import Train
from graphcl.errors import ReplyError
from graphcl.training import derive_seed


class Forward(NamedTuple):
    """One forward pass over labelled samples."""

    embedding: Tensor  # [num_samples, embedding_channels]
    logits: Tensor  # [num_samples, num_classes]
    y: Tensor  # [num_samples], class ids

    def of(self, mask: Tensor) -> "Forward":
        """Return the samples of a mask, ``[num_samples]``."""
        return Forward(self.embedding[mask], self.logits[mask], self.y[mask])


class Owners(NamedTuple):
    """Whose the samples of a pass are, where several clients share it."""

    client: Tensor  # [num_samples], which one's
    clients: int

    @classmethod
    def one(cls, y: Tensor) -> "Owners":
        """Return that all samples, of classes ``y``, are those of one client."""
        return cls(torch.zeros_like(y), 1)

    def mean(self, values: Tensor, counted: Tensor | None = None) -> Tensor:
        """Return the mean of every client's samples, of which only some may count.

        Args:
            values: Zero where a sample does not count.
            counted: Which do; all by default.

        Shapes:
            - **values**, **counted**: ``[num_samples]``
            - **output**: ``[clients]``, 0 for a client without a sample that counts
        """
        client = self.client if counted is None else self.client[counted]
        if self.clients == 1:
            return values.sum()[None] / max(len(client), 1)
        number = torch.bincount(client, minlength=self.clients).clamp(min=1)
        return values.new_zeros(self.clients).index_add(0, self.client, values) / number


Penalty = Callable[[Forward], Mapping[str, Tensor]]
Predict = Callable[[Forward], Mapping[str, Tensor]]
Projector = Callable[[int], nn.Module]


class Projected(nn.Module):
    """A network and, behind what it embeds, the projector of the algorithm.

    Args:
        network: With its layers created.
        projector: Maps an embedding to one of the same width; the identity by default.
    """

    def __init__(self, network: nn.Module, projector: nn.Module | None = None):
        super().__init__()
        self.network = network
        self.projector = nn.Identity() if projector is None else projector


@contextmanager
def drawn_for(experiment: Experiment, client: int | str) -> Iterator[None]:
    """Draw weights that depend on the seed and the client alone, and leave no trace of it."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also queue a call, with a stack trace, for devices never used.
        torch.default_generator.manual_seed(derive_seed(experiment.run.seed, "model", client))
        yield


Initial = Mapping[str, Tensor] | Callable[[], Mapping[str, Tensor]]


M = TypeVar("M", bound=nn.Module)


class Workbench(Generic[M]):
    """A model with its optimiser, on which clients of one shape can work in turn.

    Whoever comes after another must bring all that it needs: weights, and moments if any stay.

    Args:
        model: Its parameters are never replaced, only filled.
        optimizer: Of the model.

    Attributes:
        weights: The model's state, not a copy of it.
        learner: Who has worked here last.
    """

    def __init__(self, model: M, optimizer: torch.optim.Optimizer):
        self.model = model
        self.optimizer = optimizer
        self.weights: dict[str, Tensor] = dict(model.state_dict())
        self.learner: Learner | None = None


class Learner(ABC):
    """A model with its data on one node.

    Args:
        model: All that may cross the wire or stay on the node; or a workbench with it, which other
            clients of this process use, too.
        initial: Its state in the first round, or what returns it; by default as it is now.

    Attributes:
        model: All that may cross the wire or stay on the node.
        holds: The stored record whose state this learner has, if it is known.
        heads: Names of weights behind the embedding, which ``fedper`` leaves on their node
            and ``lgfedavg`` alone averages.
        computed: Names of weights that clients compute from their data before they first train, so
            that those of the first round are no place from which they moved.
    """

    heads: ClassVar[tuple[str, ...]] = ()
    computed: ClassVar[tuple[str, ...]] = ()
    model: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        model: nn.Module | Workbench[Any],
        initial: Initial | None = None,
    ):
        if isinstance(model, nn.Module):
            model = Workbench(model, self.new_optimizer(model))
        self.bench = model
        self.model, self.optimizer = model.model, model.optimizer
        self._initial = copied(model.weights) if initial is None else initial
        self.holds: object = None

    @staticmethod
    @abstractmethod
    def build(
        experiment: Experiment,
        client: int | str,
        channels: Mapping[str, int],
        num_classes: int,
        projector: Projector | None = None,
    ) -> nn.Module:
        """Build the model of one client, or the server's first one (``client="server"``).

        The weights depend on the seed and the client alone, whatever the algorithm.

        Args:
            experiment: The whole experiment.
            client: Whose model it is.
            channels: Widths of the input features, the entries of :meth:`facts` that end so.
            num_classes: Number of classes over all clients.
            projector: What the algorithm puts behind the embedding, if anything.
        """

    @staticmethod
    def own_names(experiment: Experiment) -> tuple[str, ...]:
        """Return names of weights that belong to the data of one client, under every algorithm."""
        return ()

    @abstractmethod
    def facts(self) -> dict[str, int]:
        """Return what the server must know to plan: sample, feature and class counts.

        ``num-examples``, ``num-classes``, the widths of inputs under names that end in
        ``-channels``, and, under names that end in ``-names``, a hash of what must be called alike
        everywhere before weights can be averaged.
        """

    @abstractmethod
    def fit(self, penalty: Penalty) -> dict[str, float]:
        """Train for a round; return the loss terms of the last epoch.

        Args:
            penalty: Named terms of the federated algorithm, added to the learner's own loss.
        """

    @abstractmethod
    def evaluate(self, predict: Predict) -> dict[str, float]:
        """Return the scores of the task on the node's own validation and test examples.

        The metrics hold ``num-examples`` and ``val-examples``, the numbers of test and validation
        examples, ``test-loss``, the first of the task's :data:`federation.scores.SCORES` on both,
        and the others on test examples.  All are finite, also where there is no example.

        Args:
            predict: Named inferences of the federated algorithm; the first is the one that counts.
        """

    @abstractmethod
    def new_optimizer(self, model: Any) -> torch.optim.Optimizer:
        """Return an optimiser of the learner's model, without moments."""

    def reset_optimizer(self) -> None:
        """Forget the optimiser's moments."""
        self.optimizer.state.clear()

    def take_bench(self) -> None:
        """Come back to the workbench; what others have left there is not this learner's state."""
        if self.bench.learner is not self:
            self.bench.learner, self.holds = self, None

    def start(self) -> None:
        """Go back to the state of the first round."""
        self.load_weights(self._initial() if callable(self._initial) else self._initial)
        self.reset_optimizer()

    def state(self) -> dict[str, Tensor]:
        """Return everything that must survive until the next round: weights and moments."""
        state = {f"model/{name}": value for name, value in self.bench.weights.items()}
        for index, parameter in enumerate(self._parameters()):
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                state[f"optimizer/{index}/{slot}"] = value
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state`."""
        self.load_weights(
            {k.removeprefix("model/"): v for k, v in state.items() if k.startswith("model/")}
        )
        self.reset_optimizer()
        parameters = self._parameters()
        for name, value in state.items():
            if name.startswith("optimizer/"):
                _, index, slot = name.split("/")
                parameter = parameters[int(index)]
                self.optimizer.state[parameter][slot] = value.clone().to(parameter.device)

    def _parameters(self) -> list[nn.Parameter]:
        """Return the optimiser's parameters in its order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load the model's weights.

        Raises:
            ReplyError: If they belong to another model.
        """
        own = self.bench.weights
        if weights.keys() == own.keys() and all(own[n].shape == weights[n].shape for n in own):
            torch._foreach_copy_(list(own.values()), [weights[name] for name in own])
            return
        try:
            self.model.load_state_dict(dict(weights))  # tells what is amiss
        except RuntimeError as error:
            raise ReplyError(f"received weights of another model: {error}") from None


_SHAPES = 16  # of models that a process keeps; more than the encoders of any experiment
_benches: dict[Hashable, Workbench[Any]] = {}


def workbench(
    shape: Hashable | None,
    build: Callable[[], M],
    new_optimizer: Callable[[M], torch.optim.Optimizer],
) -> Workbench[M]:
    """Return a new workbench, or the one of this process for models of a shape.

    A process that works for thousands of clients so holds the models of one client of each shape.

    Args:
        shape: All that decides the model but for its first weights; None for a new workbench.
        build: Makes a model where there is none yet.
        new_optimizer: Makes its optimiser.
    """
    if shape is None:
        model = build()
        return Workbench(model, new_optimizer(model))
    if shape not in _benches:
        if len(_benches) == _SHAPES:
            del _benches[next(iter(_benches))]  # its learners still have it
        _benches[shape] = workbench(None, build, new_optimizer)
    return _benches[shape]


def clear_benches() -> None:
    """Let go of the models of earlier runs in this process."""
    _benches.clear()


class LabelledLearner(Learner):
    """A learner whose training samples have classes, as prototype algorithms need them.

    Attributes:
        head: Reads the embedding; part of the model, or fitted anew whenever it is needed.
        num_classes: Number of classes over all clients.
        embedding_channels: Width of the embedding.
    """

    head: nn.Linear
    num_classes: int
    embedding_channels: int

    @abstractmethod
    def features(self) -> Forward:
        """Return one pass over the training samples in evaluation mode, without gradient."""

    def unscored(self, embedding: Tensor, y: Tensor) -> Forward:
        """Return samples that no head reads in training, which is for something else."""
        return Forward(embedding, embedding.new_zeros(len(y), self.num_classes), y)

    def no_samples(self) -> Forward:
        """Return none: what an algorithm sees that may not, or need not, see classes."""
        none = torch.empty(0, self.embedding_channels)
        return self.unscored(none, torch.empty(0, dtype=torch.long))


def copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights that later steps do not change."""
    return {name: value.clone() for name, value in weights.items()}


def is_named(weight: str, names: Iterable[str]) -> bool:
    """Say whether a weight of a model's state has one of the names, or lies in a module of one."""
    return any(weight == name or weight.startswith(f"{name}.") for name in names)


def optimizer_for(parameters: Any, train: Train) -> torch.optim.Optimizer:
    """Return the optimiser that ``[train]`` asks for.

    Args:
        parameters: Parameters, or groups of them that may name their own step size.
        train: The table.
    """
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[train.optimizer]
    # One pass over each weight, where Adam would else take ten small ones in Python.
    return kind(parameters, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True)
