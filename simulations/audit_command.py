"""``graphcl audit``: what prototypes leak, and what it costs to keep it."""

from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.markup import escape
from rich.progress import Progress

from graphcl.errors import ConfigError
from simulations import terminal

T = TypeVar("T", int, float)


def audit(
    config: Annotated[Path, typer.Argument(help="Experiment file, e.g. configs/privacy.toml.")],
    epsilon: Annotated[
        str, typer.Option(help="Guarantees to try noise for, of the whole run; empty = none.")
    ] = "1,10,100,1000",
    min_support: Annotated[
        str, typer.Option(help="Least class sizes to try; empty = none.")
    ] = "2,6",
    seeds: Annotated[int, typer.Option(min=1, help="Runs per defence.")] = 3,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where run directories are made.")] = Path("runs"),
) -> None:
    """Measure what class prototypes leak, with and without defences, and what those cost.

    The attacker holds a client's prototypes and knows its encoder: the worst
    case. A row is a defence and a size of classes, by their training samples
    on a client:

      acc. %   test accuracy; "local only" exchanges nothing

      proto %  test accuracy where the nearest prototype is the prediction

      left     share of such classes whose prototype left its client

      AUC      tells training samples from others by closeness to the prototype

      without  the same by an embedding's length, without any prototype

      nearest  distance to a training sample; 1 = of any two in the class

      exact    share of prototypes that are one sample's embedding

      owner    share whose nearest sample, of all clients, is the owner's

    An AUC of 0.5 is chance. What "without" tells is the encoder's, and no
    defence of prototypes takes it back; where noise leaves nothing else, AUC
    falls below 0.5 as far as "without" lies above.

    An ε holds for the whole run at privacy.delta, with the encoder as given;
    Opacus's accountant finds the noise. Where accuracy is no better than
    "local only", the exchange is worth no ε.

    For example:

      graphcl audit configs/privacy.toml

      graphcl audit configs/privacy.toml --epsilon 3,30 --min-support "" --seeds 1
    """
    terminal.check_folder(out)
    with terminal.loading():
        from federation.experiment import describe_keys, load_experiment
        from federation.run_directory import new_directory
        from simulations.audit import audit as run_audit
        from simulations.audit import audit_table, defences, write_audit

    experiment = load_experiment(config, terminal.parse_settings(set_ or [], describe_keys()))
    epsilons = _numbers("--epsilon", epsilon, float, 0.0)
    supports = _numbers("--min-support", min_support, int, 1)
    tried = defences(experiment, epsilons, supports)
    with Progress(*terminal.COLUMNS, console=terminal.console) as progress:
        task = progress.add_task("audit", total=len(tried) * seeds, figures="")
        found = run_audit(experiment, tried, seeds, lambda: progress.advance(task))
    directory = new_directory(out, f"{experiment.run.name}-audit")
    write_audit(experiment, found, directory)
    terminal.console.print(audit_table(found))
    terminal.say(f"Audit: [bold]{escape(str(directory))}[/bold]")


def _numbers(option: str, text: str, kind: type[T], above: float) -> list[T]:
    try:
        numbers = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = [kind(above)]
    if not all(above < number < float("inf") for number in numbers):
        raise ConfigError(f"{option} {text}: write numbers above {above:g}, e.g. 2,6")
    return numbers
