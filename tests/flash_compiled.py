"""A plain and a compiled run around a stand-in for FlashAttention's kernel, in a process of their own.

As users start them: under the types that tests check at run time, a compiler sees another program.
``python tests/flash_compiled.py FOLDER`` prints {"losses": of either run, "traced": whether a compiler saw the kernel}.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from llmtrain.compose import run_from
from llmtrain.ops import attention_gpu, backend
from llmtrain.pretrain import train
from runs import metrics, overrides, pair, write_text

traced: list[bool] = []


def kernel(
    q: Tensor, k: Tensor, v: Tensor, q_bounds: Tensor, k_bounds: Tensor, *_: int, window_size: tuple[int, int]
) -> Tensor:
    """What FlashAttention computes for a stream on itself, by a mask, so that a compiler could take it in."""
    traced.append(torch.compiler.is_compiling())
    at = torch.arange(len(q))
    document = torch.searchsorted(q_bounds[1:].long(), at, right=True)
    visible = document[:, None] == document
    if window_size[1] == 0:
        visible = visible & (at[:, None] >= at)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    y = F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)), attn_mask=visible)
    return y.transpose(0, 1)


def main(home: Path) -> None:
    torch.set_num_threads(1)
    attention_gpu._kernel = kernel
    write_text(home)
    losses = []
    for compiled in ("false", "true"):
        options = pair("clm_dense") | {"steps": 4, "name": compiled, "trainer__compile": compiled}
        with backend.force(attention="flash"):
            train(run_from(overrides(home, **options)))
        losses.append([row["loss"] for row in metrics(home / "runs" / compiled) if "loss" in row])
    print(json.dumps({"losses": losses, "traced": any(traced), "calls": len(traced)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
