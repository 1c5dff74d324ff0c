"""How a run uses its machine, and the Lightning trainer that this makes."""

import logging
import os
import platform
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import PositiveInt

from llmtrain.config import config
from llmtrain.errors import ConfigError
from llmtrain.ops.memory import keep_freed

if TYPE_CHECKING:
    from lightning import Callback
    from lightning import Trainer as LightningTrainer

log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp64"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
_LIGHTNING = {"fp32": "32-true", "bf16": "bf16-mixed", "fp64": "64-true"}


@config
class Trainer:
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: PositiveInt = 1  # processes on this machine, one a device
    nodes: PositiveInt = 1
    strategy: Literal["auto", "ddp", "fsdp", "tp"] = "auto"  # auto: ddp where there are several processes
    tensor: PositiveInt = 1  # ranks that share the matrices of every layer (tp); the others share rows
    activation_checkpointing: Literal["none", "block"] = "none"  # what a block keeps for its backward pass
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    compile: bool = False
    deterministic: bool = True  # the same bits from the same seed
    threads: PositiveInt | None = None  # of torch on the CPU; none: its own choice
    attention: Literal["auto", "reference", "masked", "by_document", "tiled", "flash", "flex"] = "auto"
    scan: Literal["auto", "reference", "chunked", "mamba"] = "auto"
    experts: Literal["auto", "reference", "sliced", "grouped"] = "auto"
    log_every: PositiveInt = 10  # steps
    profile: PositiveInt | None = (
        None  # steps, after some to warm up, recorded into profile/ of the run's folder
    )

    def __post_init__(self) -> None:
        if self.strategy != "tp" and self.tensor > 1:
            raise ValueError(
                f"tensor={self.tensor} is for strategy=tp, and strategy={self.strategy}: set trainer.tensor=1, or "
                "trainer.strategy=tp"
            )
        if self.strategy == "tp" and self.tensor == 1:
            raise ValueError(
                "strategy=tp with tensor=1 splits no matrix: set trainer.tensor=2, or trainer.strategy=fsdp"
            )
        if self.world % self.tensor:
            raise ValueError(
                f"tensor={self.tensor} does not divide the {self.world} ranks (devices x nodes): give a number of "
                "devices that it divides"
            )
        if self.sharded and self.compile:
            raise ValueError(
                f"compile=true with strategy={self.strategy} is not supported: set trainer.compile=false, or "
                "trainer.strategy=ddp"
            )

    @property
    def sharded(self) -> bool:
        """Whether a rank holds only a part of the model."""
        return self.strategy in {"fsdp", "tp"}

    @property
    def shares(self) -> int:
        """Ranks, or groups of ranks with the same rows, that the rows of a batch are shared out over."""
        return self.world // self.tensor

    @property
    def kernels(self) -> dict[str, str]:
        """The implementation of each operation; auto is the machine's choice."""
        return {"attention": self.attention, "scan": self.scan, "experts": self.experts}

    @property
    def world(self) -> int:
        return self.devices * self.nodes

    def rank(self) -> int:
        """The number of this process before there is a process group: by torchrun, SLURM or Lightning's launcher."""
        self._check_started()
        if self.world == 1:
            return 0
        for key in ("RANK", "SLURM_PROCID"):
            if key in os.environ:
                return int(os.environ[key])
        return int(os.environ.get("NODE_RANK", "0")) * self.devices + int(os.environ.get("LOCAL_RANK", "0"))

    def _check_started(self) -> None:
        """Refuse a number of processes that is not the config's: each would be a run of its own, or all would wait."""
        by_slurm = "WORLD_SIZE" not in os.environ and "SLURM_PROCID" in os.environ and self.world > 1
        started = os.environ.get("SLURM_NTASKS" if by_slurm else "WORLD_SIZE", str(self.world))
        if started != str(self.world):
            raise ConfigError(
                f"{started} ranks were started, and trainer.devices={self.devices} with trainer.nodes={self.nodes} is "
                f"a run of {self.world}: make them equal (trainer=ddp trainer.devices=N)"
            )
        if by_slurm and os.environ.get("SLURM_NTASKS_PER_NODE") != str(self.devices):
            raise ConfigError(
                f"SLURM was not told how many ranks a node has: give --ntasks-per-node={self.devices}, as "
                "trainer.devices says"
            )

    @property
    def on_gpu(self) -> bool:
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ConfigError(
                "trainer.accelerator=gpu, but torch sees no GPU here: use trainer.accelerator=auto"
            )
        return self.accelerator != "cpu" and torch.cuda.is_available()

    def chosen_precision(self) -> Precision:
        """What the hardware does well: bfloat16 autocast where its matrix products are fast, else float32."""
        if self.precision != "auto":
            return self.precision
        fast = (
            torch.cuda.is_bf16_supported(including_emulation=False) if self.on_gpu else _cpu_multiplies_bf16()
        )
        return "bf16" if fast else "fp32"

    def configure(self) -> None:
        """Threads, memory and determinism of this process; before anything is computed, or even timed."""
        quiet()
        if not self.on_gpu:
            keep_freed()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
            os.environ["OMP_NUM_THREADS"] = str(
                self.threads
            )  # else Lightning chooses its own for several ranks
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product on a GPU
            torch.use_deterministic_algorithms(True)
            # torch would write every new tensor twice; we read none before it is written
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def lightning(self, *, accumulate: int, callbacks: list["Callback"]) -> "LightningTrainer":
        """A Lightning trainer that only trains: counting, saving, evaluating and logging are the callbacks'."""
        import lightning

        if self.on_gpu and self.devices > torch.cuda.device_count():
            raise ConfigError(
                f"trainer.devices={self.devices}, but this machine has {torch.cuda.device_count()} GPUs: give at most "
                "so many, or trainer.accelerator=cpu"
            )
        from lightning.pytorch.plugins import DoublePrecision

        from llmtrain.strategy import Sharded

        kind: Any = "ddp" if self.world > 1 or self.strategy == "ddp" else "auto"
        precision: dict[str, Any] = {"precision": _LIGHTNING[self.chosen_precision()]}
        if self.sharded:
            kind = Sharded(data_parallel_size=self.shares, tensor_parallel_size=self.tensor)
            if self.chosen_precision() == "fp64":
                precision = {
                    "plugins": DoublePrecision()
                }  # which Lightning has, but refuses here by its name
        return lightning.Trainer(
            accelerator="gpu" if self.on_gpu else "cpu",
            devices=self.devices,
            num_nodes=self.nodes,
            strategy=kind,
            **precision,
            deterministic=self.deterministic,
            max_epochs=1,  # the rows that are left are the epoch; a rollback begins another
            reload_dataloaders_every_n_epochs=1,  # whose number of batches is its own
            limit_val_batches=0,
            num_sanity_val_steps=0,
            accumulate_grad_batches=accumulate,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
        )


def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU has instructions for products of bfloat16.

    On x86, oneDNN calls bfloat16 supported wherever there is AVX512, and emulates it: 0.2 of float32's speed.
    """
    if platform.machine().lower() in {"x86_64", "amd64"}:
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def leave_group() -> None:
    """End this process's part in the group of ranks, if it has one: else its exit may wait for theirs."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def quiet() -> None:
    """Say nothing about normal things: adverts, hints, and Lightning's view of what a validation loop is for."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # it calls the gathering of a matrix that lies along two axes slow, once for each layout
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*`isinstance\\(treespec.*",
        ".*litlogger.*",
    ):
        warnings.filterwarnings("ignore", message=text)
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="lightning.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning.*")


def autocast(trainer: Trainer) -> AbstractContextManager[Any]:
    """The precision of training, for what runs outside Lightning's loop."""
    if trainer.chosen_precision() != "bf16":
        return nullcontext()
    return torch.autocast("cuda" if trainer.on_gpu else "cpu", torch.bfloat16)
