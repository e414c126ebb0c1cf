"""Graph-centric core: contrastive learning on graphs with PyTorch and PyTorch Geometric."""
