"""Scaling laws: records or a table in, a law with honest intervals out. Numpy and scipy; never torch."""

from llmtrain.scaling.columns import Columns
from llmtrain.scaling.fit import Fit, fit
from llmtrain.scaling.method import Method
from llmtrain.scaling.points import Points, planned
from llmtrain.scaling.predict import Prediction, predict
from llmtrain.scaling.read import read
from llmtrain.scaling.saved import Saved, read_fit
from llmtrain.scaling.simulate import Simulated, simulate
from llmtrain.scaling.study import Study, study
from llmtrain.scaling.verify import Verified, verify

__all__ = [
    "Columns",
    "Fit",
    "Method",
    "Points",
    "Prediction",
    "Saved",
    "Simulated",
    "Study",
    "Verified",
    "fit",
    "planned",
    "predict",
    "read",
    "read_fit",
    "simulate",
    "study",
    "verify",
]
