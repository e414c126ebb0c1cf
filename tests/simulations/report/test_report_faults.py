"""A report says what went wrong on purpose, and how often it befell whom."""

from federation.experiment import load_experiment


def test_faults_of_the_plan_are_stated_and_counted(make_run, report):
    run = make_run(compare="fedproto", others={"fedproto": {}})
    config = run / "config.toml"
    keys = {"faults.hostile": 0.3, "faults.stale": 0.1}
    config.write_text(load_experiment(config, keys).to_toml())
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    lines[0] = lines[0][:-1] + ', "fault": "hostile, stale"}'
    lines[2] = lines[2][:-1] + ', "fault": "hostile"}'
    metrics.write_text("".join(line + "\n" for line in lines))
    text = report(run).text
    assert text.count("30 % hostile (sign_flip, strength 1), 10 % stale") == 2  # head and failures
    assert "Updates that they befell: ● feddbp 2 hostile, 1 stale; ◆ fedproto none." in text


def test_a_run_without_a_plan_does_not_speak_of_faults(make_run, report):
    assert "aults" not in report(make_run()).text.replace("[faults]", "")
