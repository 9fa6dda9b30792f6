"""What a report is about, in words, and the short glossary at its end.

A report is one file without network, so it explains its terms itself. The definitions follow docs/glossary.md.
"""

from pathlib import Path

from bitgolf.config import Config, load_config, preset_names
from bitgolf.report.products import Products

TERMS = {
    "bits-per-byte": (
        "bits per byte",
        "The bits that the model needs to encode one byte of text: the sum of -log2 of the probabilities that it gave "
        "to the tokens, divided by the bytes of the text. Lower is better; 8 is no compression.",
    ),
    "held-out-text": ("held-out text", "Documents that training never read (validation). The score is measured there."),
    "artifact": ("artifact", "The file that ships, model.bitgolf: packed weights and the tokenizer."),
    "chunked": ("chunked", "Scoring in adjacent windows: the first token of a window has no context."),
    "sliding": ("sliding", "Scoring in overlapping windows: every token has a long context, which takes more time."),
    "audit": ("audit", "Checks of the run against the rules, each with evidence: bytes, clocks, data, causality."),
    "ledger": ("ledger", "The list of all bytes and seconds that each stage used, in budget.json."),
    "surprisal": ("surprisal", "The bits that one token cost: -log2 of the probability that the model gave it."),
    "bits-per-weight": ("bits per weight", "The bytes of the artifact times 8, divided by the number of parameters."),
    "byte-accounting": (
        "byte accounting",
        "Which bytes the bits are divided by: those of the original text, or those of the normalized text by the rule "
        "of the challenge. Scores can be compared only under the same one.",
    ),
}  # fmt: skip
"""Anchor -> term and meaning."""


def title_and_description(config: Config) -> tuple[str, str]:
    """Title and description of a run by its own data: those of a preset hold only for the preset's data."""
    source = config.data.source_text
    if config.name not in preset_names() or load_config(config.name).data.source_text == source:
        return config.name, config.description or "A bitgolf run."
    kind, _, argument = source.partition(":")
    label = Path(argument or kind).name or source
    return f"{label} ({config.name})", f"A model of {source}, trained with the settings of preset {config.name}."


def inherited(products: Products) -> str:
    """What a branch took over from its trunk, in a sentence; "" for a run that is no branch."""
    event = products.last_event("branch")
    if not event:
        return ""
    return (
        f"This run is a branch: its first {event.get('branch_step', 0):,} steps, which took "
        f"{event.get('branch_seconds', 0):.1f} s, are those of {event.get('branch_run')}. They count in its training "
        "time, and the curves begin with them. Its own settings hold from there on."
    )
