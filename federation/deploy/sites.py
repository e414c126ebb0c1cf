"""The description of a federation of sites: one TOML, every key typed, validated before use."""

import ipaddress
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import AfterValidator, ValidationError

from federation.keys import Table, key
from graphcl.errors import ConfigError

if TYPE_CHECKING:  # a process that only keeps others running does not wait for torch
    from federation.experiment import Experiment, Scalar

_NAME = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_T = TypeVar("_T", bound=Table)


def _host(text: str) -> str:
    """Check the name or address of a machine."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        if text and all(_LABEL.fullmatch(label) for label in text.split(".")):
            return text.lower()
        raise ValueError(
            "must be the name or the IP address of a machine, without port or scheme, e.g. "
            "'fed.example.org'"
        ) from None


def _hosts(hosts: list[str]) -> list[str]:
    if not hosts:
        raise ValueError("name at least the one that the sites connect to")
    return list(dict.fromkeys(_host(host) for host in hosts))


def _data(path: str) -> str:
    if not Path(path).is_absolute():
        raise ValueError("must be an absolute path on the site, e.g. '/srv/graphcl/data'")
    if re.search(r"[\x00-\x1f\"'%$\\:]", path):
        raise ValueError("must hold no quotation mark, colon, %, $, backslash or control character")
    return path


class ServerTable(Table):
    """The machine that all sites connect to; none of them needs an open port."""

    name: str = key(
        "graphcl", "name of the federation, in certificates and units", pattern=_NAME, max_length=40
    )
    hosts: Annotated[list[str], AfterValidator(_hosts)] = key(
        ["localhost"],
        "names and IP addresses of the server that its certificate vouches for; the sites connect "
        "to the first",
    )
    # The server's own requests go to the loopback, where it must listen in either case.
    bind: Literal["0.0.0.0", "127.0.0.1"] = key(  # noqa: S104
        "0.0.0.0",  # noqa: S104 - every site must reach it; TLS and node keys guard it
        "where it listens: 0.0.0.0 = at all its IPv4 addresses, 127.0.0.1 = on this machine alone",
    )
    port: int = key(8000, "port that it listens at", ge=1, le=65535)
    validity_days: int = key(365, "days after which its certificate must be renewed", ge=1, le=3650)


class SiteTable(Table):
    """One site; its place in the file is its partition."""

    name: str = key(..., "name of the site", pattern=_NAME, max_length=40)
    data: Annotated[str, AfterValidator(_data)] = key(
        ..., "what it learns from: a file or a folder on the site itself"
    )
    host: str = key("", "name or address of the server as this site sees it; empty = the first")
    server_port: int = key(
        0, "port of the server as this site sees it; 0 = the server's", ge=0, le=65535
    )
    port: int = key(
        9094, "port on the site's own loopback; sites on one machine need one each", ge=1, le=65535
    )


class Deployment(Table):
    """A whole ``sites.toml``."""

    experiment: str = key(..., "experiment file, beside this one", min_length=1)
    server: ServerTable = ServerTable()
    site: list[SiteTable] = key(..., "the sites, a table [[site]] each")

    def partition(self, name: str) -> int:
        """Return which partition a site holds.

        Raises:
            ConfigError: If there is no such site.
        """
        names = [site.name for site in self.site]
        if name not in names:
            raise ConfigError(f"there is no site '{name}'; there are {', '.join(names)}")
        return names.index(name)

    def address(self, site: SiteTable) -> str:
        """Return where a site reaches the server, ``host:port``."""
        host = site.host or self.server.hosts[0]
        port = site.server_port or self.server.port
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def to_toml(self) -> str:
        """Return the description as a file with every key written out."""
        whole = self.model_dump()
        sites = whole.pop("site")
        tables = ["[[site]]\n" + tomli_w.dumps(site) for site in sites]
        return "\n".join([tomli_w.dumps(whole), *tables])


def load_deployment(path: str | Path) -> "tuple[Deployment, Experiment]":
    """Read ``sites.toml`` and the experiment file that it names.

    Returns:
        The description, and the experiment with one client per site.

    Raises:
        ConfigError: If a file is missing or a key does not fit; one line per problem.
    """
    from federation.experiment import load_experiment

    path = Path(path)
    deployment = read_deployment(path)
    file = path.parent / Path(deployment.experiment).expanduser()
    experiment = load_experiment(file)
    check_fit(deployment, experiment, f"{path}, {file}")
    return deployment, experiment


def read_deployment(path: Path) -> Deployment:
    """Read ``sites.toml`` alone.

    Raises:
        ConfigError: See :func:`load_deployment`.
    """
    nested = read_table(path, "`graphcl deploy split` writes an example")
    tables = nested.get("site")
    if not isinstance(tables, list) or not tables:
        raise ConfigError(f"{path}: names no site; write a table [[site]] with name and data each")
    nested["site"] = [
        parse(SiteTable, table, f"{path}, [[site]] number {number}")
        for number, table in enumerate(tables, start=1)
    ]
    deployment = parse(Deployment, nested, str(path))
    _check_sites(deployment, path)
    return deployment


def describe_site_keys() -> "Iterator[tuple[str, Scalar, str]]":
    """Yield every key of ``sites.toml`` with its default and its meaning."""
    from federation.experiment import describe_keys

    yield "experiment", "", str(Deployment.model_fields["experiment"].description)

    yield from describe_keys(ServerTable, "server.")
    for name, field in SiteTable.model_fields.items():
        default = "" if field.is_required() else field.default
        yield f"site.{name}", default, str(field.description)


def read_table(path: Path, remedy: str) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: If it cannot be read, with the remedy, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; {remedy}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None


def parse(table: type[_T], nested: Any, origin: str) -> _T:
    """Build a table, or say per line what does not fit.

    Raises:
        ConfigError: If a key is unknown, is missing, or has the wrong type or range.
    """
    try:
        return table.model_validate(nested)
    except ValidationError as error:
        from federation.experiment import describe_keys, explain

        raise ConfigError(explain(error, origin, [k for k, _, _ in describe_keys(table)])) from None


def _check_sites(deployment: Deployment, path: Path) -> None:
    names = [site.name for site in deployment.site]
    for number, site in enumerate(deployment.site, start=1):
        where = f"{path}, [[site]] number {number}"
        if site.name == "server":
            raise ConfigError(f"{where}: name: 'server' is the server itself; call it otherwise")
        if names.index(site.name) + 1 != number:
            raise ConfigError(f"{where}: name: '{site.name}' stands there twice; names tell sites")
        if site.host and _host(site.host) not in deployment.server.hosts:
            raise ConfigError(
                f"{where}: host: the server's certificate does not vouch for '{site.host}'; add it "
                "to server.hosts"
            )


def check_fit(deployment: Deployment, experiment: "Experiment", origin: str) -> None:
    """Refuse an experiment that these sites cannot run.

    Raises:
        ConfigError: Naming the key of the experiment file.
    """
    sites = len(deployment.site)
    if experiment.partition.clients != sites:
        raise ConfigError(
            f"{origin}: partition.clients is {experiment.partition.clients}, but there are {sites} "
            f"sites; set it to {sites}, or name the sites"
        )
    if experiment.partition.scheme != "natural":
        raise ConfigError(
            f"{origin}: partition.scheme is '{experiment.partition.scheme}', but a site's data are "
            "its own and nobody divides them; set it to 'natural' (`graphcl deploy split` writes "
            "the divided data of a simulation as folders)"
        )
    if experiment.strategy.name == "pooled":
        raise ConfigError(
            f"{origin}: strategy.name: 'pooled' has all data in one place, which a deployment is "
            "there to avoid; choose another strategy"
        )
