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
    run = subprocess.Popen(
        [*command, "--engine", engine, "--out", str(out)], stdout=subprocess.DEVNULL
    )
    while run.poll() is None and not _rounds(out):
        time.sleep(0.02)
    first_seen = time.perf_counter() - started
    if run.wait():
        raise SystemExit(f"the run on {engine} failed")
    wall = time.perf_counter() - started
    rounds = _rounds(out)
    summary = next(out.iterdir()) / "summary.json"
    return {
        # The first round builds models in every process; the last one evaluates.
        "update_ms": 1e3 * statistics.median(rounds[1:-1]) / 20,
        "startup_s": first_seen - rounds[0],
        "wall_s": wall,
        "digest": json.loads(summary.read_text())["digest"],
    }


def _rounds(out: Path) -> list[float]:
    """Return the seconds of the rounds that are done so far."""
    lines = [line for path in out.glob("*/metrics.jsonl") for line in path.read_text().split("\n")]
    rounds = [json.loads(line) for line in lines if line.endswith("}")]
    return [line["seconds"] for line in rounds if line["kind"] == "round"]


def main() -> None:
    """Print one table."""
    with tempfile.TemporaryDirectory() as folder:
        figures = {engine: measure(engine, Path(folder)) for engine in ("local", "ray", "flower")}
    digests = {figure["digest"] for figure in figures.values()}
    assert len(digests) == 1, f"the carriers disagree: {digests}"
    base = float(figures["flower"]["update_ms"])
    print(
        f"{'carrier':<8}{'ms per update':>14}{'times faster':>14}"
        f"{'start-up s':>12}{'whole run s':>13}"
    )
    for engine, figure in figures.items():
        ratio = base / float(figure["update_ms"])
        print(
            f"{engine:<8}{figure['update_ms']:>14.2f}{ratio:>14.2f}"
            f"{figure['startup_s']:>12.2f}{figure['wall_s']:>13.2f}"
        )
    print(f"same digest on all: {digests.pop()}")


if __name__ == "__main__":
    main()
