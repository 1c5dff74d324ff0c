"""The most bytes that a run's tensors take while it trains, as torch's CPU allocator counts them."""

from collections.abc import Iterator
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile

from llmtrain.dry_run.live import tensors
from llmtrain.lit import Pretrain
from llmtrain.pretrain import train
from llmtrain.run import Run


def real_peak(run: Run, steps: int) -> int:
    """Of the first ``steps`` steps; train ``run`` to its end.

    The profiler sees every allocation, those inside of kernels too. What was there before counts by its size; batches
    are numpy's and count nowhere. What a thread of gloo is the last to hold is freed unseen, and counts until its place
    is used again: of ranks, the least of several measurements is the nearest.
    """
    seen = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
    before: list[int] = []
    begin, step = Pretrain.on_train_start, Pretrain.optimizer_step

    def on_train_start(self: Pretrain) -> None:
        state = tensors([*self.parameters(), *self.buffers(), *self.optimizer.tensors().values()])
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state}
        before.append(sum(storages.values()))
        seen.start()
        begin(self)

    def optimizer_step(self: Pretrain, *args: Any, **kwargs: Any) -> None:
        step(self, *args, **kwargs)
        if self.progress.step == steps:
            seen.stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretrain, "on_train_start", on_train_start)
        patch.setattr(Pretrain, "optimizer_step", optimizer_step)
        train(run)
    return highest(before[0], seen)


def highest(live: int, seen: profile) -> int:
    events = sorted(_allocations(seen), key=lambda event: event.start_time_ns)
    peak, sizes = live, dict[int, int]()
    for event in events:
        size, at = event.extra_fields.alloc_size, event.extra_fields.ptr
        if size > 0:
            for freed in [a for a, n in sizes.items() if a < at + size and at < a + n]:
                live -= sizes.pop(freed)
            sizes[at] = size
            live += size
        else:
            live -= sizes.pop(at, 0)  # what was made before the first step stays to the end
        peak = max(peak, live)
    return peak


def _allocations(seen: profile) -> Iterator[Any]:
    found = list(seen.profiler.kineto_results.experimental_event_tree())
    while found:
        event = found.pop()
        found += event.children
        if event.name == "[memory]":
            yield event
