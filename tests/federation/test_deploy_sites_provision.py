"""A folder per machine: what is in it, what is not, who may read it, and what happens again."""

import configparser
import datetime
import itertools
import os
import re
import shutil
import ssl
import stat
import subprocess
import threading
from pathlib import Path

import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from federation.deploy import authority
from federation.deploy.bundles import ServerBundle, SiteBundle, load_bundle_experiment
from federation.deploy.provision import provision, revoke, rotate
from federation.deploy.sites import load_deployment, read_deployment
from federation.experiment import load_experiment
from graphcl.errors import ConfigError

NAMES = ("north", "south", "west")
SECRETS = ("authority/ca.key", "server/server.key", *(f"sites/{n}/node.key" for n in NAMES))


def described(folder: Path, *names: str, server=None, config=None, **of_sites) -> Path:
    """Write ``sites.toml`` and the experiment that it names."""
    folder.mkdir(exist_ok=True)
    experiment = {
        "data": {"source": ", ".join(f"{name}.npz" for name in names), "num_classes": 3},
        "partition": {"scheme": "natural", "clients": len(names)},
    }
    for table, keys in (config or {}).items():
        experiment.setdefault(table, {}).update(keys)
    (folder / "config.toml").write_text(tomli_w.dumps(experiment))
    sites = {
        "experiment": "config.toml",
        "server": {"hosts": ["fed.example.org", "192.0.2.7"], **(server or {})},
        "site": [
            {"name": name, "data": f"/srv/{name}", "port": 9094 + i, **of_sites}
            for i, name in enumerate(names)
        ],
    }
    (folder / "sites.toml").write_text(tomli_w.dumps(sites))
    return folder / "sites.toml"


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("provisioned")
    provision(described(folder, *NAMES), folder / "out")
    return folder / "out"


@pytest.fixture
def mine(provisioned, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(provisioned, tmp_path / "out", symlinks=True)


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def bodies(key: Path) -> list[bytes]:
    """Return the lines of a private key that are key, not frame or common beginning."""
    lines = [line for line in key.read_bytes().splitlines() if not line.startswith(b"-----")]
    return lines[2:-1]


# What is in which folder, and who may read it.


@pytest.mark.parametrize("machine", ["server", *(f"sites/{name}" for name in NAMES)])
def test_a_folder_holds_its_own_secrets_and_no_others(provisioned, machine):
    held = b"\n".join(path.read_bytes() for path in files(provisioned / machine))
    for secret in SECRETS:
        parts = bodies(provisioned / secret)
        assert parts
        assert any(part in held for part in parts) == secret.startswith(machine + "/"), secret


def test_keys_are_for_their_owner_and_so_are_the_folders(provisioned):
    for path in [provisioned / "authority", provisioned / "server", *provisioned.glob("sites/*")]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for script in provisioned.rglob("start.sh"):
        assert stat.S_IMODE(script.stat().st_mode) == 0o755
    for secret in SECRETS:
        assert stat.S_IMODE((provisioned / secret).stat().st_mode) == 0o600
    assert not list(provisioned.rglob("*.new"))


def test_no_moment_is_there_in_which_others_could_read_a_key(tmp_path, monkeypatch):
    """Under a careless umask, a key has its mode before it has its content."""
    seen, replace = [], Path.replace

    def watch(self, target):
        seen.append((Path(target).name, stat.S_IMODE(self.stat().st_mode)))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watch)
    before = os.umask(0)
    try:
        provision(described(tmp_path, "north"), tmp_path / "out")
    finally:
        os.umask(before)
    modes = dict(seen)
    assert {modes[Path(secret).name] for secret in SECRETS} == {0o600}


def test_bundles_say_what_the_description_says(provisioned):
    server = ServerBundle.load(provisioned / "server")
    assert [(site.name, site.partition) for site in server.site] == list(
        zip(NAMES, range(3), strict=True)
    )
    assert server.revoked == []
    for partition, name in enumerate(NAMES):
        folder = provisioned / "sites" / name
        bundle = SiteBundle.load(folder)
        assert (bundle.partition, bundle.clients) == (partition, 3)
        assert bundle.server == "fed.example.org:8000"
        assert bundle.node_config == {
            "partition-id": partition,
            "num-partitions": 3,
            "data": f"/srv/{name}",
            "config": str(folder / "config.toml"),
        }
        assert load_bundle_experiment(folder) == load_bundle_experiment(provisioned / "server")
        assert (provisioned / f"server/keys/{name}.pub").read_text() == (
            folder / "node.key.pub"
        ).read_text()


