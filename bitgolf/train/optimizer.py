"""The optimizer of a whole model: Muon for matrices, AdamW for the rest, one clip of the gradient over both.

The weights of linear layers go to Muon. Tables (token, bigram and value embeddings) and all other parameters go to
AdamW, with one learning rate each. The clip measures the gradient norm of every tensor, so a tensor with NaN can be
named.
Source: the challenge's baseline.
"""

import torch
from torch import Tensor

from bitgolf.config import TrainConfig
from bitgolf.grids.roles import is_table
from bitgolf.model.gpt import GPT
from bitgolf.model.layers import Linear
from bitgolf.run.ranks import World
from bitgolf.train.muon import Muon


class ModelOptimizer:
    """Updates `model` from its gradients."""

    def __init__(self, model: GPT, config: TrainConfig, world: World, *, compile_updates: bool = False) -> None:
        self.config, self.world = config, world
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self.names = list(self.parameters)
        linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Linear)}
        matrices = {name: p for name, p in self.parameters.items() if name in linear}
        tables = [name for name in self.names if is_table(name)]
        scalars = [name for name in self.names if name not in matrices and name not in tables]
        self.muon = Muon(matrices, world, config.muon, torch.compile if compile_updates else lambda f: f)
        self.base_lrs = [config.embed_lr, config.scalar_lr]
        self.adam_names = [tables, scalars]
        decay = config.adam.weight_decay
        decays = (decay if config.adam.table_weight_decay < 0 else config.adam.table_weight_decay, decay)
        self.adam = torch.optim.AdamW(
            [
                {"params": [self.parameters[n] for n in group], "lr": lr, "weight_decay": decay}
                for group, lr, decay in zip(self.adam_names, self.base_lrs, decays, strict=True)
            ],
            betas=(config.adam.beta1, config.adam.beta2),
            eps=config.adam.eps,
            fused=world.device.type == "cuda",
            foreach=None if world.device.type == "cuda" else True,
        )
        self._create_adam_state()

    def _create_adam_state(self) -> None:
        """Create AdamW's state, all zero, so that it is complete before the first step."""
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
    def step(self, lr_scale: float, momentum: float, decay: float | None = None, two_rails: bool = False) -> Tensor:
        """Clip the gradients, update the parameters, clear the gradients.

        `decay`: Muon's weight decay; None = the configured one. `two_rails`: see `Muon.step`. Returns (P + 1,) fp32:
        the gradient norm of every parameter in the order of `names`, then the global norm, all before clipping.
        """
        exchange = self.muon.exchange
        received = None if exchange is None else exchange.receive()
        norms = self._clip_(self._own_gradients(received))
        self.muon.step(self.config.matrix_lr * lr_scale, momentum, received, decay, two_rails)
        for group, lr in zip(self.adam.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * lr_scale
        self.adam.step()
        for parameter in self.parameters.values():
            parameter.grad = None
        return norms

    def average_(self, head: Tensor) -> None:
        """Average over the ranks `head` and the gradients that every rank needs; `exchange` averages the others."""
        names = self.names if self.muon.exchange is None else [name for group in self.adam_names for name in group]
        grads = [self.parameters[name].grad for name in names]
        self.world.mean_([grad for grad in grads if grad is not None] + [head])

    def _own_gradients(self, received: dict[tuple[int, int], Tensor] | None) -> dict[str, Tensor]:
        """The gradients that this rank has, by name: all, or its matrices and the others."""
        if received is None or self.muon.exchange is None:
            return {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        rows = self.muon.exchange.own_rows(received)
        others = {
            name: p.grad
            for name, p in self.parameters.items()
            if name not in self.muon.parameters and p.grad is not None
        }
        return rows | others

    def _clip_(self, own: dict[str, Tensor]) -> Tensor:
        """Scale all gradients down until their global norm is at most `train.grad_clip`; returns the norms before."""
        grads = list(own.values())
        by_dtype: dict[torch.dtype, list[int]] = {}  # one kernel takes one dtype, and tables may be bf16
        for index, grad in enumerate(grads):
            by_dtype.setdefault(grad.dtype, []).append(index)
        norm_of: dict[int, Tensor] = {}
        for indices in by_dtype.values():
            values = torch._foreach_norm([grads[i] for i in indices], dtype=torch.float32)
            norm_of |= dict(zip(indices, values, strict=True))
        if self.muon.exchange is None:
            norms = torch.stack([norm_of[index] for index in range(len(grads))])
        else:  # every norm is counted by one rank
            nothing = torch.zeros((), device=grads[0].device)
            counted = {
                name: norm_of[index]
                for index, name in enumerate(own)
                if name in self.muon.parameters or self.world.is_main
            }
            norms = torch.stack([counted.get(name, nothing) for name in self.names])
            self.world.mean_([norms])
            norms *= self.world.size
        total = norms.norm()
        if self.config.grad_clip:
            scale = (self.config.grad_clip / (total + 1e-6)).clamp(max=1.0)
            for indices in by_dtype.values():
                torch._foreach_mul_([grads[i] for i in indices], scale)
        return torch.cat((norms, total[None]))
