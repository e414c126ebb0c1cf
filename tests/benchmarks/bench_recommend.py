"""What a sequential recommender costs against its catalogue: training and ranking, beside dense.

SASRec reads simulated histories of eleven events, a length like that of Amazon's.  Dense holds all
logits of a batch at once, as a loss over ``states @ items.T`` does; blocks is the default, equal to
it but for rounding; sampled is the cheap option, with 1,024 negatives shared by a batch.

Every case runs in a process of its own, on one thread.  Printed are users per second of a full
ranking that leaves out what was seen, sequences per second of a training step, and the memory that
each adds at its peak to the model, its gradients and its moments.  Dense is left out where it would
exceed 12 GiB.

Run ``python tests/benchmarks/bench_recommend.py``, or with sizes of the catalogue behind it.
"""

import argparse
import json
import sys
import time
from typing import Any

import torch
from measuring import in_fresh_process, peak
from torch import Tensor

from graphcl.datasets import Interactions
from graphcl.recommend import (
    RecommenderConfig,
    SASRec,
    Sequences,
    TrainingBatches,
    catalogue_cross_entropy,
)

CATALOGUES = (12_101, 100_000, 1_000_000)
USERS, EVENTS, BATCH, STEPS, NEGATIVES = 1024, 11, 256, 3, 1024
LIMIT = 12 * 2**30


class DenseSASRec(SASRec):
    """With all logits of a batch in memory."""

    def softmax(self, states: Tensor, target: Tensor, vectors: Any = None) -> Tensor:
        hidden, items = states.flatten(0, -2), self.item_vectors()
        return catalogue_cross_entropy(hidden, items, target.flatten(), method="dense")


CASES = {"dense": (DenseSASRec, 0), "blocks": (SASRec, 0), "sampled": (SASRec, NEGATIVES)}


def histories(num_items: int) -> Interactions:
    rng = torch.Generator().manual_seed(0)
    user = torch.arange(USERS).repeat_interleave(EVENTS)
    item = torch.randint(1, num_items + 1, (len(user),), generator=rng)
    return Interactions("random", user, item, USERS, num_items)


def measure(case: str, num_items: int) -> dict[str, float]:
    torch.set_num_threads(1)
    kind, negatives = CASES[case]
    interactions = histories(num_items)
    model = kind(RecommenderConfig(negatives=negatives, dropout=0.0)).start(interactions)
    optimizer = model.optimizer()

    def step(batch: Sequences) -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        (loss,) = model.loss(batch).values()
        loss.backward()
        optimizer.step()
        return loss.detach()

    # Moments and gradients of the whole model, and the libraries' own buffers, come first.
    (small,) = [x for i, x in enumerate(TrainingBatches(interactions, 50, 2, 0)) if i == 0]
    step(small)
    batches = list(TrainingBatches(interactions, 50, BATCH, 0))
    model.rank(interactions.sequence(0), 10)
    before, start = peak(), time.perf_counter()
    model.rank(interactions, 10)
    ranked, ranking = time.perf_counter() - start, peak() - before
    batches = list(TrainingBatches(interactions, 50, BATCH, 0))
    model.train()
    loss = float(step(batches[0]))
    start = time.perf_counter()
    for batch in batches[1 : 1 + STEPS]:
        step(batch)
    trained = time.perf_counter() - start
    return {
        "users": USERS / ranked,
        "ranking": ranking,
        "sequences": STEPS * BATCH / trained,
        "training": peak() - before,
        "loss": loss,
    }


def main(catalogues: list[int]) -> None:
    print(
        f"batches of {BATCH} sequences of {EVENTS} events, width 64, one thread\n"
        f"{'items':>9} {'case':<8} {'rank/s':>7} {'MiB':>6} {'train/s':>8} {'MiB':>6} "
        f"{'less':>5} {'loss':>8}"
    )
    for num_items in catalogues:
        dense: float | None = None
        for case in CASES:
            if case == "dense" and 3 * 4 * BATCH * (EVENTS - 1) * num_items > LIMIT:
                print(f"{num_items:>9} dense    left out: over {LIMIT >> 30} GiB")
                continue
            found = json.loads(in_fresh_process(__file__, case, num_items))
            dense = found["training"] if case == "dense" else dense
            less = "" if dense is None else f"{dense / found['training']:.1f}"
            print(
                f"{num_items:>9} {case:<8} {found['users']:>7.0f} {found['ranking']:>6.0f} "
                f"{found['sequences']:>8.1f} {found['training']:>6.0f} {less:>5} "
                f"{found['loss']:>8.4f}",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]))))
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        sizes = "items in the catalogue, one or more, instead of those of the table"
        parser.add_argument("sizes", type=int, nargs="*", help=sizes)
        main(parser.parse_args().sizes or list(CATALOGUES))
