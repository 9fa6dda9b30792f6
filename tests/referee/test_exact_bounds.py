"""The exact bounds of the checks of submissions: the last value that passes, and the first that fails."""

import math
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from synthetic_submission import (
    CODE,
    CONSTANT,
    VAL_TOKENS,
    Folder,
    Plant,
    claimed,
    every_seed,
    for_seed,
    judged,
    logged,
    metric,
)

from bitgolf.audit.verdict import MissingEvidence
from bitgolf.referee.code import read_script
from bitgolf.referee.log import parse_log
from bitgolf.referee.logs import logs_distinct, one_configuration
from bitgolf.referee.run import audit_submission
from bitgolf.referee.training_data import covers_both, links_validation, training_on_validation

CODE_BYTES = len(CODE.encode())
ROOM = 16_000_000 - CODE_BYTES  # bytes of the largest model that fits


def losses(bpb: float, loss: float) -> Plant:
    return claimed(val_bpb=bpb, val_loss=loss)


def results(seed: str = "42", **values: object) -> Plant:
    return claimed(seed_results={seed: values})


def row(**cells: str) -> Plant:
    """Other cells in README's row of seed 42."""
    return lambda folder: folder.readme_rows.update({42: cells})


def table(header: str, *rows: str) -> Plant:
    lines = [header, "|---|---|", *rows]
    return lambda folder: setattr(folder, "readme_add", "\n" + "\n".join(lines))


def of_tokenizer(name: str, constant: float) -> Plant:
    named = {"caseops_enabled": False, "datasets_dir": f"./data/{name}", "train_files": f"./{name}/train_*.bin"}
    return every_seed(settings=named, constant=constant)


def day(days: int) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).date().isoformat()


