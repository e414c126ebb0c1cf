"""Seconds per client update and start-up of the three carriers, side by side in one run.

100 clients of 64 samples, a perceptron 32-64-10 with a linear head, 20 clients a round, 20 rounds
of FedAvg with 3 local epochs. Every carrier runs the same apps in a fresh process; all end in the
same digest. Evaluation happens once, after the last round, which is left out.

Run with ``python tests/benchmarks/bench_carriers.py``; nothing is asserted but the digest.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXPERIMENT = """
[run]
name = "carriers"
rounds = 20
evaluate_every = 20

[data]
source = "csbm"
csbm.nodes = 6400
csbm.classes = 10
csbm.features = 32

[partition]
clients = 100
alpha = 100000.0

[model]
encoders = "mlp"
hidden_channels = 64
embedding_channels = 10

[train]
optimizer = "sgd"

[strategy]
name = "fedavg"
fraction = 0.2
"""


def measure(engine: str, folder: Path) -> dict[str, float | str]:
    """Run the experiment on one carrier; return its figures."""
    config = folder / "carriers.toml"
    config.write_text(EXPERIMENT)
    out = folder / engine
    started = time.perf_counter()
    command = [sys.executable, "-m", "simulations.cli", "run", str(config)]
    subprocess.run(
        [*command, "--engine", engine, "--out", str(out)], check=True, stdout=subprocess.DEVNULL
    )
    wall = time.perf_counter() - started
    directory = next(out.iterdir())
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    rounds = [line["seconds"] for line in lines if line["kind"] == "round"]
    digest = json.loads((directory / "summary.json").read_text())["digest"]
    # The first round builds models and data in every process; the last one evaluates.
    per_update = statistics.median(rounds[1:-1]) / 20
    return {"update_ms": 1e3 * per_update, "startup_s": wall - sum(rounds), "wall_s": wall,
            "first_round_s": rounds[0], "digest": digest}  # fmt: skip


def main() -> None:
    """Print one table."""
    with tempfile.TemporaryDirectory() as folder:
        figures = {engine: measure(engine, Path(folder)) for engine in ("local", "ray", "flower")}
    digests = {figure["digest"] for figure in figures.values()}
    assert len(digests) == 1, f"the carriers disagree: {digests}"
    base = float(figures["flower"]["update_ms"])
    print(f"{'carrier':<8}{'ms/update':>10}{'x flower':>10}{'first round s':>15}"
          f"{'start+stop s':>14}{'wall s':>8}")  # fmt: skip
    for engine, figure in figures.items():
        ratio = base / float(figure["update_ms"])
        print(f"{engine:<8}{figure['update_ms']:>10.2f}{ratio:>10.2f}{figure['first_round_s']:>15.2f}"
              f"{figure['startup_s']:>14.2f}{figure['wall_s']:>8.2f}")  # fmt: skip
    print(f"same digest on all: {digests.pop()}")


if __name__ == "__main__":
    main()
