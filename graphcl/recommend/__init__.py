"""Sequential recommenders; item 0 is padding, the items that can be recommended begin at 1."""

from graphcl.recommend.baselines import GRU4Rec, SASRec
from graphcl.recommend.bipcl import BIPCL, BIPCLConfig
from graphcl.recommend.evaluation import SplitFigures, evaluate_split
from graphcl.recommend.faerec import FAERec, FAERecConfig
from graphcl.recommend.methods import RECOMMENDERS, load_recommender
from graphcl.recommend.popularity import Popularity, PopularityConfig
from graphcl.recommend.recommender import Recommender, RecommenderConfig
from graphcl.recommend.sequences import Histories, Sequences, TrainingBatches
from graphcl.recommend.slsrec import SLSRec, SLSRecConfig
from graphcl.recommend.softmax import SoftmaxMethod, catalogue_cross_entropy, sampled_cross_entropy

__all__ = [
    "BIPCL",
    "RECOMMENDERS",
    "BIPCLConfig",
    "FAERec",
    "FAERecConfig",
    "GRU4Rec",
    "Histories",
    "Popularity",
    "PopularityConfig",
    "Recommender",
    "RecommenderConfig",
    "SASRec",
    "SLSRec",
    "SLSRecConfig",
    "Sequences",
    "SoftmaxMethod",
    "SplitFigures",
    "TrainingBatches",
    "catalogue_cross_entropy",
    "evaluate_split",
    "load_recommender",
    "sampled_cross_entropy",
]
