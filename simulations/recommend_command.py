"""``graphcl recommend``: train, evaluate, serve and export sequential recommenders."""

import socket
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from graphcl.errors import ConfigError
from simulations import terminal

if TYPE_CHECKING:
    from simulations.recommend_evaluation import Evaluation, Pair
    from simulations.recommendations import RecommendExperiment

# What a narrow terminal goes without, in this order.
LEAST_READ = ("MRR", "HR@5", "NDCG@5", "HR@20", "NDCG@20")

app = typer.Typer(no_args_is_help=True, help="Recommend what a user may take next.")

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
]
Model = Annotated[Path, typer.Option(help="File that graphcl recommend train made.")]


@app.command()
def train(
    config: Annotated[
        Path, typer.Argument(help="Recommend file, e.g. configs/recommend/simulated.toml.")
    ],
    out: Annotated[Path, typer.Option(help="File of the model to make, e.g. model.safetensors.")],
    method: Annotated[
        str | None, typer.Option(help="Instead of the file's own: pop, gru4rec, sasrec, ….")
    ] = None,
    set_: Settings = None,
) -> None:
    """Train a recommender on all but the last event of each user, which chooses the epoch.

    There is no test here, and recommend.split is not read: measure with graphcl recommend evaluate,
    then train what is to be served. Popularity holds nothing out.

    For example:

      graphcl recommend train configs/recommend/simulated.toml --out model.safetensors

      graphcl recommend train FILE.toml --set recommend.source=clicks.csv --out model.safetensors
    """
    with terminal.loading():
        from graphcl.training import num_threads
        from simulations.recommendations import load_data, new_recommender

    _check_new_file(out)
    (experiment,) = _load([config], set_, {"recommend.method": method} if method else {})
    name = experiment.recommend.method
    with terminal.console.status("Loading the interactions"):
        interactions = load_data(experiment)
    model, best = new_recommender(experiment, name), 0.0
    with num_threads(1), Progress(*terminal.COLUMNS, console=terminal.console) as progress:
        task = progress.add_task(name, total=getattr(model.config, "epochs", 1), figures="")

        def show(epoch: int, terms: dict[str, float]) -> None:
            nonlocal best
            best = max(best, 1 - terms["val"])
            progress.update(task, completed=epoch, figures=_epoch_figures(terms))

        model.fit(interactions, on_epoch=show)
    model.save(out)
    reached = f", NDCG@10 {best:.4f} on held-out events" if best else ""
    learned = int(model.count.sum())
    held_out = f", {len(interactions) - learned} held out" if learned < len(interactions) else ""
    terminal.say(
        f"Trained {name} on {learned} events of {interactions.num_users} users with "
        f"{interactions.num_items} items{held_out}{reached}"
    )
    terminal.say(f"To serve it: [bold]graphcl recommend serve --model {escape(str(out))}[/bold]")


@app.command()
def evaluate(
    configs: Annotated[
        list[Path], typer.Argument(help="Recommend files, e.g. configs/recommend/*.toml.")
    ],
    method: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be repeated. Default: all.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Trainings per method; overrides recommend.seeds.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Trainings at a time, each in a process with one thread.")
    ] = 1,
    set_: Settings = None,
    out: Annotated[Path, typer.Option(help="Where results are written.")] = Path("runs/recommend"),
) -> None:
    """Train recommenders with several seeds and measure how they rank held-out events.

    HR, NDCG and MRR of full rankings, for all items and by how often they are seen in training; the
    protocol stands above each table. Every finished training is kept in OUT/NAME, by a hash of its
    data and settings: after Ctrl-C, or with more methods or seeds, the same command goes on where
    it was. Delete a file there to train anew.

    For example:

      graphcl recommend evaluate configs/recommend/simulated.toml

      graphcl recommend evaluate configs/recommend/*.toml --method pop --method sasrec --jobs 4
    """
    terminal.check_folder(out)
    with terminal.loading():
        from graphcl.recommend import RECOMMENDERS
        from simulations.recommendations import check_name

    for name in method or []:
        try:
            check_name(name, RECOMMENDERS)
        except ValueError as error:
            raise ConfigError(f"--method {error}") from None
    experiments = _load(configs, set_, {} if seeds is None else {"recommend.seeds": seeds})
    names = Counter(experiment.recommend.name for experiment in experiments)
    name, times = names.most_common(1)[0]
    if times > 1:
        raise ConfigError(
            f"{times} files have recommend.name = '{name}', and one's results would overwrite "
            "another's; give each a name of its own"
        )
    for experiment in experiments:
        _evaluate(experiment, method, jobs, out)


@app.command()
def serve(
    model: Model,
    host: Annotated[
        str, typer.Option(help="Address to listen at; anybody who reaches it may ask.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = any that is free.")] = 8000,
) -> None:
    """Serve a trained recommender over HTTP until Ctrl-C.

    POST /rank takes {"history": [names or numbers of items, oldest first], "k": 10, "exclude_seen":
    true} and returns items with names, numbers and scores; without a history, what most users take.
    SLSRec ranks worse without "time", the seconds since 1970 of each event; "now" is when it is
    asked, by default right after the last one.
    GET /health says what is served. Nothing of a request is logged. There is no encryption and no
    password: elsewhere than on this machine, put a proxy with both in front.

    For example:

      graphcl recommend serve --model model.safetensors

      curl -H "Content-Type: application/json" -d '{"history": [3, 5]}' localhost:8000/rank
    """
    import torch
    import uvicorn

    from graphcl.recommend import load_recommender
    from simulations.recommend_service import create_app

    service = create_app(load_recommender(model).freeze())
    torch.set_num_threads(1)  # requests run beside one another
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at --host {host} --port {port}: {error.strerror}; choose another, "
            "--port 0 is any that is free"
        ) from None
    place = f"[{host}]" if ":" in host else host
    terminal.say(f"Serving at [bold]http://{escape(place)}:{listener.getsockname()[1]}[/bold]")
    settings = uvicorn.Config(service, log_level="warning", access_log=False)
    uvicorn.Server(settings).run(sockets=[listener])


