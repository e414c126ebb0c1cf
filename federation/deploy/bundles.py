"""What the server and every site are given: one folder each, which holds nobody else's secrets."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import PrivateAttr

from federation.deploy.authority import (
    CA_CERTIFICATE,
    check_server_certificate,
    public_site_key,
)
from federation.deploy.files import PROGRAM, make_private_folder, write
from federation.deploy.sites import parse, read_table
from federation.keys import Table, key
from graphcl.errors import ConfigError

if TYPE_CHECKING:  # a process that only keeps others running does not wait for torch
    from federation.experiment import Experiment

CONFIG, STATE, PUBLIC_KEYS = "config.toml", "state", "keys"
_WHOLE = "copy the whole folder that `graphcl deploy init` made"


class SiteKey(Table):
    """A public key of a site."""

    name: str = key(..., "name of the site")
    partition: int = key(..., "which partition it holds", ge=0)
    key: str = key(..., "one line in OpenSSH's format")


class ServerBundle(Table):
    """What ``server.toml`` says."""

    name: str = key(..., "name of the federation")
    bind: str = key(..., "address that the server listens at")
    port: int = key(..., "port that it listens at", ge=1, le=65535)
    site: list[SiteKey] = key([], "the sites that may take part")
    revoked: list[SiteKey] = key([], "keys that may not, whatever was registered before")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the server's folder, and check that its sites would accept its certificate.

        Raises:
            ConfigError: If a file is missing or wrong; the message says which, and what to do.
        """
        file = Path(folder) / "server.toml"
        bundle = parse(cls, read_table(file, _WHOLE), str(file))
        check_server_certificate(Path(folder))
        return bundle

    def write(self, folder: Path, experiment: "Experiment", authority: Path) -> None:
        """Write the server's folder, but for its certificate and its key."""
        _write_shared(folder, "server", self, experiment, authority)
        keys = make_private_folder(folder / PUBLIC_KEYS)
        for file in keys.glob("*.pub"):
            if file.stem not in {site.name for site in self.site}:
                file.unlink()
        for site in self.site:
            write(keys / f"{site.name}.pub", site.key + "\n")


class SiteBundle(Table):
    """What ``site.toml`` says."""

    name: str = key(..., "name of the site")
    federation: str = key(..., "name of the federation")
    partition: int = key(..., "which partition it holds", ge=0)
    clients: int = key(..., "number of partitions", ge=1)
    server: str = key(..., "where it reaches the server, host:port")
    port: int = key(..., "port on its own loopback", ge=1, le=65535)
    data: str = key(..., "what it learns from: a file or a folder")
    _folder: Path = PrivateAttr(Path())

    @property
    def node_config(self) -> dict[str, int | str]:
        """What the ClientApp is told of its node, which takes part in no other experiment."""
        return {
            "partition-id": self.partition,
            "num-partitions": self.clients,
            "data": self.data,
            "config": str(self._folder / CONFIG),
        }

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a site's folder, and check that its key is there and nobody else's.

        Raises:
            ConfigError: If a file is missing or wrong; the message says which, and what to do.
        """
        folder = Path(folder)
        bundle = parse(cls, read_table(folder / "site.toml", _WHOLE), str(folder / "site.toml"))
        if public_site_key(folder) is None:
            raise ConfigError(f"{folder}: holds no node.key; {_WHOLE}")
        if not (folder / CA_CERTIFICATE).is_file():
            raise ConfigError(f"{folder / CA_CERTIFICATE}: missing; {_WHOLE}")
        bundle._folder = folder.resolve()
        return bundle

    def write(self, folder: Path, experiment: "Experiment", authority: Path) -> None:
        """Write the site's folder, but for its key."""
        _write_shared(folder, "site", self, experiment, authority)


def load_bundle_experiment(folder: str | Path) -> "Experiment":
    """Return the experiment in the folder of the server or of a site.

    Raises:
        ConfigError: If the file is missing or does not validate.
    """
    from federation.experiment import load_experiment

    return load_experiment(Path(folder) / CONFIG)


def _write_shared(
    folder: Path, kind: str, bundle: ServerBundle | SiteBundle, experiment: "Experiment", ca: Path
) -> None:
    make_private_folder(folder)
    make_private_folder(folder / STATE)
    values = bundle.model_dump()
    write(folder / f"{kind}.toml", tomli_w.dumps(values))
    write(folder / CONFIG, experiment.to_toml())
    write(folder / CA_CERTIFICATE, ca.read_bytes())
    names = (
        (bundle.federation, bundle.name) if isinstance(bundle, SiteBundle) else (bundle.name, kind)
    )
    unit = "-".join(names)
    values |= {"kind": kind, "unit": unit, "gpu": experiment.simulation.gpus_per_client > 0}
    write(folder / "start.sh", _rendered("start.sh.jinja", values), PROGRAM)
    write(folder / f"{unit}.service", _rendered("unit.service.jinja", values))
    write(folder / "compose.yaml", _rendered("compose.yaml.jinja", values))


def _rendered(template: str, values: dict[str, Any]) -> str:
    environment = Environment(  # noqa: S701 - these are no pages; values are checked where read
        loader=PackageLoader("federation.deploy", "."),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    return environment.get_template(template).render(values)
