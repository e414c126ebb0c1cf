"""Sequential recommenders; item 0 is padding, the items that can be recommended begin at 1."""

from graphcl.recommend.softmax import SoftmaxMethod, catalogue_cross_entropy, sampled_cross_entropy

__all__ = ["SoftmaxMethod", "catalogue_cross_entropy", "sampled_cross_entropy"]
