"""Looking at a model while it trains: its loss on held-out training text, and a sample of its text, now and then.

The work is on the training clock, and the optimizer never sees the held-out rows (`bitgolf.data.row_order.HeldOut`).
Validation text is not touched (rule B7 in docs/rules.md). Nothing here changes a weight or a random number of the
training.

Legend: B rows, T time, V vocabulary.
"""

import torch
from torch import Tensor

from bitgolf.data.tokenizer import Tokenizer
from bitgolf.run.ranks import sums_dtype
from bitgolf.train.metrics import StepReport
from bitgolf.train.pace import LAG
from bitgolf.train.rows import TrainingRows
from bitgolf.train.trainer import Trainer

_TEMPERATURE = 0.8


class Watch:
    """Measures every `train.watch.seconds` of the clock, as long as the time for it is left.

    Args:
        rows: hold the text.
        report: gets the loss for the log and the progress bar.
        tokenizer: turns a sample into text.
    """

    def __init__(self, trainer: Trainer, rows: TrainingRows, report: StepReport, tokenizer: Tokenizer) -> None:
        self.trainer, self.rows, self.report, self.tokenizer = trainer, rows, report, tokenizer
        self.timeline, self.world = report.timeline, trainer.world
        self.config = config = trainer.config.watch
        self.num_rows = min(rows.held_out.num_rows, config.tokens // rows.order.seq_len) if config.seconds else 0
        self._due = self.timeline.pace.elapsed + config.seconds
        self._longest = 0.0

    def after_step(self, step: int, looped: bool) -> None:
        """Measure after `step` steps if it is time. `looped`: whether the looped layers run several times now."""
        pace = self.timeline.pace
        if not self.num_rows or pace.predict(step) < self._due:
            return
        rounds = -(-self.num_rows // (self.rows.shape.micro_rows * self.world.size))
        expected = max(self._longest, rounds * pace.seconds_per_step)
        if pace.predict(step) + expected + (LAG + 2) * pace.seconds_per_step > self.timeline.steps_end():
            return
        self.report.drain()
        self.world.synchronize()
        begin = self.world.from_main(self.timeline.clock.elapsed())
        loss = self._loss(looped)
        text = self._sample(step, looped) if self.config.sample_tokens else ""
        self.world.synchronize()
        end = self.world.from_main(self.timeline.clock.elapsed())
        pace.restart(step + 1, end)
        self._longest, self._due = max(self._longest, end - begin), end + self.config.seconds
        self.report.log_held_out(step, loss, self.num_rows * self.rows.order.seq_len, end, end - begin, text)

    @torch.no_grad()
    def _loss(self, looped: bool) -> float:
        """Mean cross entropy on the first held-out rows, in nats per token; the same on every rank."""
        micro, held_out = self.rows.shape.micro_rows, self.rows.held_out
        sums = torch.zeros(2, dtype=sums_dtype(self.world.device), device=self.world.device)
        for start in range(self.world.rank * micro, self.num_rows, micro * self.world.size):
            count = min(micro, self.num_rows - start)
            rows = held_out.rows(self.rows.stream, start, count).to(self.world.device)
            loss = self.trainer.model(rows[:, :-1], rows[:, 1:], None, looped)
            sums += torch.stack((loss * count, torch.full_like(loss, count))).to(sums.dtype)
        self.world.mean_([sums])
        total, count = sums.tolist()
        return total / count

    @torch.no_grad()
    def _sample(self, step: int, looped: bool) -> str:
        """A text that the model of rank 0 makes from nothing; "" on other ranks."""
        if not self.world.is_main:
            return ""
        generator = torch.Generator().manual_seed(step)
        tokens: Tensor = torch.tensor([[self.tokenizer.bos_id]], device=self.world.device)  # (1, T)
        for _ in range(self.config.sample_tokens):
            window = tokens[:, -self.rows.order.seq_len :]
            logits = self.trainer.model(window, None, None, looped)[0, -1].float().cpu()  # (V,)
            chosen = torch.multinomial((logits / _TEMPERATURE).softmax(0), 1, generator=generator)
            tokens = torch.cat((tokens, chosen.to(tokens.device)[None]), dim=1)
        return self.tokenizer.decode(tokens[0, 1:].tolist())
