"""Stage `report`: the products of a run become one self-contained page, `report.html`.

The page needs no network, no other file and no script, and its content security policy forbids all loading. A missing
product is replaced by the command that makes it.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bitgolf.artifact.generate import Sampling, generate
from bitgolf.artifact.open import PackedModel, open_model
from bitgolf.data.prepare import open_data
from bitgolf.report import allocation, charts, passage, sections
from bitgolf.report.caveats import caveats
from bitgolf.report.page import markup, render_page
from bitgolf.report.products import Products, read_losses
from bitgolf.report.terms import TERMS, inherited, title_and_description
from bitgolf.run import atomic
from bitgolf.run.directory import REPORT_MARK, RunDirectory, writes_run
from bitgolf.run.progress import Progress, silent
from bitgolf.version import __version__

_LARGEST_JSON_EVIDENCE = 4_000  # characters of evidence shown per check; audit.json holds all of it


@dataclass(frozen=True)
class SampledText:
    """A prompt, the model's continuation, and the document's own."""

    prompt: str
    continuation: str
    original: str


@dataclass(frozen=True)
class Texts:
    """The sections with text. `*_missing` is the reason why one is missing and the command that makes it, if any."""

    samples: tuple[SampledText, ...] = ()
    samples_missing: tuple[str, str] = ("", "")
    surprisal: passage.ColoredPassage | None = None
    surprisal_missing: tuple[str, str] = ("", "")


@writes_run
def report(run: RunDirectory, *, device: str = "cpu", progress: Progress = silent) -> Path:
    """Write `report.html` into the run directory, atomically, and return its path. `device` samples the continuations.

    The page names the command that makes a missing product. Raises RunError, ArtifactError or DataError if one is
    damaged.
    """
    products = Products.read(run)
    texts = collect_texts(run, products, device=device, progress=progress)
    total = run.config.report.samples + 1
    progress("report", total - 1, total, "charts")
    page = render(products, texts)
    path = run / "report.html"
    atomic.write_text(path, page)
    progress("report", total, total)
    return path


def collect_texts(run: RunDirectory, products: Products, *, device: str = "cpu", progress: Progress = silent) -> Texts:
    """Sample continuations and color a passage, if the products for them exist."""
    if not (run / "data").exists():
        missing = ("There is no validation text yet.", products.command("prepare"))
        return Texts(samples_missing=missing, surprisal_missing=missing)
    data = open_data(run / "data")
    settings = run.config.report
    samples: tuple[SampledText, ...] = ()
    no_samples = ("", "")
    if not (run / "model.bitgolf").exists():
        no_samples = ("There is no artifact to sample from yet.", products.command("pack"))
    elif not settings.samples:
        no_samples = ("No samples were asked for (report.samples = 0).", "")
    else:
        prompts = passage.choose_prompts(data.val, data.tokenizer, settings.samples, settings.sample_tokens)
        samples = sample(
            open_model(run / "model.bitgolf", device), prompts, settings.sample_tokens, run.config.seed, progress
        )
    surprisal, no_surprisal = None, ("", "")
    if not (run / "nll.npy").exists():
        no_surprisal = ("The validation text has not been scored yet.", products.command("score"))
    else:
        nll = read_losses(run / "nll.npy", f"run `{products.command('score')}` again")
        if nll.shape != (data.val.num_tokens - 1,):
            no_surprisal = (
                f"nll.npy holds {nll.size:,} losses, the validation text has {data.val.num_tokens - 1:,} "
                "targets: it was scored on other data.",
                products.command("score"),
            )
        else:
            surprisal = passage.surprisal_passage(data.val, data.tokenizer, nll, settings.surprisal_tokens)
            no_surprisal = ("", "") if surprisal else ("The validation tokens contain no text.", "")
    return Texts(samples, no_samples, surprisal, no_surprisal)


def sample(
    model: PackedModel, prompts: list[passage.Prompt], max_tokens: int, seed: int, progress: Progress = silent
) -> tuple[SampledText, ...]:
    """Continue each prompt by up to `max_tokens` tokens. Prompt i uses seed + i, so a report is reproducible."""
    samples = []
    for index, prompt in enumerate(prompts):
        progress("report", index, len(prompts) + 1, f"sample {index + 1}")
        continuation = generate(model, prompt.text, Sampling(max_tokens, seed=seed + index)).text
        samples.append(
            SampledText(passage.visible(prompt.text), passage.visible(continuation), passage.visible(prompt.continues))
        )
    return tuple(samples)


def render(products: Products, texts: Texts) -> str:
    score, pack, audit = products.score, products.pack, products.audit
    curve = allocation.rate_distortion(pack) if pack else None
    drawn = [
        {"title": chart.title, "key": chart.key, "svg": markup(charts.draw(chart))}
        for chart in [*sections.training_charts(products), *([curve] if curve else [])]
    ]
    verdict = dict(zip(("state", "symbol", "word", "checks"), sections.verdict(products), strict=True))
    return render_page(
        "report.html",
        style=("report.css",),
        script="report.js",
        version=__version__,
        config=products.config,
        about=title_and_description(products.config),
        inherited=inherited(products),
        terms=TERMS,
        config_digest=products.config.digest(),
        config_toml=products.config.to_toml(),
        command=products.command,
        warnings=[*sections.warnings(products), *caveats(products)],
        verdict=verdict,
        headline=f"{score['headline_bpb']:.4f}" if score else None,
        score=score,
        pack=pack,
        audit=audit,
        charts=drawn,
        bpb=sections.bpb_bars(score) if score else [],
        groups=sections.byte_groups(pack) if pack else [],
        rounding=allocation.outcome(pack, score) if pack else None,
        shares=allocation.shares(pack) if pack else [],
        meters=sections.budget_meters(products),
        facts=sections.facts(products),
        audit_rows=sections.audit_rows(audit, _LARGEST_JSON_EVIDENCE) if audit else [],
        ledger=sections.ledger_rows(products.budget.charges),
        texts=texts,
        levels=_levels(),
        mark=markup(REPORT_MARK),
    )


def _levels() -> list[str]:
    """Labels of the six shades of the surprisal legend."""
    bounds = [f"{bound:g}" for bound in passage.LEVEL_BITS]
    inner = [f"{low}\N{EN DASH}{high}" for low, high in pairwise(bounds)]
    return [f"under {bounds[0]}", *inner, f"{bounds[-1]} or more"]