@pytest.mark.parametrize(
    ("check", "plant", "words"),
    [
        ("artifact-bytes", for_seed(1, model_bytes=ROOM), ""),
        ("artifact-bytes", for_seed(1, model_bytes=ROOM + 1), "16,000,001 bytes in train_seed0.log, 1 over the cap"),
        ("artifact-bytes", claimed(bytes_total=16_000_000), ""),
        ("artifact-bytes", claimed(bytes_total=16_000_001), "submission.json says 16,000,001 bytes, 1 over the cap"),
        ("artifact-bytes", claimed(artifact_bytes_max=16_000_002), "16,000,002 bytes, 2 over the cap"),
        ("json-schema", losses(0.21, 0.5), ""),
        ("json-schema", losses(0.2, 0.5), "val_bpb 0.2 is no score"),
        ("json-schema", losses(3.9, 8.0), ""),
        ("json-schema", losses(4, 8.0), "val_bpb 4 is no score"),
        ("json-schema", losses(1.01, 5.0), ""),
        ("json-schema", losses(1.0, 5.0), "val_bpb 1.0 and val_loss 5.0 do not go together"),
        ("json-schema", losses(1.59, 2.0), ""),
        ("json-schema", losses(1.6, 2.0), "val_bpb 1.6 and val_loss 2.0 do not go together"),
        ("json-schema", losses(1.0, 1.019), "is bits per byte, not nats per token"),
        ("json-schema", losses(1.019, 1.0), "is bits per byte, not nats per token"),
        ("json-schema", losses(1.03, 1.0), "do not go together"),
        ("json-schema", claimed(date="2026-01-01"), ""),
        ("json-schema", claimed(date="2025-12-31"), "before the challenge began"),
        ("json-schema", claimed(date=day(1)), ""),
        ("json-schema", claimed(date=day(3)), "in the future"),
        ("json-schema", claimed(seeds=[42, 0]), "seeds ['0', '42'] but seed_results of ['0', '1234', '42']"),
        ("train-clock", for_seed(0, stop_ms=600_120, hessian_seconds=0.0), ""),  # the last step may end late
        ("train-clock", for_seed(0, stop_ms=600_130, hessian_seconds=0.0), "at 600.13 s, 0.13 over the budget"),
        ("train-clock", for_seed(0, stop_ms=590_000, hessian_seconds=10.1), ""),
        ("train-clock", for_seed(0, stop_ms=590_000, hessian_seconds=10.2), "for 10.2 s after training stopped at 590"),
        ("train-clock", for_seed(0, stop_ms=500), "s on the line of a step, and 0.5 s as the end of training"),
        ("train-clock", for_seed(0, stop_ms=0), "stopped at 0.00 s, which is no time"),
        ("train-clock", for_seed(0, stop_ms=533_600), ""),  # the last line of a step says 9.0 m = 540 s
        ("train-clock", for_seed(0, stop_ms=533_400), "gives 540.0 s on the line of a step, and 533.4 s as the end"),
        ("eval-clock", for_seed(0, eval_ms=600_000), ""),
        ("eval-clock", for_seed(0, eval_ms=600_100), "evaluation took 600.1 s, 0.1 over the budget of 600 s"),
        ("eval-clock", for_seed(0, eval_ms=1_000), ""),
        ("eval-clock", for_seed(0, eval_ms=949), "took 0.949 s, which no machine does"),
        ("eval-clock", every_seed(eval_ms=3, val_tokens=1_000_000), ""),
        ("eval-clock", every_seed(eval_ms=3, val_tokens=1_000_001), "took 0.003 s, which no machine does"),
        ("eval-clock", claimed(seed_results={"42": {"eval_time_s": 600}}), ""),
        ("eval-clock", claimed(seed_results={"42": {"eval_time_s": 600.1}}), "seed 42: submission.json says 600.1 s"),
        ("eval-clock", logged(0, "ngram cache built", "before_timer"), "('ngram cache built') comes before the eval"),
        ("eval-clock", logged(0, "* ngram_hints: 7 in 12.5 s", "before_timer"), "comes before the evaluation timer"),
        ("eval-clock", logged(0, "ngram cache built", "in_evaluation"), ""),
        ("eval-clock", logged(0, "ngram order 3", "before_timer"), ""),
        ("eval-clock", logged(0, "model built of ngrams", "before_timer"), ""),
        ("tokens-scored", every_seed(val_tokens=round(VAL_TOKENS * 1.00099)), ""),
        ("tokens-scored", every_seed(val_tokens=round(VAL_TOKENS * 0.99901)), ""),
        ("tokens-scored", every_seed(val_tokens=round(VAL_TOKENS * 1.00101)), "100.1% of the full split's 47,851,520"),
        ("tokens-scored", every_seed(val_tokens=round(VAL_TOKENS * 0.99899)), "99.9% of the full split's 47,851,520"),
        ("tokens-scored", for_seed(0, val_tokens=VAL_TOKENS - 1), "different amounts: 47,851,519, 47,851,520 tokens"),
        ("tokens-scored", for_seed(0, target_tokens=VAL_TOKENS), ""),
        ("tokens-scored", for_seed(0, target_tokens=VAL_TOKENS + 1), "47,851,521 targets were scored of 47,851,520"),
        ("tokens-scored", for_seed(0, documents=49_999), "49,999 validation documents, the split has 50,000"),
        ("tokens-scored", for_seed(0, documents=50_001), "50,001 validation documents, the split has 50,000"),
        ("numbers-agree", claimed(val_bpb=1.06166, delta_vs_leaderboard_bpb=-0.01934), ""),
        ("numbers-agree", claimed(val_bpb=1.06167), "val_bpb is 1.06167 in submission.json, the logs give 1.0616513"),
        ("numbers-agree", claimed(val_bpb_std=0.00032), ""),  # pstdev, where the program wrote stdev
        ("numbers-agree", claimed(val_bpb_std=0.00042), "val_bpb_std is 0.00042 in submission.json, the logs give"),
        ("numbers-agree", claimed(train_steps_mean=4905.3), ""),
        ("numbers-agree", claimed(train_steps_mean=4905.5), "train_steps_mean is 4905.5 in submission.json, the logs"),
        ("numbers-agree", claimed(delta_vs_leaderboard_bpb=0.0193), ""),
        ("numbers-agree", claimed(delta_vs_leaderboard_bpb=0.0195), "val_bpb - comparison_baseline_bpb is -0.019349"),
        ("numbers-agree", results(steps=4_913), ""),
        ("numbers-agree", results(steps=4_914), "seed 42: steps is 4914 in submission.json, 4,912 in the log"),
        ("numbers-agree", results(eval_time_s=488.3), ""),
        ("numbers-agree", results(eval_time_s=488.4), "eval_time_s is 488.4 in submission.json, 488.21 in the log"),
        ("numbers-agree", results(val_bpb=1.0612), ""),
        ("numbers-agree", results(val_bpb=1.0614), "seed 42: val_bpb is 1.0614 in submission.json, 1.0612345 in"),
        ("numbers-agree", results("7"), "submission.json has results of seed 7, no log does"),
        ("numbers-agree", lambda folder: setattr(folder, "readme_headline", "1.06167"), "README's headline is 1.06167"),
        ("numbers-agree", row(bpb="1.06124"), ""),
        ("numbers-agree", row(bpb="1.06125"), "Post-TTT val_bpb of seed 42 is 1.06125, which is not in its log"),
        ("numbers-agree", row(steps="4,911"), ""),
        ("numbers-agree", row(steps="4,910"), "Steps of seed 42 is 4,910, its log stopped at step 4,912"),
        ("numbers-agree", table("| Seed | x |", "| 42 | 999,999 |"), ""),
        ("numbers-agree", table("| Seed | x |", "| 42 | 1,000,000 |"), "of seed 42 is 1,000,000 bytes, its log has 15"),
        ("numbers-agree", table("| Seed | x |", "| 42 | 0.299 |"), ""),
        ("numbers-agree", table("| Seed | x |", "| 42 | 0.301 |"), "README: x of seed 42 is 0.301, which is not in"),
        ("numbers-agree", table("| Seed | x |", "| 42 | 12.001 |"), ""),
        ("numbers-agree", table("| Seed | x |", "| 42 | 11.999 |"), "README: x of seed 42 is 11.999, which is not in"),
        ("numbers-agree", table("| Seed | x |", "| 42 | 1.070 |"), "README: x of seed 42 is 1.070, which is not in"),
        ("numbers-agree", table("| Seed | x |", "| 42 | 1.07 |"), ""),
        ("numbers-agree", table("| Seed | gain |", "| 42 | 1.070 |"), ""),
        ("numbers-agree", table("| Seed | x |", "| 42 (3) | 1.070 |"), ""),
        ("numbers-agree", table("| Seed | x |", "| 7 | 1.070 |"), ""),
        ("numbers-agree", table("| Run | x |", "| 42 | 1.070 |"), ""),
        ("numbers-agree", table("| Seed | x |", "| 42 | 1.06123 |", "| mean | 1.08 |"), ""),
        ("numbers-agree", table("| Seed | x |", "| mean | 1.08 |"), ""),
        ("numbers-agree", table("| Seed | x |", "| 42 | 1.06123 |", "| 0 | 1.06202 |", "| mean | 1.06163 |"), ""),
        ("numbers-agree", table("| Seed | x |", "| 42 | 1.06123 |", "| 0 | 1.06202 |", "| Average | 1.06167 |"),
         "README: the mean of x is 1.06167, its rows have 1.061625"),
        ("numbers-agree", table("| Seed | x |", "| 42 | 5,000 |", "| 0 | 6,000 |", "| mean | 5,700 |"),
         "README: the mean of x is 5,700, its rows have 5,500"),
        ("seeds", lambda folder: folder.seeds.pop(), "2 with a log (0, 42), 3 seeds are the rule"),
        ("seeds", claimed(val_bpb=1.06123451), "the headline 1.06123451 is the best seed (42) of 3; their mean is"),
        ("seeds", claimed(val_bpb=1.06201872), ""),  # another check names it
        ("seeds", claimed(val_bpb=1.06), ""),  # the mean and the best, rounded
        ("tokens-scored", of_tokenizer("mine", CONSTANT), ""),
        ("identity", for_seed(0, constant=CONSTANT * (1 + 4.9e-6)), ""),
        ("identity", for_seed(0, constant=CONSTANT * (1 + 5.1e-6)), "in train_seed0.log, 0.456963 in train_seed42.log"),
        ("identity", logged(0, metric("x", 1.07, CONSTANT * (1 + 1.9e-4), 5)), ""),
        ("identity", logged(0, metric("x", 1.07, CONSTANT * (1 + 2.1e-4), 5)), "0.457057, elsewhere 0.456961"),
        ("identity", losses(1.0616513, 1.0616513 / CONSTANT / (1 + 1.9e-4)), ""),
        ("identity", losses(1.0616513, 1.0616513 / CONSTANT / (1 + 2.1e-4)), "of submission.json is 0.457057, of the"),
        ("identity", every_seed(constant=0.456961 * (1 - 0.9e-3)), ""),
        ("identity", every_seed(constant=0.456961 * (1 - 1.1e-3)), "the bytes are +0.11% off"),
        ("identity", of_tokenizer("sp8192", 0.387131 * (1 + 0.9e-3)), ""),
        ("identity", of_tokenizer("sp8192", 0.387131 * (1 + 1.1e-3)), "sp8192 has 0.387131 on the full split"),
        ("identity", of_tokenizer("sp1024", 0.592258 * (1 + 3.9e-3)), ""),
        ("identity", of_tokenizer("sp1024", 0.592258 * (1 + 4.1e-3)), "sp1024 has 0.592258 on the full split"),
        ("identity", of_tokenizer("mine", 1 / (5.99 * math.log(2))), ""),
        ("identity", of_tokenizer("mine", 1 / (6.01 * math.log(2))), "6.01 bytes per token: no tokenizer"),
        ("identity", of_tokenizer("mine", 1 / (1.01 * math.log(2))), ""),
        ("identity", of_tokenizer("mine", 1 / (0.99 * math.log(2))), "0.99 bytes per token: no tokenizer"),
    ],
)  # fmt: skip
def test_the_last_value_that_passes(check: str, plant: Plant, words: str, tmp_path: Path) -> None:
    made = judged(check, tmp_path, plant)
    assert (made.verdict == "FAIL", words in made.reason) == (bool(words), True), made.reason


