"""What ranks tell one another: which collective, over which group, and how many bytes of it a rank sends."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._distributed_c10d import _resolve_process_group
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import GroupName
from torch.utils._pytree import tree_leaves

_C10D, _FUNCTIONAL = torch.ops.c10d, torch.ops._c10d_functional


class Message(NamedTuple):
    collective: str
    group: str  # torch's name of it
    bytes: int  # of the whole: what is reduced, or what every rank has in the end
    ranks: int
    buffers: tuple[Tensor, ...]  # what was made for it alone

    @property
    def sent(self) -> float:
        """Bytes that a rank sends, where a ring carries it: each passes on all parts but one, a sum twice."""
        rounds = 2 if self.collective == "all-reduce" else 1
        return rounds * self.bytes * (self.ranks - 1) / self.ranks


class _Form(NamedTuple):
    """How an operation of torch is read."""

    collective: str
    group: int  # the place of the group among its arguments
    whole: Callable[[tuple[Any, ...], Any], Any]  # from arguments and result the tensors that are the whole
    own: bool = False  # whether they are made for the message


def _argument(i: int) -> Callable[[tuple[Any, ...], Any], Any]:
    return lambda args, out: args[i]


def _result(args: tuple[Any, ...], out: Any) -> Any:
    return out


_FORMS: dict[Any, _Form] = {
    _C10D.allreduce_.default: _Form("all-reduce", 1, _argument(0)),
    _C10D.broadcast_.default: _Form("broadcast", 1, _argument(0)),
    _C10D.allgather_.default: _Form("all-gather", 2, _argument(0)),
    _C10D._allgather_base_.default: _Form("all-gather", 2, _argument(0), own=True),
    _C10D._reduce_scatter_base_.default: _Form("reduce-scatter", 2, _argument(1), own=True),
    _C10D.alltoall_base_.default: _Form("all-to-all", 2, _argument(1)),
    _FUNCTIONAL.all_reduce.default: _Form("all-reduce", 2, _argument(0)),
    _FUNCTIONAL.all_reduce_.default: _Form("all-reduce", 2, _argument(0)),
    _FUNCTIONAL.all_gather_into_tensor.default: _Form("all-gather", 2, _result),
    _FUNCTIONAL.reduce_scatter_tensor.default: _Form("reduce-scatter", 3, _argument(0)),
    _FUNCTIONAL.all_to_all_single.default: _Form("all-to-all", 3, _argument(0)),
    _FUNCTIONAL.broadcast.default: _Form("broadcast", 2, _argument(0)),
}


def message_of(func: Any, args: tuple[Any, ...], out: Any) -> Message | None:
    """The message that an operation sends, if it is a collective."""
    form = _FORMS.get(func)
    if form is None:
        assert func.namespace not in {"c10d", "_c10d_functional"}, f"{func} is counted nowhere"
        return None
    group = _group(args[form.group])
    whole = [leaf for leaf in tree_leaves(form.whole(args, out)) if isinstance(leaf, Tensor)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in whole)
    return Message(form.collective, group.group_name, size, group.size(), tuple(whole) if form.own else ())


def _group(named: Any) -> ProcessGroup:
    if isinstance(named, str):
        return _resolve_process_group(GroupName(named))
    return ProcessGroup.unbox(named)
