"""A run of a comparison: a cell that also knows its budget and what its model costs."""

from llmtrain.config import config
from llmtrain.sweep.cells import Cell


@config
class Entry(Cell):
    budget: float  # model FLOPs of the baseline's run
    target: float  # of what all runs of the budget have equal: model FLOPs, raw tokens or seconds of training
    matched: float  # what it comes to
    n_total: int  # parameters, experts that a token does not go to included
    n_active: int
    flops_per_token: float  # model FLOPs, forward and backward, of a raw token
