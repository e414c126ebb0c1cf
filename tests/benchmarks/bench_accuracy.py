"""Accuracy and seconds per client-round over seeds: the quick start, and communities of Cora.

Every strategy of a configuration runs on the same partitions; the round is chosen on validation
nodes. The configurations on Cora need GRAPHCL_DATA.

Run with ``python tests/benchmarks/bench_accuracy.py [CONFIG ...]``.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"
SEEDS = (0, 1, 2, 3, 4)


def main() -> None:
    """Print one table per configuration."""
    for name in sys.argv[1:] or ("quickstart", "cora_fedavg", "cora_fedproto"):
        accuracy: dict[str, list[float]] = {}
        seconds: dict[str, list[float]] = {}
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "simulations.cli", "run",
                           str(CONFIGS / f"{name}.toml"), "--engine", "local", "--out", folder,
                           "--set", f"run.seed={seed}"]  # fmt: skip
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                for path in sorted(Path(folder).rglob("summary.json")):
                    summary = json.loads(path.read_text())
                    lines = (path.parent / "metrics.jsonl").read_text().splitlines()
                    updates = [json.loads(line) for line in lines]
                    strategy = summary["strategy"]
                    accuracy.setdefault(strategy, []).append(summary["test_accuracy"])
                    seconds.setdefault(strategy, []).extend(
                        line["seconds"] for line in updates if line.get("status") == "ok"
                    )
        print(f"\n{name}, seeds {', '.join(map(str, SEEDS))}")
        print(f"{'strategy':<10}{'test accuracy':>22}{'ms per client-round':>21}")
        for strategy, values in accuracy.items():
            spread = f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
            print(f"{strategy:<10}{spread:>22}{1e3 * statistics.median(seconds[strategy]):>21.1f}")


if __name__ == "__main__":
    main()
