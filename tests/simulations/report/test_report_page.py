import re

import pytest

from simulations.report.units import DASH


def test_report_has_its_sections_in_order(family):
    assert family.headings == [
        "Comparison",
        "Curves",
        "Clients",
        "Partition",
        "Bytes on the wire",
        "Privacy",
        "Failures",
        "Configuration and environment",
    ]
    assert [label.split(".")[0] for label in family.plots] == [
        "Test accuracy over the rounds",
        "Training loss over the rounds",
        "Test accuracy of 3 clients",
        "How the nodes of 4 classes lie on 3 clients; 1 of 12 combinations are empty",
        "Bytes per round",
        "Bytes in total",
    ]


def test_headline_figures_are_those_of_the_best_validation_round(make_run, report):
    page = report(make_run())
    for part in (
        "synthetic ● feddbp digits, dirichlet partition",
        "Test accuracy 89.8 % best validation, round 3",
        "Worst client 89.6 % client 2",
        "Sent up 10.8 kB clients to server Sent down 4.8 kB",
        "Time 1.0 s",
        "Clients 3 Rounds 4 Seed 11 Result digest feddbp-digest",
    ):
        assert part in page.text


def test_every_strategy_has_a_row(family):
    assert family.row("feddbp") == [
        "● feddbp",
        "89.8 % round 3",
        "86.5 %",
        "89.6 %",
        "89.8 %",
        "89.8 %",
        "10.8 kB",
        "4.8 kB",
        "0",
        "1.0 s",
        "feddbp-digest",
    ]
    assert family.row("local")[5] == DASH  # no prototypes
    assert family.row("local")[-1] == "local-digest"
    assert family.row("fedavg")[1] == (
        "not run: one model for all needs alike clients, and they hold gcn, sage"
    )


def test_a_strategy_that_was_not_reached_is_not_finished(make_run, report):
    page = report(make_run(compare="local, fedavg", encoders="gcn"))
    assert page.row("local")[1] == page.row("fedavg")[1] == "not finished"


def test_a_comparison_with_itself_is_no_second_row(make_run, report):
    page = report(make_run(compare="feddbp"))
    assert sum(row[0] == "● feddbp" for row in page.rows) == 1


def test_a_run_that_is_not_listed_is_shown_all_the_same(make_run, report):
    page = report(make_run(others={"local": {}}))
    assert page.row("local")[-1] == "local-digest"


def test_the_last_round_may_be_far_from_the_best(make_run, report):
    page = report(make_run(rounds=9))
    assert page.row("feddbp")[1:3] == ["89.8 % round 3", "69.8 %"]


def test_clients_are_listed_with_their_accuracies(family):
    assert next(row for row in family.rows if row[0] == "1") == [
        "1",
        "sage",
        "21",
        *3 * ["89.8 %"],
    ]


def test_of_thousands_of_clients_the_worst_are_listed_and_the_page_stays_small(make_run, report):
    def score(strategy, server_round, client):
        return {"accuracy": client / 2000, "val_accuracy": 0.5, "test_loss": 1.0}

    directory = make_run(clients=2000, rounds=1, scores_of=score)
    page = report(directory)
    assert "the 500 clients of 2000 that fare worst" in page.text
    listed = [int(row[0]) for row in page.rows if row[0].isdigit() and "%" in row[-1]]
    assert listed == list(range(500))
    assert "the first 500 of 2000 clients" in page.text
    assert "of all clients" in page.text
    assert "Classes of every client" not in page.text
    assert len(page.html) < 1_000_000


def test_the_partition_is_listed_with_its_cut_edges(family):
    first, second = (row for row in family.rows if row[0] in "01" and "1.25" in row)
    assert first == ["0", "gcn", "18", "0", "1.25", DASH]
    assert second == ["1", "sage", "24", "5", "1.25", "0.75"]
    assert "50 of 200 edges (25.0 %) join two clients" in family.text