def test_sites_may_see_the_server_elsewhere(tmp_path):
    sites = described(tmp_path, "north", host="192.0.2.7", server_port=8443)
    provision(sites, tmp_path / "out")
    assert SiteBundle.load(tmp_path / "out/sites/north").server == "192.0.2.7:8443"


def test_an_ipv6_address_stands_in_brackets(tmp_path):
    provision(described(tmp_path, "north", server={"hosts": ["2001:db8::7"]}), tmp_path / "out")
    assert SiteBundle.load(tmp_path / "out/sites/north").server == "[2001:db8::7]:8000"


# Keys and certificates.


def test_a_sites_key_is_what_flowers_nodes_read(provisioned):
    for name in NAMES:
        folder = provisioned / "sites" / name
        key = load_ssh_private_key((folder / "node.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert key.curve.name == "secp384r1"
        public = load_ssh_public_key((folder / "node.key.pub").read_bytes())
        assert public == key.public_key()
    lines = {(provisioned / f"server/keys/{name}.pub").read_text() for name in NAMES}
    assert len(lines) == 3


def test_the_certificate_vouches_for_the_servers_names_alone(provisioned):
    certificate = authority.load_certificate(provisioned / "server/server.crt")
    ca = authority.load_certificate(provisioned / "server/ca.crt")
    certificate.verify_directly_issued_by(ca)
    extensions = certificate.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == [
        "192.0.2.7",
        "127.0.0.1",
    ]
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    own = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (own.value.ca, own.value.path_length, own.critical) == (True, 0, True)
    lasts = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=364) < lasts <= datetime.timedelta(days=365)


def handshake(server: Path, ca: Path, hostname: str) -> str:
    """Let a client that trusts an authority greet the server; return what it says of it."""
    outer, inner = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=ca)
    inner.verify_flags |= ssl.VERIFY_X509_STRICT
    outer.load_cert_chain(server / "server.crt", server / "server.key")
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = inner.wrap_bio(back, there, server_hostname=hostname)
    other = outer.wrap_bio(there, back, server_side=True)
    for side in itertools.islice(itertools.cycle((client, other)), 8):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return "welcome"


def test_a_strict_client_takes_the_server_by_its_names_and_by_no_other(provisioned, tmp_path):
    server, ca = provisioned / "server", provisioned / "sites/north/ca.crt"
    for name in ("fed.example.org", "192.0.2.7", "localhost", "127.0.0.1"):
        assert handshake(server, ca, name) == "welcome"
    assert "mismatch" in handshake(server, ca, "evil.example.org")
    provision(described(tmp_path, "north"), tmp_path / "foreign")
    foreign = tmp_path / "foreign/server"
    assert "unable to get local issuer" in handshake(foreign, ca, "fed.example.org") or (
        "self" in handshake(foreign, ca, "fed.example.org")
    )


# Again, and again.


def test_provisioning_again_changes_no_key(mine):
    before = {secret: (mine / secret).read_bytes() for secret in SECRETS}
    done = provision(described(mine.parent, *NAMES), mine)
    assert (done.made, done.revoked) == ([], [])
    assert {secret: (mine / secret).read_bytes() for secret in SECRETS} == before
    assert ServerBundle.load(mine / "server").revoked == []


def test_another_name_of_the_server_needs_no_other_key(mine):
    key = (mine / "server/server.key").read_bytes()
    provision(described(mine.parent, *NAMES, server={"hosts": ["new.example.org"]}), mine)
    assert (mine / "server/server.key").read_bytes() == key
    assert handshake(mine / "server", mine / "server/ca.crt", "new.example.org") == "welcome"


def test_a_site_whose_folder_went_away_keeps_its_key(mine):
    public = (mine / "server/keys/south.pub").read_text()
    shutil.rmtree(mine / "sites/south")
    provision(described(mine.parent, *NAMES), mine)
    assert (mine / "server/keys/south.pub").read_text() == public
    assert not (mine / "sites/south/node.key").exists()
    with pytest.raises(ConfigError, match=r"holds no node\.key; copy the whole folder"):
        SiteBundle.load(mine / "sites/south")


def test_a_site_that_is_named_no_more_is_revoked_and_others_move_up(mine):
    gone = (mine / "server/keys/north.pub").read_text().strip()
    done = provision(described(mine.parent, "south", "west", "east"), mine)
    assert (done.made, done.revoked) == (["east"], ["north"])
    server = ServerBundle.load(mine / "server")
    assert [(s.name, s.partition) for s in server.site] == [("south", 0), ("west", 1), ("east", 2)]
    assert [old.key for old in server.revoked] == [gone]
    assert not (mine / "server/keys/north.pub").exists()
    assert SiteBundle.load(mine / "sites/south").partition == 0