@pytest.mark.parametrize(
    ("check", "plant", "absent", "words"),
    [
        ("artifact-bytes", claimed(bytes_total=None), r".*(size|Serialized).*\n", "neither the logs nor submission.j"),
        ("train-clock", claimed(track="non_record_16mb"), "", "it has no training clock"),
        ("train-clock", claimed(), r".*train_time.*\n", "no log gives a training time"),
        ("eval-clock", claimed(track="non_record_16mb"), "", "it has no evaluation clock"),
        ("eval-clock", claimed(), r" ?(total_)?eval_time:.*", "no log gives the time of the evaluation"),
        ("split", claimed(), "", "the folder has no script that prepares data: it uses shards made elsewhere"),
        ("split", lambda folder: folder.extra.update({"prepare_data.py": "x = 1\n"}), "", "prepare_data.py: no small"),
        ("settings-read", claimed(), r"(?s)```.*```", "README gives no command with settings"),
        ("logged-source", claimed(), "", "the logs do not hold the source of the script"),
        ("logged-source", lambda folder: [every_seed(log_source=CODE)(folder), setattr(folder, "code", "")],
         "", "train_gpt.py cannot be unpacked to compare it with the source in the logs"),
        ("numbers-agree", claimed(), r".*val_bpb.*\n", "no log gives a seed and its final losses"),
        ("identity", claimed(), r".*val_bpb.*\n", "no log gives a loss and its bits per byte"),
        ("tokens-scored", claimed(), r".*(val_tokens|total_docs).*\n", "no log says how many validation tokens there"),
        ("tokens-scored", of_tokenizer("mine", CONSTANT), r"total_docs\S*", "47,851,520 validation tokens were scored"),
        ("logs-distinct", lambda folder: setattr(folder, "seeds", folder.seeds[:1]), "", "one log: nothing to compare"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_not_run(check: str, plant: Plant, absent: str, words: str, tmp_path: Path) -> None:
    """`absent` is cut from the logs and README."""
    folder = Folder()
    plant(folder)
    folder.write(tmp_path / "stack")
    for file in (*(tmp_path / "stack").glob("*.log"), tmp_path / "stack" / "README.md"):
        file.write_text(re.sub(absent, "", file.read_text()))
    made = audit_submission(tmp_path / "stack")[check]
    assert (made.verdict, words in made.reason) == ("NOT RUN", True), made


def test_a_training_of_a_moment_is_a_time(tmp_path: Path) -> None:
    for milliseconds, is_time in ((0, False), (1, True), (1_000, True)):
        made = judged("train-clock", tmp_path / str(milliseconds), for_seed(0, stop_ms=milliseconds))
        assert ("which is no time" not in made.reason) == is_time


def sizes(model: int, code: int, total: int) -> Plant:
    """A log whose three sizes are these."""

    def plant(folder: Folder) -> None:
        folder.seeds[0].model_bytes, folder.counted_code = model, code
        folder.total = lambda seed: total if seed is folder.seeds[0] else seed.model_bytes + code

    return plant


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (sizes(15_000_000, CODE_BYTES, 15_000_000 + CODE_BYTES), ""),
        (sizes(15_000_000, CODE_BYTES, 15_000_001 + CODE_BYTES), f"+ {CODE_BYTES:,} of code are not"),
        (sizes(ROOM, CODE_BYTES - 1, ROOM + CODE_BYTES - 1), ""),
        (sizes(ROOM + 1, CODE_BYTES - 1, ROOM + CODE_BYTES), "as they ship are 1 over the cap"),
    ],
)
def test_the_sizes_of_a_log_add_up(plant: Plant, words: str, tmp_path: Path) -> None:
    made = judged("artifact-bytes", tmp_path, plant)
    assert (made.verdict, words in made.reason) == ("FAIL" if words else "PASS", True), made.reason


def test_copied_logs_share_early_losses_or_more_than_three_in_ten_lines() -> None:
    def judged(steps: int, lines: int) -> str:
        logs = []
        for seed in (1, 2):
            text = [f"{n}/9 train_loss: {n if n < steps else n * seed + 10}.5" for n in range(5)]
            text += [f"pass {n} bl:{n if n < lines else n * seed + 100}.5" for n in range(15)]
            logs.append(parse_log(f"train_seed{seed}.log", "\n".join(text)))
        return logs_distinct(SimpleNamespace(logs=logs)).reason  # type: ignore[arg-type]

    assert judged(2, 4) == "2 logs, no two alike"  # 6 of 20 lines, 2 of 5 early losses
    assert judged(3, 0) == "train_seed1.log and train_seed2.log have the same losses at steps 0, 1, 2"
    assert judged(2, 5) == "35% of the lines with measurements are the same in train_seed1.log and train_seed2.log"


def test_a_setting_that_one_log_lacks_differs_where_logs_give_many() -> None:
    def judged(count: int, **more: object) -> str:
        settings = {f"key_{n}": "1" for n in range(count)}
        logs = [SimpleNamespace(name=name, settings=dict(settings)) for name in "ab"]
        logs[1].settings |= more
        return one_configuration(SimpleNamespace(logs=logs)).reason  # type: ignore[arg-type]

    assert judged(20, depth="9") == "20 settings, the same in 2 logs"
    assert judged(21, depth="9") == "depth differs (only in b)"
    assert judged(21, run_id="x", seed="7") == "21 settings, the same in 2 logs"
    assert judged(5, key_1="2") == "key_1 differs (a: 1; b: 2)"
    assert judged(5, key_1="x/2") == "5 settings, the same in 2 logs"
    with pytest.raises(MissingEvidence, match="fewer than two"):
        one_configuration(SimpleNamespace(logs=[SimpleNamespace(name="a", settings={"x": "1"})]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "both"),
    [
        ("data/fineweb_*.bin", True), ("'fineweb_*.bin'", True), ("fineweb_*.bin ", True), ("fin*.bin", True),
        ("fi*.bin", False), ("*.bin", False), ("fineweb_*", False), ("fineweb_train_*.bin", False),
        ("fineweb_val_*.bin", False), ("fineweb_[tv]*_000000.bin", True), ("fineweb_*_000001.bin", False),
    ],
)  # fmt: skip
def test_patterns_of_shards_of_both_splits(pattern: str, both: bool) -> None:
    assert covers_both(pattern) is both


@pytest.mark.parametrize(
    ("command", "links"),
    [
        ("cp fineweb_val_000000.bin fineweb_train_000080.bin", True), ("mv val_* train_9.bin", True),
        ("cp validation_0.bin train_0.bin", True), ("cp fineweb_train_000080.bin fineweb_val_000000.bin", False),
        ("cp interval_0.bin train_0.bin", False), ("cp val_0.bin strain_0.bin", False), ("cp val.bin train_0", False),
    ],
)  # fmt: skip
def test_commands_that_make_training_shards_of_validation_shards(command: str, links: bool) -> None:
    assert links_validation(command) is links


@pytest.mark.parametrize(
    "code",
    [
        "notes = 'results.txt'\nnotes.append('fineweb_val_000000.bin')",
        "notes = '*'\nnotes.append('fineweb_val_000000.bin')",
        "notes = 'fi*'\nnotes.append('fineweb_val_000000.bin')",
        "def validate_train():\n    val_loss.backward()",
        "def train_model():\n    val_tokens.backward_of(x)",
        "x = name.replace('val', 'valid')",
        "x = name.replace('evaluate', 'train')",
        "shutil.copy('fineweb_train_000000.bin', 'fineweb_train_000001.bin')",
        "table = Loader('fineweb_train_*.bin')",
        "x = torch.cat([train_tokens, more_tokens])",
        "x = torch.cat([val_tokens, more_tokens])",
        "train_data = pick(val_share, train_tokens)",
        "train_data = pick(other, val_share)",
        "train_data = val_share",
    ],
)
def test_other_data_than_that_of_training_is_left_alone(code: str) -> None:
    assert list(training_on_validation(read_script("train_gpt.py", code.encode()))) == []
