"""Scaling laws: records or a table in, a law with honest intervals out. Numpy and scipy; never torch."""

from llmtrain.scaling.columns import Columns, read_csv
from llmtrain.scaling.fit import Fit, fit
from llmtrain.scaling.method import Method
from llmtrain.scaling.points import Points

__all__ = ["Columns", "Fit", "Method", "Points", "fit", "read_csv"]