def test_a_killed_provisioning_is_finished_by_the_next(mine, monkeypatch):
    """A key that was written before the ledger knew of it is taken over, not replaced."""
    (mine / "authority/ledger.json").unlink()
    before = {secret: (mine / secret).read_bytes() for secret in SECRETS}
    assert provision(described(mine.parent, *NAMES), mine).made == []
    assert {secret: (mine / secret).read_bytes() for secret in SECRETS} == before


def test_a_lost_authority_is_not_made_up_for(mine):
    (mine / "authority/ca.key").unlink()
    with pytest.raises(ConfigError, match=r"ca\.key: missing, and a new authority would be unkno"):
        provision(described(mine.parent, *NAMES), mine)


# New keys, and none.


def test_rotating_a_site_revokes_its_old_key_and_no_other(mine):
    before = {secret: (mine / secret).read_bytes() for secret in SECRETS}
    old = (mine / "server/keys/south.pub").read_text().strip()
    done = rotate(mine, "south")
    assert (done.made, done.revoked) == (["south"], ["south"])
    changed = [secret for secret in SECRETS if (mine / secret).read_bytes() != before[secret]]
    assert changed == ["sites/south/node.key"]
    server = ServerBundle.load(mine / "server")
    assert [known.key for known in server.revoked] == [old]
    assert [known.partition for known in server.site] == [0, 1, 2]
    assert (mine / "server/keys/south.pub").read_text().strip() == server.site[1].key != old
    rotate(mine, "south")
    assert len(ServerBundle.load(mine / "server").revoked) == 2


def test_rotating_the_server_renews_key_and_certificate_and_sites_notice_nothing(mine):
    before = {secret: (mine / secret).read_bytes() for secret in SECRETS}
    rotate(mine, "server")
    changed = [secret for secret in SECRETS if (mine / secret).read_bytes() != before[secret]]
    assert changed == ["server/server.key"]
    assert handshake(mine / "server", mine / "sites/west/ca.crt", "fed.example.org") == "welcome"


def test_a_revoked_site_is_out_until_it_has_a_new_key(mine):
    old = (mine / "server/keys/west.pub").read_text().strip()
    assert revoke(mine, "west").revoked == ["west"]
    server = ServerBundle.load(mine / "server")
    assert [(known.name, known.partition) for known in server.site] == [("north", 0), ("south", 1)]
    assert [known.key for known in server.revoked] == [old]
    assert not (mine / "server/keys/west.pub").exists()
    with pytest.raises(ConfigError, match="the site 'west' has no key that could be revoked"):
        revoke(mine, "west")
    with pytest.raises(ConfigError, match="the site 'west' was revoked; take it out, or give it"):
        provision(described(mine.parent, *NAMES), mine)
    rotate(mine, "west")
    server = ServerBundle.load(mine / "server")
    assert [known.name for known in server.site] == list(NAMES)
    assert old not in {known.key for known in server.site}
    provision(described(mine.parent, *NAMES), mine)


def test_a_description_that_is_refused_changes_nothing(mine):
    revoke(mine, "west")
    before = {file: file.read_bytes() for file in files(mine)}
    with pytest.raises(ConfigError, match="the site 'west' was revoked"):
        provision(described(mine.parent, "south", "west"), mine)
    assert {file: file.read_bytes() for file in files(mine)} == before


def test_a_site_that_has_a_key_can_be_revoked_whatever_the_description_says(mine):
    """As after a provisioning that was killed before the ledger followed."""
    (mine / "authority/sites.toml").write_bytes(described(mine.parent, "south").read_bytes())
    assert revoke(mine, "north").revoked == ["north"]
    assert not (mine / "server/keys/north.pub").exists()


@pytest.mark.parametrize("change", [rotate, revoke])
def test_nobody_is_rotated_or_revoked_who_is_not_there(mine, change, tmp_path):
    with pytest.raises(ConfigError, match="there is no site 'nroth'; there are north, south, west"):
        change(mine, "nroth")
    with pytest.raises(ConfigError, match="nothing was provisioned here; `graphcl deploy init"):
        change(tmp_path / "empty", "north")


# What a machine refuses to start from.