def test_a_run_without_a_partition_file_says_so(make_run, report):
    page = report(make_run(partition=False))
    assert "did not record how its data were divided" in page.text
    assert len(page.plots) == 5


def test_bytes_close_together_have_a_linear_scale(make_run, report):
    assert "logarithmic" not in report(make_run(others={"local": {"scale": 5}})).text


def test_bytes_far_apart_have_a_logarithmic_scale(make_run, report):
    assert "logarithmic" in report(make_run(others={"local": {"scale": 50}})).text


def test_configuration_and_environment_are_shown(make_run, report):
    page = report(make_run())
    assert 'encoders = "gcn, sage"' in page.text
    assert page.row("torch") == ["torch", "2.13.0"]


def test_failures_are_listed_with_round_client_and_reason(make_run, report):
    page = report(make_run(failing={(2, 1): "out of memory", (4, 0): "no reply within 3 s"}))
    assert [row[1:] for row in page.rows if "training" in row] == [
        ["2", "1", "training", "out of memory"],
        ["4", "0", "training", "no reply within 3 s"],
    ]
    assert page.row("feddbp")[8] == "2"


def test_a_run_without_failures_says_so(make_run, report):
    assert "No client failed in any round." in report(make_run()).text


def test_many_failures_are_cut_off_and_counted(make_run, report):
    failing = {(r, c): "gone" for r in range(1, 27) for c in range(1, 11)}
    page = report(make_run(rounds=26, clients=11, failing=failing))
    assert sum("training" in row for row in page.rows) == 200
    assert "The first 200 of 260" in page.text


@pytest.mark.parametrize(
    "reason", ["<script>alert(1)</script>", '"><img src=x onerror=y> & {{ 7*7 }}']
)
def test_reasons_never_become_markup(make_run, report, reason):
    page = report(make_run(failing={(1, 0): reason}))
    assert page.row("feddbp")
    assert reason in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "img"}


def test_names_in_the_environment_never_become_markup(make_run, report):
    run = make_run()
    (run / "environment.json").write_text(
        '{"python": "<b>3</b>", "platform": "x", "packages": {"<i>p</i>": "1"}}'
    )
    page = report(run)
    assert page.row("<i>p</i>") == ["<i>p</i>", "1"]
    assert not {tag for tag, _ in page.tags} & {"b", "i"}


def test_the_same_run_gives_the_same_bytes(make_run, report):
    run = make_run(compare="local, fedavg", others={"local": {}})
    first = report(run).html
    assert report(run).html == first
    assert str(run) not in first


def test_the_page_is_self_contained(family):
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", family.html)
    assert "https://" not in family.html
    assert not {tag for tag, _ in family.tags} & {"script", "link", "img", "iframe", "image"}
    assert "@import" not in family.html
    policy = [a["content"] for t, a in family.tags if t == "meta" and "http-equiv" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_ids_are_unique_and_references_lead_somewhere(family):
    ids = [attrs["id"] for _, attrs in family.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) > 6
    referred = re.findall(r'(?:url\(#|href="#)([^")]+)', family.html)
    assert referred
    assert set(referred) <= set(ids)


def test_every_plot_has_a_role_a_text_and_a_caption(family):
    svgs = [attrs for tag, attrs in family.tags if tag == "svg"]
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in svgs)
    assert sum(tag == "figcaption" for tag, _ in family.tags) == len(svgs)


def test_plots_follow_the_colours_of_the_page(family):
    body = family.html[family.html.index("<body") :]
    assert "stroke: var(--fedproto)" in body
    assert not re.search(r"#[0-9a-f]{6}\b(?!\")", re.sub(r"<pre>.*?</pre>", "", body, flags=re.S))


def test_nothing_is_left_beside_the_report(make_run, report):
    run = make_run()
    before = {path.name for path in run.iterdir()}
    report(run)
    assert {path.name for path in run.iterdir()} == before | {"report.html"}
