"""The report of a run: one self-contained HTML page beside its ``config.toml``."""

from simulations.report.page import write_report

__all__ = ["write_report"]