@app.command()
def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="File to make, e.g. vectors.npz.")],
) -> None:
    """Write the items' vectors for a vector index that searches by inner product.

    The file holds vector, one row per item; item, its number; and name, where there are names.

    For example:

      graphcl recommend export --model model.safetensors --out vectors.npz
    """
    import torch

    from graphcl.datasets.arrays import write_arrays
    from graphcl.recommend import load_recommender

    _check_new_file(out)
    recommender = load_recommender(model)
    if not recommender.scores_by_product:
        raise ConfigError(
            f"--model {model}: it weighs every item anew against the history, so that no index of "
            "vectors ranks as it does; train with slsrec.mode = 'retrieval', or use `graphcl "
            "recommend serve`"
        )
    with torch.no_grad():
        vectors = recommender.item_vectors()[1:].numpy()
    names = recommender.item_name
    write_arrays(
        out,
        {
            "vector": vectors,
            "item": range(1, 1 + len(vectors)),
            **({} if names is None else {"name": names[1:]}),
        },
    )
    terminal.say(f"{len(vectors)} vectors of {vectors.shape[1]}: [bold]{escape(str(out))}[/bold]")


def _load(
    configs: list[Path], settings: list[str] | None, own: dict[str, str | int]
) -> list["RecommendExperiment"]:
    """Read files with what was typed; ``own`` are keys that have an option of their own."""
    from simulations.recommendations import describe_recommend_keys, load_recommend_experiment

    overrides = terminal.parse_settings(settings or [], describe_recommend_keys())
    return [load_recommend_experiment(config, {**overrides, **own}) for config in configs]


def _evaluate(
    experiment: "RecommendExperiment", named: list[str] | None, jobs: int, out: Path
) -> None:
    """Run one file's missing trainings; what was finished is shown even if it is interrupted."""
    from graphcl.recommend import RECOMMENDERS
    from graphcl.training import num_threads
    from simulations.recommend_evaluation import Evaluation
    from simulations.recommend_results import write_evaluation

    name = experiment.recommend.name
    with terminal.console.status(f"Loading {escape(name)}"):
        evaluation = Evaluation(experiment, named or list(RECOMMENDERS), out)
    if kept := len(evaluation.found):
        terminal.say(
            f"{kept} of {len(evaluation.pairs)} trainings are in {escape(str(out / name))} "
            "already and are not run again"
        )
    try:
        with num_threads(1), Progress(*terminal.COLUMNS, console=terminal.console) as progress:
            task = progress.add_task(name, total=len(evaluation.pairs), completed=kept, figures="")

            def show(pair: "Pair", epoch: int, terms: dict[str, float]) -> None:
                progress.update(task, figures=f"{pair} epoch {epoch}  {_epoch_figures(terms)}")

            with closing(evaluation.run(jobs, show)) as ended:
                for pair in ended:
                    progress.update(task, advance=1, figures=str(pair))
    except KeyboardInterrupt:
        terminal.say("\nStopped. The same command goes on with the trainings that are missing")
        raise
    finally:
        if evaluation.found:
            _print_table(evaluation)
            paths = " and ".join(map(str, write_evaluation(evaluation)))
            terminal.say(f"Results: [bold]{escape(paths)}[/bold]")
        for failed, error in evaluation.failed.items():
            terminal.say(f"{failed} has no figures: {escape(str(error))}")
    if evaluation.failed and (named or not evaluation.found):
        raise next(iter(evaluation.failed.values()))


def _print_table(evaluation: "Evaluation") -> None:
    from simulations.recommend_results import columns, costs, protocol, rows

    for line in protocol(evaluation):
        terminal.say(escape(line))
    summaries = evaluation.summaries()
    head, body = columns(summaries), rows(summaries)
    shown = list(range(len(head)))
    dropped = [head.index(name) for name in LEAST_READ if name in head]
    wide = terminal.console.options.update(max_width=1000)
    for least in dropped:
        needed = terminal.console.measure(_table(head, body, shown), options=wide).maximum
        if needed <= terminal.console.width:
            break
        shown.remove(least)
    terminal.console.print(_table(head, body, shown))
    if len(shown) < len(head):
        hidden = ", ".join(name for place, name in enumerate(head) if place not in shown)
        terminal.say(f"Too wide for this terminal, and in the files below: {hidden}")
    terminal.say(f"Trainings: {costs(summaries)}")


def _table(head: list[str], body: list[list[str]], shown: list[int]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for place in shown:
        table.add_column(head[place], no_wrap=True, justify="left" if place < 2 else "right")
    for row in body:
        table.add_row(*(row[place] for place in shown))
    return table


def _epoch_figures(terms: dict[str, float]) -> str:
    return f"loss {terms['loss']:.3f}  NDCG@10 {1 - terms['val']:.4f}"


def _check_new_file(out: Path) -> None:
    """Refuse what would be lost, or could not be written after a long training."""
    if out.exists():
        raise ConfigError(f"--out {out} exists already: name a new file")
    terminal.check_file(out)