def test_a_certificate_whose_time_is_over_is_refused(mine):
    authority.Authority(mine / "authority", "x").certify_server(
        mine / "server", ["fed.example.org"], -0.02, new_key=False
    )
    with pytest.raises(ConfigError, match=r"valid from .* which is not now; renew it by `graphcl"):
        ServerBundle.load(mine / "server")


def test_files_of_unlike_folders_are_told_apart(mine, tmp_path):
    provision(described(tmp_path / "other", *NAMES), tmp_path / "other/out")
    foreign = tmp_path / "other/out/server"
    key = (mine / "server/server.key").read_bytes()
    shutil.copy(foreign / "server.key", mine / "server/server.key")
    with pytest.raises(ConfigError, match=r"belongs to another key than server\.key"):
        ServerBundle.load(mine / "server")
    (mine / "server/server.key").write_bytes(key)
    shutil.copy(foreign / "ca.crt", mine / "server/ca.crt")
    with pytest.raises(ConfigError, match=r"not of the authority in ca\.crt"):
        ServerBundle.load(mine / "server")


@pytest.mark.parametrize(
    ("load", "folder", "key"),
    [(ServerBundle, "server", "server.key"), (SiteBundle, "sites/north", "node.key")],
)
def test_a_key_that_others_can_read_is_refused(mine, load, folder, key):
    (mine / folder / key).chmod(0o640)
    with pytest.raises(ConfigError, match=rf"others than its owner may read .*chmod 600 .*{key}"):
        load.load(mine / folder)


@pytest.mark.parametrize("file", ["site.toml", "ca.crt", "node.key"])
def test_a_folder_that_lacks_a_file_says_which(mine, file):
    (mine / "sites/north" / file).unlink()
    with pytest.raises(ConfigError, match=re.escape(file)):
        SiteBundle.load(mine / "sites/north")


@pytest.mark.parametrize("file", ["server.toml", "ca.crt", "server.crt", "server.key"])
def test_the_servers_folder_says_which_file_it_lacks(mine, file):
    (mine / "server" / file).unlink()
    with pytest.raises(ConfigError, match=re.escape(file)):
        ServerBundle.load(mine / "server")


@pytest.mark.parametrize("file", ["ca.crt", "server.crt", "server.key"])
def test_a_damaged_file_of_the_server_is_named(mine, file):
    (mine / "server" / file).write_text("nonsense")
    with pytest.raises(ConfigError, match=rf"{file}: no (certificate|private key) in PEM format"):
        ServerBundle.load(mine / "server")


def test_a_damaged_key_of_a_site_is_named(mine):
    (mine / "sites/north/node.key").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"node\.key: no private key in OpenSSH's format"):
        SiteBundle.load(mine / "sites/north")


# What starts them.


def test_the_start_script_is_plain_shell_and_looks_for_graphcl_on_the_path(provisioned, tmp_path):
    for machine, kind in (("server", "server"), ("sites/north", "site")):
        script = provisioned / machine / "start.sh"
        subprocess.run(["sh", "-n", script], check=True)
        bare = subprocess.run(
            ["/bin/sh", script], env={"PATH": "/nowhere:/usr/bin:/bin"}, capture_output=True
        )
        assert bare.returncode == 127
        assert b"graphcl is not on PATH" in bare.stderr
        fake = tmp_path / "bin"
        fake.mkdir(exist_ok=True)
        (fake / "graphcl").write_text('#!/bin/sh\necho "$PWD: $@"\n')
        (fake / "graphcl").chmod(0o755)
        found = subprocess.run(
            ["/bin/sh", script, "--help"],
            env={"PATH": f"{fake}:/usr/bin:/bin"},
            capture_output=True,
        )
        assert found.stdout.decode().strip() == f"{script.parent}: deploy {kind} . --help"


@pytest.mark.parametrize("machine", ["server", "sites/north"])
def test_the_unit_lets_the_process_write_into_its_state_alone(provisioned, machine):
    [file] = (provisioned / machine).glob("*.service")
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read(file)
    service = unit["Service"]
    place = f"/opt/graphcl/{file.stem}"
    quiet = " --quiet" if machine == "server" else ""
    assert service["ExecStart"] == f"/bin/sh {place}/start.sh{quiet}"
    assert service["ReadWritePaths"] == f"{place}/state"
    hardened = {
        "ProtectSystem": "strict",
        "NoNewPrivileges": "yes",
        "PrivateTmp": "yes",
        "PrivateDevices": "yes",
        "CapabilityBoundingSet": "",
    }
    assert {key: service[key] for key in hardened} == hardened
    assert ("ReadOnlyPaths" in service) == machine.startswith("sites")


