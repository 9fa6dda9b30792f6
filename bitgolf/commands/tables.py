"""The tables of the command line, from the plain values that `--json` gives."""

from typing import Any

from rich.table import Table

from bitgolf.commands.output import make_table, plain


def score_table(name: str, score: dict[str, Any], packed: dict[str, Any]) -> Table:
    """Bits per byte of float and packed weights, their bytes, and general-purpose compressors on the same text."""
    parameters = f"{4 * packed['num_parameters']:,}"
    rows = [
        (f"last weights, {method}", f"{value['bpb']:.4f}", parameters, "")
        for method, value in score.get("last", {}).items()
    ]
    rows += [
        (f"float weights, {method}", f"{value['bpb']:.4f}", parameters, "") for method, value in score["float"].items()
    ]
    rows += [
        (f"packed, {method}", f"{value['bpb']:.4f}", f"{packed['total_bytes']:,}", f"{value['seconds']:.1f}")
        for method, value in score["methods"].items()
    ]
    rows += [(name, f"{value:.4f}", "", "") for name, value in score["compressors"].items()]
    title = (
        f"{name}: {score['val_bytes']:,} bytes of held-out text, {score['val_documents']:,} documents "
        f"({score['accounting']} byte accounting)"
    )
    return make_table(title, ("what", "bits per byte", "bytes", "seconds"), rows, numeric=3)


def text_score_table(values: dict[str, Any]) -> Table:
    """Bits per byte of a text file by a model and by general-purpose compressors."""
    rows = [("model, sliding", f"{values['score']['bpb']:.4f}")]
    rows += [(name, f"{bpb:.4f}") for name, bpb in values["compressors"].items()]
    title = f"{values['text']}: {values['bytes']:,} bytes ({values['accounting']} byte accounting)"
    return make_table(title, ("what", "bits per byte"), rows, numeric=1)


def audit_table(verdict: dict[str, Any]) -> Table:
    """Every check with its rule, verdict and reason. The title says whether all checks ran and passed."""
    colors = {"PASS": "green", "FAIL": "bold red"}
    rows = [
        (c["rule"], c["title"], plain(c["verdict"], colors.get(c["verdict"], "yellow")), c["reason"])
        for c in verdict["checks"]
    ]
    overall = "FAIL" if not verdict["passed"] else "PASS" if verdict["complete"] else "INCOMPLETE, see NOT RUN"
    return make_table(f"audit: {overall}", ("rule", "check", "verdict", "evidence"), rows)


def presets_table(presets: list[dict[str, Any]]) -> Table:
    """Name, size and budgets of every preset."""
    rows = [
        (
            preset["name"],
            f"{preset['parameters']:,}",
            f"{preset['vocab_size']:,}",
            f"{preset['artifact_bytes']:,}",
            f"{preset['train_seconds']:g}",
            f"{preset['eval_seconds']:g}",
        )
        for preset in presets
    ]
    return make_table("presets", ("name", "parameters", "vocabulary", "bytes", "train s", "eval s"), rows, numeric=5)


def doctor_table(findings: list[dict[str, Any]]) -> Table:
    """Every finding, and what each missing one costs."""
    rows = [(f["kind"], f["name"], "yes" if f["ok"] else "no", f["detail"], f["cost"]) for f in findings]
    return make_table("bitgolf doctor", ("kind", "name", "available", "detail", "if it is missing"), rows)


def data_table(path: str, manifest: dict[str, Any]) -> Table:
    """Documents, tokens and bytes of each split."""
    rows = []
    for name, split in manifest["splits"].items():
        num_bytes = split["counted_bytes"] if split["raw_bytes"] is None else split["raw_bytes"]
        per_token = num_bytes / max(1, split["tokens"])
        rows.append((name, f"{split['documents']:,}", f"{split['tokens']:,}", f"{num_bytes:,}", f"{per_token:.3f}"))
    return make_table(f"prepared {path}", ("split", "documents", "tokens", "bytes", "bytes/token"), rows, numeric=4)


def bench_table(bench: dict[str, Any]) -> Table:
    """Speed and memory of one preset."""
    packing, share = bench["packing_seconds"], bench["mfu"]
    rows = [
        ("tokens per second", f"{bench['tokens_per_second']:,.0f}"),
        ("ms per step", f"{bench['ms_per_step']:.1f}"),
        *((f"  {part}", f"{value:.1f}") for part, value in bench["ms_per_part"].items()),
        ("  idle", f"{bench['idle_ms']:.1f}"),
        ("MFU", "unknown device" if share is None else f"{share:.1%} of {bench['peak_flops'] / 1e12:,.0f} TFLOP/s"),
        ("peak memory, MiB", f"{bench['peak_memory_mib']:,.0f}"),
        ("evaluation, tokens per second", f"{bench['evaluation_tokens_per_second']:,.0f}"),
        ("packing, seconds", "" if packing is None else f"{packing:.1f}"),
        ("processes that ran or waited", f"{bench['load']:.1f}"),
    ]
    return make_table(f"{bench['preset']} on {bench['gpu']}", ("what", "measured"), rows, numeric=1)


def plan_table(plan: dict[str, Any]) -> Table:
    """What a run is predicted to need, beside what there is."""
    gigabytes, memory = "{:.1f} GB".format, plan["free_memory_bytes"] / 1e9
    how = "measured" if plan["measured"] else "estimated"
    evaluation = plan["evaluation_seconds"]
    rows = [
        ("parameters", f"{plan['parameters']:,}", ""),
        ("code, bytes", f"{plan['code_bytes']:,}", ""),
        ("code and model, bytes", f"about {plan['total_bytes']:,}", f"{plan['cap_bytes']:,}"),
        ("memory of training", gigabytes(plan["training_memory_bytes"] / 1e9), f"{memory:.1f} GB free"),
        ("memory of evaluation", gigabytes(plan["evaluation_memory_bytes"] / 1e9), f"{memory:.1f} GB free"),
        (f"seconds per step ({how})", _seconds(plan["step_seconds"]), ""),
        ("steps", f"{plan['num_steps']:,}", f"in {plan['train_seconds']:,.0f} s"),
        (
            "seconds of evaluation",
            "unknown: the size of the validation text" if evaluation is None else f"about {evaluation:,.0f}",
            f"{plan['eval_seconds_limit']:,.0f}",
        ),
    ]
    return make_table(f"{plan['preset']} on {plan['device']}", ("what", "needs", "has"), rows, numeric=2)


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
