"""Flower apps, strategies, partitioning: what turns a graphcl model into a federation."""