def test_a_site_with_a_gpu_may_see_it(tmp_path):
    sites = described(tmp_path, "north", config={"simulation": {"gpus_per_client": 0.5}})
    provision(sites, tmp_path / "out")
    [unit] = (tmp_path / "out/sites/north").glob("*.service")
    assert "PrivateDevices" not in unit.read_text()


# The description.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("port = 9094", "port = 0"), r"\[\[site\]\] number 1 .*\n  port: Input should be greater"),
        (("port = 9094", "prot = 9094"), r"number 1.*\n  prot: unknown key; did you mean 'port'"),
        (('"north"', '"North"'), r"number 1.*\n  name: String should match pattern"),
        (('"south"', '"north"'), r"number 2: name: 'north' stands there twice"),
        (('"south"', '"server"'), r"number 2: name: 'server' is the server itself"),
        (('"/srv/north"', '"srv/north"'), r"number 1.*\n  data: must be an absolute path on the"),
        (('"/srv/north"', '"/srv/$HOME"'), r"number 1.*\n  data: must hold no quotation mark"),
        (('"fed.example.org"', '"https://x"'), r"server\.hosts: must be the name or the IP addr"),
        (("[server]", "[sever]"), r"\n  sever: unknown key; did you mean 'server"),
        (('"config.toml"', '"absent.toml"'), r"absent\.toml: no such experiment file"),
        (("experiment =", "experimnt ="), r"\n  experimnt: unknown key; did you mean 'experiment"),
        (("[server]", "[server"), r"sites\.toml: not a TOML file"),
        (('host = ""', 'host = "foreign.org"'), r"number 1: host: .* does not vouch for 'foreig"),
    ],
)
def test_a_description_that_does_not_fit_is_told_what_and_where(tmp_path, change, message):
    sites = described(tmp_path, "north", "south")
    text = sites.read_text()
    if text.count("[[site]]") == 0:  # the writer may put tables on one line
        sites.write_text(read_deployment(sites).to_toml())
        text = sites.read_text()
    old, new = change
    assert old in text
    sites.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        load_deployment(sites)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"partition": {"clients": 3, "scheme": "natural"}},
            r"partition\.clients is 3, but there ",
        ),
        ({"partition": {"scheme": "louvain"}, "data": {"source": "x.npz"}}, r"set it to 'natural'"),
        ({"strategy": {"name": "pooled"}}, r"strategy\.name: 'pooled' has all data in one place"),
    ],
)
def test_an_experiment_that_sites_cannot_run_is_refused(tmp_path, config, message):
    sites = described(tmp_path, "north", "south", config=config)
    with pytest.raises(ConfigError, match=message):
        provision(sites, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_sites_are_no_federation(tmp_path):
    sites = described(tmp_path, "north")
    sites.write_text('experiment = "config.toml"\n')
    with pytest.raises(ConfigError, match=r"names no site; write a table \[\[site\]\]"):
        load_deployment(sites)
    with pytest.raises(ConfigError, match=r"cannot be read: .*; `graphcl deploy split` writes an"):
        load_deployment(tmp_path / "absent.toml")


@pytest.mark.parametrize("bind", ["10.0.0.5", "::", "localhost"])
def test_the_server_listens_where_it_talks_to_itself(tmp_path, bind):
    with pytest.raises(ConfigError, match=r"server\.bind: .*'0\.0\.0\.0' or '127\.0\.0\.1'"):
        read_deployment(described(tmp_path, "north", server={"bind": bind}))


def test_a_description_survives_being_written_out(tmp_path):
    sites = described(tmp_path, "north", "south", server={"bind": "127.0.0.1", "port": 8443})
    deployment = read_deployment(sites)
    (tmp_path / "again.toml").write_text(deployment.to_toml())
    assert read_deployment(tmp_path / "again.toml") == deployment
    assert load_experiment(tmp_path / "config.toml").partition.clients == 2


def test_two_at_once_do_not_mix_their_files(tmp_path):
    """Files are whole at any moment, whoever reads meanwhile."""
    sites, out = described(tmp_path, "north"), tmp_path / "out"
    provision(sites, out)
    stop, wrong = threading.Event(), []

    def read():
        while not stop.is_set():
            try:
                SiteBundle.load(out / "sites/north")
            except ConfigError as error:
                wrong.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(3):
        rotate(out, "north")
    stop.set()
    reader.join()
    assert not wrong
