"""Memory of training and of evaluation: predicted from the configuration, without running the model.

    training = state x 2 + gradients + tokens per forward pass x bytes per token

The state is every tensor that training carries from step to step; the warm-up keeps a second copy. The bytes per token
are what the forward pass keeps for the backward pass: the model is run on fake tensors, which have shapes and no
values, and all saved tensors are counted. They are corrected by a measured factor (`_CPU_SHARE` and others).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bitgolf.config import Config
from bitgolf.data.loader import BatchShape
from bitgolf.errors import BitgolfError, RunError
from bitgolf.model.build import compute_dtype
from bitgolf.model.gpt import GPT
from bitgolf.run.ranks import World
from bitgolf.train.trainer import Trainer

# Measured bytes per token divided by (saved tensors + 16 bytes per entry of the vocabulary). Compiled: peaks of
# seed-348 (19.7 GB) and seed-693 (22.9 GiB) on an H200. CPU: 0.76 for seed-693, 0.93 for demo. A GPU without compiler
# was not measured; the value is that of a CPU with PyTorch's own functions.
_COMPILED_SHARE, _CPU_SHARE, _EAGER_SHARE = 0.68, 0.95, 1.15
_WITHOUT_MASKS = {"within_documents": False, "document_tokens": 0, "window": 0, "full_layers": ()}
_PROCESS_BYTES = 800_000_000  # Python, PyTorch, and work space of the kernels
USABLE = 0.9  # share of the free memory that a run may plan with


@dataclass(frozen=True)
class Memory:
    """Predicted bytes of training, and of evaluation at its peak."""

    state_bytes: int
    bytes_per_token: float
    micro_batch_tokens: int
    evaluation_bytes: int

    @property
    def training_bytes(self) -> int:
        return self.fixed_bytes + int(self.micro_batch_tokens * self.bytes_per_token)

    @property
    def fixed_bytes(self) -> int:
        """Bytes of training that do not depend on the micro-batch."""
        return self.state_bytes + _PROCESS_BYTES

    def largest_micro_batch(self, config: Config, room_bytes: float, world_size: int = 1) -> int:
        """The most tokens per forward pass that need at most `room_bytes` and divide the batch of a rank; 0 = none."""
        train = config.train
        rank_rows = train.block_tokens // train.seq_len // world_size  # they divide the batches of all parts
        most = (room_bytes - self.fixed_bytes) / (self.bytes_per_token * train.seq_len)
        fitting = [rows for rows in range(1, rank_rows + 1) if rank_rows % rows == 0 and rows <= most]
        return max(fitting, default=0) * train.seq_len


def predict_memory(config: Config, device: torch.device, world_size: int = 1) -> Memory:
    """The memory of each rank on a device of this type."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    train, model = config.train, config.model
    saved: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[id(storage)] = storage
        return tensor

    # Borders of documents depend on the tokens, which fake tensors do not have. They and windows add little.
    plain = model.updated({f"attention.{key}": value for key, value in _WITHOUT_MASKS.items()})
    dtype = compute_dtype(device)
    with FakeTensorMode():
        gpt = GPT(plain, train.seq_len, compute_dtype=dtype)
        gpt.set_attention_backend("flash")
        weights = {id(parameter.untyped_storage()) for parameter in gpt.parameters()}
        tokens = torch.zeros(1, train.seq_len, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            gpt(tokens, tokens)
        kept = sum(storage.nbytes() for key, storage in saved.items() if key not in weights)
        trainer = Trainer(gpt, train, BatchShape(1, 1, 1), World(0, 1, torch.device("cpu")))
        state = sum(tensor.nbytes for tensor in trainer.tensors().values())
        gradients = sum(parameter.nbytes for parameter in gpt.parameters())
    is_compiled = train.compile and device.type == "cuda"
    share = _COMPILED_SHARE if is_compiled else _CPU_SHARE if device.type == "cpu" else _EAGER_SHARE
    per_token = share * (kept / train.seq_len + 16 * model.vocab_size)
    micro = micro_batch_tokens(config, world_size)
    hidden = 3 * model.mlp_dim + 8 * model.model_dim  # floats per token at the widest place of a forward pass
    evaluation = gradients + config.score.batch_tokens * (hidden * dtype.itemsize + 12 * model.vocab_size)
    return Memory(2 * state + gradients, per_token, micro, evaluation + _PROCESS_BYTES)


def micro_batch_tokens(config: Config, world_size: int = 1) -> int:
    """Tokens per forward pass on one rank; all of its batch for "auto"."""
    train = config.train
    rank_tokens = max(train.seq_len, max(train.batch_sizes) // world_size)
    return min(train.micro_batch_tokens or rank_tokens, rank_tokens)


def at_most(config: Config) -> int:
    """A quick upper estimate of the bytes of training, about twice the predicted ones."""
    model = config.model
    passes = model.num_layers * (1 + model.loop.repeats)
    per_token = 8 * (passes * model.model_dim * (20 + 4 * model.mlp.multiple) + 8 * model.vocab_size)
    return int(micro_batch_tokens(config) * per_token) + 2 * _PROCESS_BYTES


def total_memory(device: torch.device) -> int:
    """Bytes of the device's memory; on a CPU that of the machine, or the limit of this process's control group."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [_number(Path("/sys/fs/cgroup/memory.max")), _number(Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min((limit for limit in limits if limit), default=0) or 1 << 62  # unknown: no limit


def free_memory(device: torch.device) -> int:
    """Bytes of the device's memory that no process uses now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    available = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    return min([*available, total_memory(device)])


@contextmanager
def memory_of(setting: str, value: int) -> Iterator[None]:
    """Turn running out of memory inside the block into a RunError that names the setting to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if isinstance(error, BitgolfError) or not is_memory:
            raise
        raise RunError(
            f"out of memory: lower {setting} (now {value}); `bitgolf plan` predicts how much a configuration needs"
        ) from error


def _number(file: Path) -> int:
    """The integer in a file; 0 if there is no such file or no number in it."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
