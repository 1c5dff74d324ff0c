"""What a dry run assumes of the machine that it stands for, and where it writes."""

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Le
from pydantic import PositiveFloat, PositiveInt

from llmtrain.config import config

Device = Literal["cpu", "h100", "h100_pcie", "h200", "b200", "a100", "l40s", "rtx_4090"]
NAMES = {  # in accounting's table
    "h100": "H100",
    "h100_pcie": "H100 PCIe",
    "h200": "H200",
    "b200": "B200",
    "a100": "A100",
    "l40s": "L40S",
    "rtx_4090": "4090",
}


@config
class Estimate:
    device: Literal["auto"] | Device = "auto"  # auto: h100, or cpu with trainer.accelerator=cpu
    memory: PositiveFloat | None = None  # bytes of a device; none: those of ``device``
    mfu: Annotated[float, Gt(0), Le(1)] = 0.4  # the share of the device's peak that training reaches
    vocabulary: PositiveInt | None = (
        None  # tokens; none: the tokenizer's, where it is known before it is trained
    )
    json: Path | None = None  # a file to write the same figures into
