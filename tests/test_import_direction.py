"""Imports point one way: simulations on federation on graphcl, and the core knows no Flower."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "graphcl": {"flwr", "ray", "federation", "simulations"},
    "federation": {"simulations", "ray"},
    "simulations": set(),
}
# What the repository's own code lives in; a fourth package needs a decision, not an accident.
PACKAGES = set(FORBIDDEN)
NOT_PACKAGES = {"tests", "docs", "configs", "benchmarks", "scripts", "examples", "runs", "data"}

MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in FORBIDDEN
    for path in (ROOT / package).rglob("*.py")
)


def imported(module: str) -> set[str]:
    """Top-level names that a file imports anywhere, also by ``import_module``."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(module.split("/")[0] if node.level else (node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {a.value.split(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    return names


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_nothing_above_itself(module):
    package = module.split("/")[0]
    assert imported(module) & FORBIDDEN[package] == set()


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_package_is_where_the_test_looks(package):
    """An emptied or renamed package would pass the test above without being read."""
    assert any(module.startswith(f"{package}/") for module in MODULES)
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert Path(spec.origin).parent == ROOT / package


def test_top_level_holds_no_other_code():
    found = {
        entry.name
        for entry in ROOT.iterdir()
        if entry.is_dir()
        and not entry.name.startswith(".")
        and not entry.name.endswith(".egg-info")
        and entry.name not in NOT_PACKAGES
        and next(entry.rglob("*.py"), None)
    }
    assert found == PACKAGES
    assert [path.name for path in ROOT.glob("*.py") if path.name != "conftest.py"] == []
