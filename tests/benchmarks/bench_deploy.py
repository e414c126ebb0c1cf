"""Rounds of a deployment on the loopback interface: as Flower comes, and as graphcl runs it.

Both have TLS and node authentication, the same sites, data, strategy and SuperLink options. Plain:
``flower-superlink`` and ``flower-supernode``, a process per message, training and evaluation in a
message each. Ours: ``graphcl deploy``. Timed from the first message of round 1 to the summary, so
that neither pays for its start.

    python tests/benchmarks/bench_deploy.py --rounds 10 --repeats 3
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from federation.deploy.authority import CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY, SITE_KEY
from federation.deploy.bundles import ServerBundle, SiteBundle
from federation.deploy.processes import (
    CONNECTION,
    binary,
    environment,
    free_port,
    start_logged,
    stop_family,
    tail,
    wait_for_superlink,
    write_app,
    write_connection,
)
from federation.deploy.provision import provision
from federation.deploy.registry import Site, let_in
from federation.deploy.server import Server
from federation.deploy.site import SiteNode
from federation.deploy.split import split
from federation.experiment import Experiment, load_experiment

TASKS = {
    "idle": {"data.source": "csbm", "data.csbm.nodes": 120, "data.csbm.classes": 3},
    "nodes": {"data.source": "csbm", "data.csbm.nodes": 2000, "train.epochs": 5},
    "outages": {
        "task.name": "outages",
        "data.source": "storms",
        "data.outages.districts": 2,
        "partition.scheme": "natural",
        "strategy.name": "fedavg",
    },
}
COMMON = {
    "run.seed": 1,
    "partition.clients": 2,
    "train.epochs": 1,
    "strategy.name": "feddbp",
    "simulation.engine": "local",
}
LONGEST_SECONDS = 1200.0


def provisioned(folder: Path, keys: dict) -> Path:
    """Provision the clients of a simulation as sites; return the folder of all folders."""
    split(Experiment.from_flat({**COMMON, **keys}), folder / "split")
    file = folder / "split" / "sites.toml"
    lines = [
        f"port = {free_port()}" if line.startswith("port = ") else line
        for line in file.read_text().splitlines()
    ]
    file.write_text("\n".join(lines) + "\n")
    provision(file, folder / "deployment")
    return folder / "deployment"


def timed(run: Path, alive) -> float:
    """Return the seconds from the first message of round 1 to the summary."""
    begun, started = time.monotonic(), None
    while not (run / "summary.json").exists():
        if started is None and (run / "releases").exists():
            started = time.monotonic()
        if time.monotonic() - begun > LONGEST_SECONDS or not alive():
            raise SystemExit(f"{run}: the run did not finish")
        time.sleep(0.02)
    return time.monotonic() - (started or begun)


def ours(out: Path) -> float:
    """Return the seconds of a run by graphcl deploy."""
    stop = threading.Event()
    server = Server(out / "server", print, 2**28)
    nodes = [SiteNode(folder, print) for folder in sorted((out / "sites").iterdir())]
    threads = [threading.Thread(target=one.serve, args=(stop,)) for one in (server, *nodes)]
    for thread in threads:
        thread.start()
    try:
        return timed(server.word.run, threads[0].is_alive)
    finally:
        threads[0].join()
        stop.set()
        for thread in threads:
            thread.join()


def plain(out: Path) -> float:
    """Return the seconds of a run by Flower's own commands."""
    server, state = out / "server", out / "server" / "state"
    bundle = ServerBundle.load(server)
    authority, port = server / CA_CERTIFICATE, bundle.port
    quiet = environment(state)
    write_connection(
        state, {"address": f"127.0.0.1:{port}", "root-certificates": str(authority.resolve())}
    )
    command = [
        *(binary("flower-superlink"), "--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-ca-certfile", str(authority), "--ssl-certfile", str(server / SERVER_CERTIFICATE)),
        *("--ssl-keyfile", str(server / SERVER_KEY), "--enable-supernode-auth"),
        *("--database", str(state / "db"), "--disable-runtime-dependency-installation"),
    ]
    log = state / "superlink.log"
    processes = [start_logged(command, log, quiet)]
    try:
        wait_for_superlink(processes[0], port, log, authority)
        let_in([Site.of(known) for known in bundle.site], f"127.0.0.1:{port}", authority)
        for folder in sorted((out / "sites").iterdir()):
            site = SiteBundle.load(folder)
            config = (
                f'partition-id={site.partition} num-partitions={site.clients} data="{site.data}"'
            )
            node = [
                *(binary("flower-supernode"), "--superlink", site.server),
                *("--root-certificates", str(folder / CA_CERTIFICATE), "--node-config", config),
                *("--auth-supernode-private-key", str(folder / SITE_KEY)),
                *("--host", "127.0.0.1", "--port", str(site.port)),
            ]
            processes.append(start_logged(node, folder / "log", environment(folder / "state")))
        run = out / "run"
        config = load_experiment(server / "config.toml", {"run.directory": str(run.resolve())})
        app = write_app(state / "app", config.flat())
        client = start_logged(
            [binary("flwr"), "run", str(app), CONNECTION, "--stream"], state / "app.log", quiet
        )
        processes.append(client)
        try:
            return timed(run, lambda: client.poll() is None or (run / "summary.json").exists())
        except SystemExit:
            print(tail(state / "app.log", 40), file=sys.stderr)
            raise
    finally:
        for process in reversed(processes):
            stop_family(process)


def main() -> None:
    """Print a line per task: seconds of both ways, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--task", choices=TASKS, action="append")
    arguments = parser.parse_args()
    for task in arguments.task or ["idle", "nodes"]:
        seconds: dict[str, list[float]] = {"ours": [], "plain": []}
        for _ in range(arguments.repeats):
            for name, way in (("ours", ours), ("plain", plain)):
                with tempfile.TemporaryDirectory(prefix="graphcl-bench-") as folder:
                    keys = {**TASKS[task], "run.rounds": arguments.rounds}
                    seconds[name].append(way(provisioned(Path(folder), keys)))
        for name, measured in seconds.items():
            each = [value / arguments.rounds for value in measured]
            spread = f" ± {statistics.stdev(each):.2f}" if len(each) > 1 else ""
            total = statistics.mean(measured)
            print(
                f"{task:8} {name:6} {total:7.1f} s, {statistics.mean(each):.2f}{spread} s a round"
            )
        ratios = [p / o for o, p in zip(seconds["ours"], seconds["plain"], strict=True)]
        print(f"{task:8} plain / ours {statistics.mean(ratios):.1f}", flush=True)


if __name__ == "__main__":
    main()
