"""What a run keeps to continue from: written whole or not at all, checked when read, and never executed.

A checkpoint is a folder ``checkpoints/step-00001000`` with one safetensors file for each group of tensors,
``state.json`` for everything else, and ``manifest.json``, written last, with the size and the hash of every
file.
"""

from llmtrain.checkpoint.background import Saver
from llmtrain.checkpoint.commit import save
from llmtrain.checkpoint.disk import estimate_bytes, preflight
from llmtrain.checkpoint.find import find, newest, prune
from llmtrain.checkpoint.folders import of_step as path_of
from llmtrain.checkpoint.load import load
from llmtrain.checkpoint.state import PER_RANK, Expect, Shard, State, Stored, memory, places, specs

__all__ = [
    "PER_RANK",
    "Expect",
    "Saver",
    "Shard",
    "State",
    "Stored",
    "estimate_bytes",
    "find",
    "load",
    "memory",
    "newest",
    "path_of",
    "places",
    "preflight",
    "prune",
    "save",
    "specs",
]
