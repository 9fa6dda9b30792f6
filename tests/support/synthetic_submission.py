"""Submission folders in the forms of the public records, made up: three seeds, their logs, README, JSON and script.

`Folder` holds all that the files say; a test changes what it wants to plant and writes the folder. Unchanged, every
number follows from the others, as in an honest submission: figures are of the size that records had, from no real run.
"""

import json
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitgolf.audit.verdict import Check
from bitgolf.referee.folder import Submission, submission_checks

CONSTANT = 0.45696097  # bits per byte of a nat, of the tokenizer `caseops` on the full split
VAL_TOKENS = 47_851_520
CODE = '''"""Train, quantize, score."""
import os
import math
import torch
import torch.distributed as dist
from torch import nn


class Hyperparameters:
    seed = int(os.environ.get("SEED", 1337))
    matrix_lr = float(os.environ.get("MATRIX_LR", 0.026))
    ttt_lora_rank = int(os.environ.get("TTT_LORA_RANK", 96))
    warmdown_frac = float(os.environ.get("WARMDOWN_FRAC", 0.75))
    smear_gate_enabled = bool(int(os.environ.get("SMEAR_GATE_ENABLED", "0")))
    train_files = os.path.join(os.environ.get("DATA_PATH", "./data"), "fineweb_train_*.bin")
    val_files = os.path.join(os.environ.get("DATA_PATH", "./data"), "fineweb_val_*.bin")


class MLP(nn.Module):
    def forward(self, x):
        return self.down(nn.functional.leaky_relu(self.up(x), negative_slope=0.5).square())


class SmearGate(nn.Module):
    def forward(self, x, input_ids):
        not_bos = (input_ids[:, 1:] != 1).to(x.dtype).unsqueeze(-1)
        return torch.cat([x[:, :1], x[:, 1:] + self.gate(x) * x[:, :-1] * not_bos], dim=1)


def build_token_bytes(val_tokens, base_bytes_lut, has_leading_space_lut, is_boundary_token_lut):
    prev, tgt = val_tokens[:-1], val_tokens[1:]
    return base_bytes_lut[tgt] + (has_leading_space_lut[tgt] & ~is_boundary_token_lut[prev])


def train_model(h, train_loader, val_data):
    for step in range(h.iterations):
        x, y = train_loader.next_batch()
        loss = model(x, y)
        loss.backward()
        optimizer.step()
        if step % 4000 == 0:
            print(eval_val(h, val_data))
    return model


def collect_hessians(model, train_loader, batches):
    return {name: torch.zeros(8, 8) for name in model.names}


def serialize(h, model, train_loader):
    hessians = collect_hessians(model, train_loader, 16)
    return gptq(model, hessians)


def eval_val(h, val_data):
    starts = [ws for ws in range(0, total, h.stride) if ws + h.seq_len <= total]
    return score(starts)


def eval_val_ttt(h, model, val_data):
    for chunk in val_data.val_tokens.split(h.ttt_chunk):
        with torch.no_grad():
            total += model(chunk).sum()
        loss = model(chunk).mean()
        loss.backward()
        optimizer.step()


def main():
    h = Hyperparameters()
    model = train_model(h, train_loader, val_data)
    serialize(h, model, train_loader)
    model = deserialize(h)
    eval_val_ttt(h, model, val_data)


main()
'''


@dataclass
class Seed:
    """One run: final bits per byte, bytes of the model, where training stopped, seconds of evaluation."""

    seed: int
    bpb: float
    model_bytes: int
    steps: int
    stop_ms: int
    eval_ms: int
    constant: float = CONSTANT
    hessian_seconds: float = 3.5
    val_tokens: int = VAL_TOKENS
    target_tokens: int = 0
    documents: int = 50_000
    run_id: str = ""
    losses: list[float] = field(default_factory=list)
    before_seal: list[str] = field(default_factory=list)  # lines of the log between training and the sizes
    before_timer: list[str] = field(default_factory=list)
    in_evaluation: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    log_source: str = ""

    @property
    def loss(self) -> float:
        return round(self.bpb / self.constant, 8)


