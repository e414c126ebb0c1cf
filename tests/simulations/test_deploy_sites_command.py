"""``graphcl deploy``: from a simulation's file to a folder per machine, at the command line."""

import json

from federation.deploy.bundles import ServerBundle, SiteBundle
from federation.experiment import load_experiment
from simulations.run import execute, prepare

CONFIG = """
[run]
name = "trial"
rounds = 1
compare = "local, pooled"

[data]
source = "csbm"

[data.csbm]
nodes = 90
classes = 3

[partition]
clients = 3
min_nodes = 5

[train]
epochs = 1

[simulation]
engine = "local"
"""


def test_from_a_simulation_to_folders_and_back(graphcl, tmp_path):
    """What a reader types: split, run as a simulation, provision, rotate, revoke, export."""
    (tmp_path / "trial.toml").write_text(CONFIG)
    code, text = graphcl("deploy", "split", "trial.toml", "trial", "--set", "partition.clients=2")
    assert code == 0
    assert "2 sites under trial/data" in text
    assert "graphcl deploy init --sites trial/sites.toml --out trial/deployment" in text

    place = ["--out", "trial/deployment"]
    code, text = graphcl("deploy", "init", "--sites", "trial/sites.toml", *place)
    assert code == 0
    assert "new key for site-1: take trial/deployment/sites/site-1 to the site" in text
    folder = tmp_path / "trial/deployment"
    assert SiteBundle.load(folder / "sites/site-1").data == str(tmp_path / "trial/data/site-1")
    assert graphcl("deploy", "rotate", "server", *place)[0] == 0
    code, text = graphcl("deploy", "rotate", "site-0", *place)
    assert (code, "revoked the key of site-0" in text) == (0, True)
    code, text = graphcl("deploy", "revoke", "site-1", *place)
    assert (code, "revoked the key of site-1" in text) == (0, True)
    server = ServerBundle.load(folder / "server")
    assert [known.name for known in server.site] == ["site-0"]
    assert [old.name for old in server.revoked] == ["site-0", "site-1"]

    natural = load_experiment(tmp_path / "trial/config.toml", {"simulation.engine": "local"})
    assert (natural.run.compare, natural.partition.scheme) == ("", "natural")
    directory, clients = prepare(natural, tmp_path / "runs")
    assert len(clients.report.clients) == 2
    execute(directory)
    code, text = graphcl("deploy", "export", str(directory), "models")
    assert code == 0
    assert text.split() == ["models/site-0", "models/site-1"]
    about = json.loads((tmp_path / "models/site-1/model.json").read_text())
    assert about["config"]["run"]["name"] == "trial"


def test_errors_are_one_message_and_leave_nothing_behind(graphcl, tmp_path):
    code, text = graphcl("deploy", "init", "--sites", "absent.toml")
    assert (code, text.count("error:")) == (2, 1)
    assert not (tmp_path / "deployment").exists()
    code, text = graphcl("deploy", "rotate", "server")
    assert (code, "nothing was provisioned here" in text) == (2, True)
    code, text = graphcl("deploy", "export", ".", "models", "--data", "x")
    assert (code, "--data is that of one site" in text) == (2, True)


def test_every_key_of_a_sites_file_is_listed(graphcl):
    code, text = graphcl("keys", "--sites")
    assert code == 0
    for key in ("experiment", "server.hosts", "server.validity_days", "site.name", "site.data"):
        assert key in text
