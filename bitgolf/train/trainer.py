"""One optimizer step, and the tensors that a run carries from step to step.

The trainer owns the live tensors (weights, optimizer state, averages); the loop around it keeps time. The compile
warm-up makes real steps on random token ids and puts every tensor back. A hash of all of them proves it (rule B5 in
docs/rules.md).

Legend: P parameters, T time.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bitgolf.config import TrainConfig
from bitgolf.data.loader import BatchShape
from bitgolf.errors import BudgetError
from bitgolf.grids.roles import is_table
from bitgolf.model.extra_targets import ExtraTargets
from bitgolf.model.gpt import GPT
from bitgolf.run.clock import seconds_of_second_run
from bitgolf.run.progress import Progress, silent
from bitgolf.run.ranks import World
from bitgolf.train.average import Averages
from bitgolf.train.checkpoint import copy_into_, state_digest
from bitgolf.train.late import LatePhase
from bitgolf.train.optimizer import ModelOptimizer
from bitgolf.train.ramp import Ramp
from bitgolf.train.schedule import StepSettings, extra_weights, windows_at


def halve_tables_(model: GPT) -> None:
    """Make the token, bigram and value tables bf16, as in the published seed systems. Adam's moments become bf16 too.

    Matrices, gains and scales stay fp32. The tables are rounded to bf16 after every update.
    """
    for name, parameter in model.named_parameters():
        if is_table(name):
            parameter.data = parameter.data.bfloat16()


def _compile_options(loops: bool) -> dict[str, Any]:
    """Options of `torch.compile` for a model with or without looped layers.

    PyTorch 2.10 and later fuse sums over tokens into kernels that reduce over channels. In a looped model, two of these
    kernels add up the gradients of three passes and take 7 ms each: a step of 138 ms took 125 ms without them (H200).
    """
    import torch._inductor.config as inductor

    return {"triton.mix_order_reduction": False} if loops and hasattr(inductor.triton, "mix_order_reduction") else {}


class Trainer:
    """Steps `model` under `config`; see `step`, `tensors`, `load_`."""

    def __init__(
        self,
        model: GPT,
        config: TrainConfig,
        shape: BatchShape,
        world: World,
        late: LatePhase | None = None,
        prefixes: Tensor | None = None,  # (V,) of `Tokenizer.longest_prefixes`, for `train.extra_targets`
    ) -> None:
        self.model, self.config, self.shape, self.world, self.late = model, config, shape, world, late
        model.has_marks = config.loader == "documents"
        if config.table_dtype == "bf16":
            halve_tables_(model)
        self.compiled = config.compile and world.device.type == "cuda"
        # Of the parts around attention, the loss and the MLP: "pytorch", "triton" or "triton, quack".
        self.kernels = "pytorch"
        if config.kernels == "triton" and world.device.type == "cuda":
            self.kernels = model.use_kernels()
        self.optimizer = ModelOptimizer(model, config, world, compile_updates=self.compiled)
        self.averages = Averages(self.optimizer.parameters, config.average)
        self.mark: Callable[[str], None] = lambda part: None  # called after each part of a step (see `plan.bench`)
        none = torch.full((model.config.vocab_size,), -1)
        self._extra = ExtraTargets(
            torch.zeros(len(config.extra_targets.next_tokens) + 1, device=world.device),
            (none if prefixes is None else prefixes).to(world.device),
        )
        self._loss: Callable[..., Tensor] = model
        self._late_loss: Callable[..., Tensor] = model if late is None else late.loss
        if self.compiled:
            torch._dynamo.config.recompile_limit = 64  # graphs of the model; each kind of step has its own
            options = _compile_options(bool(model.config.loop.repeats))
            self._loss = torch.compile(self._loss, dynamic=False, options=options)
            self._late_loss = torch.compile(self._late_loss, dynamic=False, options=options)

    def step(
        self,
        # inputs, targets: (B, T) int64.
        inputs: Tensor,
        targets: Tensor,
        settings: StepSettings,
        elapsed: float = 0.0,  # rank 0's clock, which every rank gets with the metrics
    ) -> Tensor:
        """One update from this rank's rows.

        Returns (P + 3,) fp32 on the device: elapsed seconds on rank 0, mean loss over all ranks in nats, the gradient
        norms of `ModelOptimizer.step`.
        """
        total = torch.zeros((), device=self.world.device)
        if settings.late and self.late is not None:
            self.late.prepare(settings.fraction)
        if settings.extra is not None:
            self._extra.weights.copy_(torch.tensor(settings.extra))
        micro_rows = min(len(inputs), self.shape.micro_rows)
        accumulation = len(inputs) // micro_rows
        micro_batches = zip(inputs.split(micro_rows), targets.split(micro_rows), strict=True)
        for number, (x, y) in enumerate(micro_batches, 1):
            loss = self._micro_loss(x, y, settings.late, settings.looped, settings.extra is not None) / accumulation
            self.mark("forward")
            if number == accumulation and self.optimizer.muon.exchange is not None:
                self.optimizer.muon.exchange.arm()
            loss.backward()
            self.mark("backward")
            total += loss.detach()
        head = torch.stack((torch.full_like(total, elapsed * self.world.size * self.world.is_main), total))
        self.optimizer.average_(head)
        self.mark("communication")
        two_rails = settings.fraction >= self.config.muon.two_rails_from < 1
        norms = self.optimizer.step(settings.lr_scale * settings.rate, settings.momentum, settings.decay, two_rails)
        self.mark("optimizer")
        self.averages.update(settings.fraction, settings.lr_scale, snapshots=settings.snapshots)
        self.mark("averaging")
        return torch.cat((head, norms))

    def _micro_loss(self, x: Tensor, y: Tensor, late: bool, looped: bool = True, extra: bool = False) -> Tensor:
        if late and self.late is not None:
            return self._late_loss(x, y, self.late.sharpness, looped)
        return self._loss(x, y, None, looped, self._extra) if extra else self._loss(x, y, None, looped)

    def tensors(self) -> dict[str, Tensor]:
        """Every live tensor that a resumed run needs, by name. All ranks call it together."""
        self.optimizer.muon.gather_()
        tensors = {f"model.{name}": p for name, p in self.optimizer.parameters.items()} | self.optimizer.state()
        return tensors | self.averages.state() | (self.late.state() if self.late is not None else {})

    @torch.no_grad()
    def install_(self, weights: dict[str, Tensor]) -> None:
        """Put the final weights into the model, in fp32. No step can follow."""
        for name, parameter in self.optimizer.parameters.items():
            parameter.data = weights[name].detach().float()

    def warm_up(self, progress: Progress = silent, limit_seconds: float = math.inf) -> float:
        """Compile and run every kernel on random tokens, then restore all state.

        Returns the seconds per step once everything is compiled: the median of the last half of the steps. Raises
        BudgetError if a step of many micro-batches would take longer than `limit_seconds`, those of the whole training,
        as two micro-batches show.
        """
        self._require_short_steps(limit_seconds)
        live = self.tensors()
        before = {name: tensor.detach().clone() for name, tensor in live.items()}
        digest = state_digest(before)
        generator = torch.Generator(device=self.world.device).manual_seed(0)
        seconds = []
        kinds = self._kinds()
        total = len(kinds) * self.config.warmup_steps
        for number, kind in enumerate(kind for kind in kinds for _ in range(self.config.warmup_steps)):
            late, looped, extra, self.model.windows, rows = kind
            if self.world.is_main:
                progress("warm-up", number, total, "compiling, off the clock" if self.compiled else "off the clock")
            shape = (2, rows, self.config.seq_len)  # as the loader makes them: other strides would be compiled again
            tokens = torch.randint(self.model.config.vocab_size, shape, generator=generator, device=self.world.device)
            settings = StepSettings(
                1.0,
                self.config.muon.momentum,
                fraction=float(number > 0),  # so that both kinds of momentum are compiled
                late=late,
                looped=looped,
                extra=extra_weights(0.0, self.config.extra_targets) if extra else None,
            )
            self.world.synchronize()
            begin = time.perf_counter()
            self.step(tokens[0], tokens[1], settings)
            self.world.synchronize()
            seconds.append(time.perf_counter() - begin)
        if self.world.is_main:
            progress("warm-up", total, total)
        self.model.windows = self.model.config.attention.windows
        copy_into_(live, before)
        if state_digest(self.tensors()) != digest:
            raise AssertionError("the compile warm-up changed the training state")
        return statistics.median(seconds[-max(1, self.config.warmup_steps // 2) :])

    def _kinds(self) -> list[tuple[bool, bool, bool, tuple[int, int], int]]:
        """Every kind of step that the run makes: (late, looped, extra targets, windows, rows of this rank)."""
        config, targets, last = self.config, self.config.extra_targets, self.model.config.attention.windows
        loop_start = config.loop_start if self.model.config.loop.repeats else 0.0
        ramp, largest = Ramp.of(config), max(config.batch_sizes) // config.block_tokens
        parts = [*config.windows, *ramp.parts]
        starts = {0.0, loop_start, targets.until * targets.enabled, 1.0, *(part[0] for part in parts)}
        kinds = []
        for start in sorted(starts):
            rows = self.shape.rank_rows * ramp.enter(0, start)[0] // largest
            learns_more = targets.enabled and start < targets.until
            kinds.append((False, start >= loop_start, learns_more, windows_at(start, config, last), rows))
        late = [(True, looped, False, windows, rows) for _, looped, _, windows, rows in kinds] if self.late else []
        return list(dict.fromkeys(kinds + late))

    def _require_short_steps(self, limit_seconds: float) -> None:
        if self.shape.accumulation < 4:
            return
        tokens = torch.zeros(self.shape.micro_rows, self.config.seq_len, dtype=torch.int64, device=self.world.device)
        seconds = seconds_of_second_run(lambda: self._micro_loss(tokens, tokens, late=False).backward(), self.world)
        for parameter in self.optimizer.parameters.values():
            parameter.grad = None
        if (step := self.world.from_main(seconds) * self.shape.accumulation) > limit_seconds:
            raise BudgetError(
                f"budget.train_seconds = {limit_seconds:g} does not hold one optimizer step: its "
                f"{self.shape.accumulation:,} micro-batches take about {step:.3g} s; allow more seconds or "
                "make train.batch_tokens smaller"
            )
