"""Whoever asks for help, or mistypes an option, does not wait for torch."""

import subprocess
import sys

import pytest

PROBE = """
import sys
from typer.main import get_command
from typer.testing import CliRunner
from simulations.cli import app

def paths(command, path=()):
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from paths(child, (*path, name))

known = list(paths(get_command(app)))
assert len(known) > 15, known
for path in known:
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0 and "Usage" in result.output, (path, result.output)
assert CliRunner().invoke(app, ["run", "--no-such-option"]).exit_code == 2
heavy = {"torch", "torch_geometric", "flwr", "ray", "scipy", "sklearn", "matplotlib"}
print(sorted(heavy & sys.modules.keys()))
"""


def test_help_of_every_command_loads_nothing_that_computes():
    found = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["graphcl.datasets", "federation.experiment"])
def test_what_few_need_is_not_loaded_for_all(module):
    code = (
        f"import sys, {module}; print(sorted({{'scipy.signal', 'sklearn'}} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "[]"
