"""Carriers, runs, reports and the command line."""
