"""Model FLOP utilization (MFU): the operations of training per second, divided by the peak of the GPU.

The operations are those of `bitgolf.model.flops`, with looped layers counted as often as they run. The peaks are dense
bf16 (fp16 where there is no bf16) without sparsity, from the data sheets of NVIDIA and AMD. Other GPUs, and CPUs, have
no entry, and no MFU is logged for them.
"""

from __future__ import annotations

import torch

from bitgolf.config import Config
from bitgolf.model.flops import flops_per_token
from bitgolf.run.ranks import World, device_name

# Part of the name -> 10^12 operations per second. The first that matches counts.
PEAK_TFLOPS = {
    "B200": 2250.0, "GH200": 989.0, "H200": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "H20": 148.0,
    "A100": 312.0, "A10G": 70.0, "A10": 125.0, "A40": 150.0, "A6000": 155.0, "L40S": 362.0, "L40": 181.0, "L4": 121.0,
    "V100": 125.0, "P100": 21.2, "T4": 65.0, "RTX 5090": 210.0, "RTX 4090": 165.0, "RTX 3090": 71.0,
    "MI300X": 1307.0, "MI250X": 383.0, "MI210": 181.0,
}  # fmt: skip


def mfu_per_token_rate(config: Config, world: World) -> float:
    """MFU at one token per second over all ranks; 0 if the peak of the device is unknown."""
    if world.device.type != "cuda" or not torch.cuda.is_available():
        return 0.0
    peak = peak_flops(device_name(world.device)) * world.size
    return flops_per_token(config.model, config.train.seq_len) / peak if peak else 0.0


def peak_flops(name: str) -> float:
    """Operations per second of the GPU with this name; 0 if it is unknown."""
    return next((1e12 * tflops for part, tflops in PEAK_TFLOPS.items() if part in name), 0.0)
