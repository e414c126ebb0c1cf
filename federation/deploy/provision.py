"""From ``sites.toml`` to a folder per machine; later new keys, and sites that may not go on."""

from dataclasses import dataclass, field
from pathlib import Path

from federation.deploy.authority import (
    CA_CERTIFICATE,
    Authority,
    new_site_key,
    public_site_key,
)
from federation.deploy.bundles import CONFIG, ServerBundle, SiteBundle, SiteKey
from federation.deploy.files import PRIVATE, make_private_folder, write
from federation.deploy.sites import Deployment, load_deployment, read_deployment
from federation.experiment import Experiment, load_experiment
from federation.keys import Table, key
from graphcl.errors import ConfigError

_SERVER = "server"


class Ledger(Table):
    """Which keys may take part, and which may not any more."""

    site: list[SiteKey] = key([], "the key of every site")
    revoked: list[SiteKey] = key([], "keys that were taken out")

    def of(self, name: str) -> SiteKey | None:
        """Return a site's key, None where it has none that may take part."""
        return next((known for known in self.site if known.name == name), None)

    def admitting(self, new: SiteKey) -> "Ledger":
        """Return this with a site's key, in place of the one that it had."""
        old = self.of(new.name)
        if old == new:
            return self
        left = self if old is None or old.key == new.key else self.revoking(new.name)
        others = [known for known in left.site if known.name != new.name]
        return Ledger(site=sorted([*others, new], key=_partition), revoked=left.revoked)

    def revoking(self, name: str) -> "Ledger":
        """Return this without a site's key, which may never come back."""
        gone = [known for known in self.site if known.name == name]
        left = [known for known in self.site if known.name != name]
        return Ledger(site=left, revoked=[*self.revoked, *gone])


def _partition(known: SiteKey) -> int:
    return known.partition


@dataclass(frozen=True)
class Provisioned:
    """What provisioning did.

    Attributes:
        folder: Holds ``authority/``, ``server/`` and ``sites/``.
        deployment: The description.
        made: Sites that have a new key, whose folder must be taken to them.
        revoked: Sites whose key may not take part any more.
    """

    folder: Path
    deployment: Deployment
    made: list[str] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)


def provision(sites: Path, out: Path) -> Provisioned:
    """Make a folder per machine from a description, or bring those there up to date.

    Keys that exist stay. A site that the description does not name any more is revoked.

    Args:
        sites: The file ``sites.toml``.
        out: The folder of all folders.

    Raises:
        ConfigError: If the description or the experiment does not fit, or names a revoked site.
    """
    deployment, experiment = load_deployment(sites)
    folder = make_private_folder(out / "authority")
    before = ledger = _ledger(folder)
    for old in before.site:
        if old.name not in {site.name for site in deployment.site}:
            ledger = ledger.revoking(old.name)
    keys = {site.name: public_site_key(_site_folder(out, site.name)) for site in deployment.site}
    revoked = {gone.key for gone in ledger.revoked}
    for name, public in keys.items():  # before anything is written
        if public in revoked:
            raise ConfigError(
                f"{sites}: the site '{name}' was revoked; take it out, or give it a new key by "
                f"`graphcl deploy rotate {name} --out {out}`"
            )
    write(folder / "sites.toml", deployment.to_toml())
    write(folder / CONFIG, experiment.to_toml())
    authority = Authority(folder, deployment.server.name)
    made: list[str] = []
    for partition, site in enumerate(deployment.site):
        public, known = keys[site.name], ledger.of(site.name)
        if public is None and known is not None:
            public = known.key  # the folder went to its site and is here no more
        elif public is None:
            public = new_site_key(make_private_folder(_site_folder(out, site.name)))
            made.append(site.name)
        ledger = ledger.admitting(SiteKey(name=site.name, partition=partition, key=public))
    _write_all(out, deployment, experiment, ledger)
    authority.certify_server(
        out / _SERVER, deployment.server.hosts, deployment.server.validity_days, new_key=False
    )
    gone = ledger.revoked[len(before.revoked) :]
    return Provisioned(out, deployment, made, [old.name for old in gone])


def rotate(out: Path, name: str) -> Provisioned:
    """Give the server, or a site, a new key; the old one counts no more.

    Args:
        out: The folder of all folders.
        name: ``"server"``, or the site's.

    Raises:
        ConfigError: If there is no such site, or nothing was provisioned there.
    """
    deployment, experiment, ledger = _provisioned(out)
    if name == _SERVER:
        table = deployment.server
        authority = Authority(out / "authority", table.name)
        authority.certify_server(out / _SERVER, table.hosts, table.validity_days, new_key=True)
        return Provisioned(out, deployment)
    partition = deployment.partition(name)
    public = new_site_key(make_private_folder(_site_folder(out, name)))
    new = ledger.admitting(SiteKey(name=name, partition=partition, key=public))
    _write_all(out, deployment, experiment, new)
    gone = new.revoked[len(ledger.revoked) :]
    return Provisioned(out, deployment, [name], [known.name for known in gone])


def revoke(out: Path, name: str) -> Provisioned:
    """Take a site out of the federation: its key may never take part again.

    Args:
        out: The folder of all folders.
        name: The site's.

    Raises:
        ConfigError: If there is no such site, or it is out already.
    """
    deployment, experiment, ledger = _provisioned(out)
    if ledger.of(name) is None:
        deployment.partition(name)
        raise ConfigError(f"{out}: the site '{name}' has no key that could be revoked; it is out")
    _write_all(out, deployment, experiment, ledger.revoking(name))
    return Provisioned(out, deployment, [], [name])


def _provisioned(out: Path) -> tuple[Deployment, Experiment, Ledger]:
    folder = out / "authority"
    if not (folder / "sites.toml").exists():
        raise ConfigError(
            f"{out}: nothing was provisioned here; `graphcl deploy init --sites sites.toml --out "
            f"{out}` does"
        )
    return (
        read_deployment(folder / "sites.toml"),
        load_experiment(folder / CONFIG),
        _ledger(folder),
    )


def _ledger(folder: Path) -> Ledger:
    file = folder / "ledger.json"
    if not file.exists():
        return Ledger()
    try:
        return Ledger.model_validate_json(file.read_bytes())
    except ValueError:
        raise ConfigError(f"{file}: damaged; put back a copy of the folder") from None


def _write_all(out: Path, deployment: Deployment, experiment: Experiment, ledger: Ledger) -> None:
    """Write the ledger, and what follows from it."""
    folder = out / "authority"
    write(folder / "ledger.json", ledger.model_dump_json(indent=1) + "\n", PRIVATE)
    certificate, server = folder / CA_CERTIFICATE, deployment.server
    make_private_folder(out / "sites")
    ServerBundle(name=server.name, bind=server.bind, port=server.port, **ledger.model_dump()).write(
        out / _SERVER, experiment, certificate
    )
    for partition, site in enumerate(deployment.site):
        SiteBundle(
            name=site.name,
            federation=server.name,
            partition=partition,
            clients=len(deployment.site),
            server=deployment.address(site),
            port=site.port,
            data=site.data,
        ).write(_site_folder(out, site.name), experiment, certificate)


def _site_folder(out: Path, name: str) -> Path:
    return out / "sites" / name
