"""The optimizer of a whole model: Muon for the block matrices, AdamW for tables and scalars, one clip over all.

Group rule: two-dimensional weights of linear layers go to Muon; tables (token, bigram and value embeddings)
and everything else to AdamW with their own learning rates. The gradient norm of every tensor is measured on the way
to the clip, so a NaN can be named.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitgolf.config import TrainConfig
from bitgolf.grids.roles import is_table
from bitgolf.model.gpt import GPT
from bitgolf.model.layers import Linear
from bitgolf.run.ranks import World
from bitgolf.train.muon import Muon


class ModelOptimizer:
    """Updates `model` from its gradients; see the module's docstring for the groups."""

    def __init__(self, model: GPT, config: TrainConfig, world: World, *, compile_updates: bool = False) -> None:
        self.config = config
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self.names = list(self.parameters)
        linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear)}
        matrices = {name: p for name, p in self.parameters.items() if name in linear}
        tables = [name for name in self.names if is_table(name)]
        scalars = [name for name in self.names if name not in matrices and name not in tables]
        self.muon = Muon(
            matrices,
            world,
            steps=config.muon.steps,
            weight_decay=config.muon.weight_decay,
            transform=torch.compile if compile_updates else lambda f: f,
        )
        self.base_lrs = [config.embed_lr, config.scalar_lr]
        self.adam_names = [tables, scalars]
        self.adam = torch.optim.AdamW(
            [
                {"params": [self.parameters[n] for n in group], "lr": lr}
                for group, lr in zip(self.adam_names, self.base_lrs, strict=True)
            ],
            betas=(config.adam.beta1, config.adam.beta2),
            eps=config.adam.eps,
            weight_decay=config.adam.weight_decay,
            fused=world.device.type == "cuda",
            foreach=None if world.device.type == "cuda" else True,
        )
        self._create_adam_state()

    def _create_adam_state(self) -> None:
        """Give AdamW its zero state now, so that a snapshot before the first step holds everything."""
        for group in self.adam.param_groups:
            for parameter in group["params"]:
                on_device = parameter.device if self.adam.defaults["fused"] else None
                self.adam.state[parameter] = {
                    "step": torch.zeros((), device=on_device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the optimizer's state by name, live (not copies)."""
        tensors = self.muon.state()
        for names, group in zip(self.adam_names, self.adam.param_groups, strict=True):
            for name, parameter in zip(names, group["params"], strict=True):
                tensors |= {f"adam.{name}.{key}": value for key, value in self.adam.state[parameter].items()}
        return tensors

    @torch.no_grad()
    def step(self, lr_scale: float, momentum: float) -> Tensor:
        """Clip, update, clear the gradients.

        Returns:
            (P + 1,) fp32: gradient norm of every parameter in the order of `names`, then the global norm, both
            before clipping.
        """
        grads = [p.grad for p in self.parameters.values() if p.grad is not None]
        # Each dtype for itself (tables may be bf16): one kernel for many tensors takes one dtype.
        alike = [
            [i for i, g in enumerate(grads) if g.dtype == dtype] for dtype in dict.fromkeys(g.dtype for g in grads)
        ]
        by_place: dict[int, Tensor] = {}
        for places in alike:
            some = torch._foreach_norm([grads[i] for i in places], dtype=torch.float32)
            by_place |= dict(zip(places, some, strict=True))
        norms = torch.stack([by_place[i] for i in range(len(grads))])
        total = norms.norm()
        if self.config.grad_clip:
            share = (self.config.grad_clip / (total + 1e-6)).clamp(max=1.0)
            for places in alike:
                torch._foreach_mul_([grads[i] for i in places], share)
        self.muon.step(self.config.matrix_lr * lr_scale, momentum)
        for group, lr in zip(self.adam.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * lr_scale
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        for parameter in self.muon.parameters.values():
            parameter.grad = None
        return torch.cat((norms, total[None]))