@dataclass
class Folder:
    """All that a submission folder says. `claims` overrides fields of submission.json, `readme_add` and `command` go
    into README; `extra` are further files."""

    seeds: list[Seed] = field(
        default_factory=lambda: [
            Seed(42, 1.06123451, 15_890_121, 4_912, 594_021, 488_210),
            Seed(0, 1.06201872, 15_893_377, 4_905, 594_077, 471_930),
            Seed(1234, 1.06170066, 15_888_502, 4_899, 594_103, 493_555),
        ]
    )
    code: str = CODE
    shipped_code: bytes = b""
    claims: dict[str, Any] = field(default_factory=dict)
    readme_rows: dict[int, dict[str, str]] = field(default_factory=dict)
    readme_add: str = ""
    readme_headline: str = ""
    command: dict[str, str] = field(default_factory=lambda: {"MATRIX_LR": "0.026", "TTT_LORA_RANK": "80"})
    extra: dict[str, str] = field(default_factory=dict)
    counted_code: int = 0

    @property
    def code_bytes(self) -> int:
        return self.counted_code or len(self.shipped_code or self.code.encode())

    def write(self, path: Path) -> Path:
        """Write the folder; returns its path."""
        path.mkdir(parents=True)
        (path / "train_gpt.py").write_bytes(self.shipped_code or self.code.encode())
        for number, seed in enumerate(self.seeds):
            (path / f"train_seed{seed.seed}.log").write_text(self.log(seed, number), encoding="utf-8")
        (path / "submission.json").write_text(json.dumps(self.metadata() | self.claims, indent=1), encoding="utf-8")
        (path / "README.md").write_text(self.readme(), encoding="utf-8")
        for name, text in self.extra.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(text, encoding="utf-8")
        return path

    def total(self, seed: Seed) -> int:
        return seed.model_bytes + self.code_bytes

    def log(self, seed: Seed, number: int) -> str:
        rng = random.Random(seed.seed)
        settings = {
            "caseops_enabled": True,
            "datasets_dir": "./data/datasets/fineweb10B_sp8192_lossless_caps_caseops_v1",
            "matrix_lr": 0.026,
            "run_id": seed.run_id or f"record_s{seed.seed}",
            "seed": seed.seed,
            "smear_gate_enabled": True,
            "train_files": "./data/datasets/fineweb10B_sp8192_lossless_caps_caseops_v1/fineweb_train_*.bin",
            "ttt_lora_rank": 80,
            "vocab_size": 8192,
            "warmdown_frac": 0.85,
        } | seed.settings
        losses = seed.losses or [9.01 + rng.random() / 100, *(12 - n + rng.random() for n in range(4))]
        steps = [(n + 1, loss) for n, loss in enumerate(losses)]
        steps += [(n, 2.7 - n / 9000 + rng.random() / 5) for n in range(500, seed.steps, 500)]
        pre = seed.bpb + 0.0027
        quantized = seed.bpb + 0.0112
        lines = [
            *(["=" * 100, "Hyperparameters:"] if seed.log_source else ["Hyperparameters:"]),
            *(f"  {key}: {value}" for key, value in sorted(settings.items())),
            *(["=" * 100, "Source code:", "=" * 100, seed.log_source, "=" * 100] if seed.log_source else []),
            "train_shards: 80",
            f"val_tokens: {seed.val_tokens}",
            "model_params:35945671",
            *(
                f"{step}/20000 train_loss: {loss:.4f} train_time: {step * 0.002:.1f}m tok/s: {rng.randint(6, 8)}00000"
                for step, loss in steps
            ),
            f"{seed.steps}/20000 val_loss: {(pre + 0.01) / seed.constant:.4f} val_bpb: {pre + 0.01:.4f}",
            f"stopping_early: wallclock_cap train_time: {seed.stop_ms}ms step: {seed.steps}/20000",
            *seed.before_seal,
            metric("diagnostic pre-quantization post-ema", pre, seed.constant * (1 - 6e-5), 6_700),
            f"Code size: {self.code_bytes} bytes",
            "GPTQ:collecting Hessians from calibration data...",
            f"GPTQ:collected 67 Hessians in {seed.hessian_seconds}s",
            f"Serialized model quantized+pergroup: {seed.model_bytes} bytes",
            f"Total submission size quantized+pergroup: {self.total(seed)} bytes",
            metric("diagnostic quantized", quantized, seed.constant * (1 - 6e-5), 49_900),
            *seed.before_timer,
            "beginning TTT eval timer",
            f"ttt_phased: total_docs:{seed.documents} prefix_docs:2500 num_phases:3"
            + (f" target_tokens:{seed.target_tokens}" if seed.target_tokens else ""),
            *(
                f"ttp: b{n}/782 bl:{2.2 + rng.random() / 5:.4f} bb:{1.0 + rng.random() / 10:.4f} gd:0"
                for n in range(700, 640, -7)
            ),
            *seed.in_evaluation,
            f"quantized_ttt_phased val_loss:{seed.loss:.8f} val_bpb:{seed.bpb:.8f} eval_time:{seed.eval_ms}ms",
            f"total_eval_time:{seed.eval_ms / 1000:.1f}s",
        ]
        return "\n".join(lines) + "\n"

    def metadata(self) -> dict[str, Any]:
        bpb, loss = [s.bpb for s in self.seeds], [s.loss for s in self.seeds]
        several = len(self.seeds) > 1
        return {
            "author": "A. Nobody",
            "github_id": "nobody",
            "name": "A stack",
            "blurb": "Made up.",
            "date": "2026-04-27",
            "track": "10min_16mb",
            "val_loss": round(statistics.mean(loss), 8),
            "val_bpb": round(statistics.mean(bpb), 8),
            "val_loss_std": round(statistics.stdev(loss), 5) if several else 0.0,
            "val_bpb_std": round(statistics.stdev(bpb), 5) if several else 0.0,
            "seeds": [s.seed for s in self.seeds],
            "seed_results": {
                str(s.seed): {
                    "val_loss": s.loss,
                    "val_bpb": s.bpb,
                    "artifact_bytes": self.total(s),
                    "steps": s.steps,
                    "eval_time_s": round(s.eval_ms / 1000, 1),
                }
                for s in self.seeds
            },
            "bytes_total": max(self.total(s) for s in self.seeds),
            "bytes_code": self.code_bytes,
            "comparison_baseline_bpb": 1.0810,
            "delta_vs_leaderboard_bpb": round(statistics.mean(bpb) - 1.0810, 5),
        }

    def readme(self) -> str:
        rows = []
        for seed in self.seeds:
            cells = {"steps": f"{seed.steps:,}", "bpb": f"**{seed.bpb:.5f}**", "bytes": f"{self.total(seed):,}"}
            cells |= self.readme_rows.get(seed.seed, {})
            rows.append(f"| {seed.seed} | {cells['steps']} | {cells['bpb']} | {cells['bytes']} |")
        mean = statistics.mean(s.bpb for s in self.seeds)
        command = " \\\n".join(f"{name}={value}" for name, value in self.command.items())
        return f"""# A stack: {mean:.5f}

**val_bpb: {self.readme_headline or f"{mean:.5f}"}** (3-seed mean)

| Seed | Steps | Post-TTT val_bpb | Artifact |
|------|-------|------------------|----------|
{chr(10).join(rows)}
| **Mean** | | **{mean:.5f}** | {math.floor(statistics.mean(self.total(s) for s in self.seeds)):,} |

The MLP uses LeakyReLU(0.5) squared; SmearGate is masked at BOS; weights are quantized by GPTQ.
{self.readme_add}

```bash
{command} \\
SEED=42 torchrun --standalone --nproc_per_node=8 train_gpt.py
```
"""


