"""Runs of every size and state, and directories that are no run at all."""

import json

import pytest

from graphcl.errors import FederationError
from simulations.report import write_report
from simulations.report.units import DASH


def append(run, line):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(line)


def test_one_client_and_one_round(make_run, report):
    page = report(make_run(rounds=1, clients=1, encoders="gcn"))
    assert len(page.plots) == 6
    assert page.row("feddbp")[1] == "83.3 % round 1"


def test_a_hundred_clients(make_run, report):
    page = report(make_run(rounds=2, clients=100, others={"local": {}}))
    assert len([row for row in page.rows if row[0] == "99"]) == 2
    assert "sage · 119" not in page.text  # rows are too many for labels


def test_rounds_without_evaluation(make_run, report):
    page = report(make_run(rounds=7, evaluate_every=3))
    assert page.row("feddbp")[1:3] == ["89.8 % round 3", "76.5 %"]


def test_failed_clients_have_no_accuracy(make_run, report):
    page = report(make_run(failing={(3, 2): "gone"}))
    assert next(row for row in page.rows if row[0] == "2") == ["2", "gcn", "22", DASH]


def test_a_round_in_which_all_failed_has_no_loss(make_run, report):
    failing = {(4, client): "gone" for client in range(3)}
    assert "In the last round: feddbp 0.667." in report(make_run(failing=failing)).plots[1]


def test_failed_evaluations_are_failures_too(make_run, report):
    run = make_run()
    line = {"kind": "client", "round": 4, "partition": 2, "status": "idle", "evaluation": "late"}
    append(run, json.dumps(line) + "\n")
    assert ["● feddbp", "4", "2", "evaluation", "late"] in report(run).rows


@pytest.mark.parametrize("done", [1, 3])
def test_an_unfinished_run_shows_what_there_is(make_run, report, done):
    page = report(make_run(done=done))
    assert f"unfinished: {done} of 4 rounds" in page.text
    assert len(page.plots) == 6


def test_a_run_killed_in_its_first_round_shows_its_partition(make_run, report):
    page = report(make_run(done=0))
    assert "unfinished: 0 of 4 rounds" in page.text
    assert "No round has finished yet." in page.text
    assert len(page.plots) == 1


def test_an_unfinished_comparison_is_marked(make_run, report):
    page = report(make_run(others={"local": {"done": 2}}))
    assert page.row("local")[-1] == "unfinished: 2 of 4 rounds"


def test_half_a_last_line_is_left_out(make_run, report):
    run = make_run(done=2)
    append(run, '{"kind": "client", "rou')
    assert "unfinished: 2 of 4 rounds" in report(run).text


@pytest.mark.parametrize("name", ["config.toml", "environment.json", "metrics.jsonl"])
def test_a_missing_file_is_named(make_run, name):
    run = make_run()
    (run / name).unlink()
    with pytest.raises(FederationError, match=name):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FederationError, match="nowhere"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name", ["config.toml", "environment.json", "partition.json", "summary.json"]
)
@pytest.mark.parametrize("content", [b'{"a": ', b"[1]", b"\xff\xfe"])
def test_a_damaged_file_is_named(make_run, name, content):
    run = make_run()
    (run / name).write_bytes(content)
    with pytest.raises(FederationError, match=name):
        write_report(run)


def test_class_counts_of_unlike_length_are_damage(make_run):
    run = make_run()
    partition = json.loads((run / "partition.json").read_text())
    partition["clients"][1]["class_counts"].pop()
    (run / "partition.json").write_text(json.dumps(partition))
    with pytest.raises(FederationError, match="class_counts"):
        write_report(run)


def test_nodes_without_classes_are_reported_without_them(make_run):
    run = make_run()
    partition = json.loads((run / "partition.json").read_text())
    for client in partition["clients"]:
        client |= {"class_counts": [], "label_entropy": 0.0, "edge_homophily": None}
    (run / "partition.json").write_text(json.dumps(partition))
    assert "Classes of every client" not in write_report(run).read_text(encoding="utf-8")


@pytest.mark.parametrize("line", ["nonsense", "{}", '{"kind": "round", "round": "x"}'])
def test_a_damaged_line_is_numbered(make_run, line):
    run = make_run(rounds=1)
    append(run, line + "\n")
    with pytest.raises(FederationError, match=r"metrics\.jsonl, line 5: damaged"):
        write_report(run)


def test_a_damaged_comparison_is_named(make_run):
    run = make_run(others={"local": {}})
    (run / "compare" / "local" / "metrics.jsonl").unlink()
    with pytest.raises(FederationError, match=r"local.metrics\.jsonl"):
        write_report(run)