def metric(label: str, bpb: float, constant: float, eval_ms: int) -> str:
    """A line of validation figures."""
    return f"{label} val_loss:{bpb / constant:.8f} val_bpb:{bpb:.8f} eval_time:{eval_ms}ms"


Plant = Callable[[Folder], object]


def add(folder: Folder, code: str, files: dict[str, str] | None = None) -> None:
    """Put source before `main`, and files beside the script."""
    folder.code = folder.code.replace("def main():", f"{code}\n\n\ndef main():", 1)
    folder.extra |= files or {}


def script(code: str, files: dict[str, str] | None = None) -> Plant:
    return lambda folder: add(folder, code, files)


def instead(old: str, new: str) -> Plant:
    """Other source in the place of some."""
    return lambda folder: setattr(folder, "code", folder.code.replace(old, new))


def logged(seed: int, line: str, where: str = "in_evaluation") -> Plant:
    """A line in the log of a seed."""
    return lambda folder: setattr(folder.seeds[seed], where, [line])


def claimed(**fields: object) -> Plant:
    """Fields of submission.json."""
    return lambda folder: folder.claims.update(fields)


def for_seed(number: int, **values: object) -> Plant:
    """Attributes of a seed."""
    return lambda folder: [setattr(folder.seeds[number], name, value) for name, value in values.items()]


def every_seed(**values: object) -> Plant:
    """Attributes of all seeds."""
    return lambda folder: [for_seed(number, **values)(folder) for number in range(len(folder.seeds))]


def judged(check: str, tmp_path: Path, *plants: Plant) -> Check:
    """That check of the folder in which the plants changed something."""
    folder = Folder()
    for plant in plants:
        plant(folder)
    made = submission_checks.make(Submission(folder.write(tmp_path / "2026-04-27_Stack")), only=[check])[check]
    assert "another form than expected" not in made.reason, f"the check itself failed: {made}"
    return made
