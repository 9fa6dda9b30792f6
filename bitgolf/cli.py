"""The command line: parse, call a stage, print. `bitgolf --help` lists the commands.

Every stage runs alone on a run directory; `bitgolf run` does them all. Settings are dotted overrides
(`--train.matrix_lr 0.02`). Errors that the user can mend are one line and exit status 2; a failed audit is 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from bitgolf.commands import audit, codec, compare, submit
from bitgolf.commands.console import ConsoleProgress
from bitgolf.commands.tables import audit_table, data_table, doctor_table, presets_table, score_table
from bitgolf.config import Config, all_settings, load_config, preset_names
from bitgolf.errors import BitgolfError, ConfigError, RunError
from bitgolf.run.directory import RunDirectory
from bitgolf.version import __version__

if TYPE_CHECKING:
    from bitgolf.run.ranks import World

Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 audit failed, 2 the user can mend it."""
    is_main = os.environ.get("RANK", "0") == "0"
    # Before PyTorch is imported: threads of its OpenMP that spin for long while they wait make a step four times slower
    # on shared cores (0.60 s against 0.15 s, two cores and two busy neighbors); spinning briefly costs nothing alone.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    out = Console(quiet=not is_main, emoji=False)
    err = Console(stderr=True, quiet=not is_main, emoji=False)
    logging.basicConfig(level=logging.WARNING if is_main else logging.ERROR, format="%(levelname)s %(message)s")
    logging.captureWarnings(True)
    try:
        arguments, rest = _parser().parse_known_args(argv)
        arguments.overrides = _overrides(rest, arguments.takes_overrides)
        arguments.is_main = is_main
        with ConsoleProgress(err, is_main) as progress:
            arguments.progress = progress
            run: Callable[[Arguments, Console], int] = arguments.command
            return run(arguments, out)
    except BitgolfError as error:
        err.print(f"error: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        err.print(
            f"error: {error.strerror or error}{where}; files written earlier are intact",
            style="bold red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return 2
    except KeyboardInterrupt:
        err.print("interrupted; continue a run with --resume", style="bold red")
        return 130


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors like all others: one line, exit status 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bitgolf",
        description=__doc__.splitlines()[0] if __doc__ else None,
        epilog="Settings are dotted overrides, for example --train.matrix_lr 0.02; "
        "`bitgolf presets show NAME` lists them all.",
    )
    parser.add_argument("--version", action="version", version=f"bitgolf {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str,
        command: Callable[[Arguments, Console], int],
        text: str,
        *,
        overrides: bool = False,
        as_json: bool = True,
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=command, takes_overrides=overrides)
        if as_json:
            sub.add_argument("--json", action="store_true", help="print the result as JSON")
        return sub

    sub = add("run", _run, "all stages: prepare, train, pack, score, audit, report", overrides=True)
    sub.add_argument("preset", help="preset name or .toml file")
    sub.add_argument("--out", required=True, type=Path, help="run directory")
    sub.add_argument("--resume", action="store_true", help="continue a run of the same configuration")
    sub.add_argument("--branch", metavar="RUN[@STEP]", default="", help="train on from a checkpoint of another run")

    sub = add("prepare", _prepare, "text -> tokenizer and shards", overrides=True)
    sub.add_argument("source", help="stdlib | jsonl:PATH | dir:PATH | shards:PATH | fineweb[:VARIANT]")
    sub.add_argument("--out", required=True, type=Path, help="data directory")

    for name, command, text in (
        ("train", _train, "train the run's model and gather calibration statistics"),
        ("pack", _pack, "quantize and pack the trained weights under the byte cap"),
        ("score", _score, "score the artifact on the validation text"),
        ("audit", audit.audit_command, audit.TEXT),
        ("report", _report, "write report.html; of several runs, or a folder of them, a site (--out)"),
    ):
        sub = add(name, command, text)
        sub.add_argument("run", type=Path, help="run directory")
        if name == "train":
            sub.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
            sub.add_argument("--overwrite", action="store_true", help="train again a run that is already trained")
            sub.add_argument("--branch", metavar="RUN[@STEP]", default="", help="begin from another run's checkpoint")
        if name == "pack":
            sub.add_argument("--artifact-bytes", type=int, help="cap to use instead of the configured one")
        if name == "audit":
            audit.add_arguments(sub)
        if name == "report":
            compare.add_site_arguments(sub)
    compare.add_arguments(add("compare", compare.compare_command, compare.TEXT))
    submit.add_arguments(add("submit", submit.submit_command, submit.TEXT))

    sub = add("compress", codec.compress_command, codec.COMPRESS_TEXT, overrides=True)
    codec.add_compress_arguments(sub)
    sub = add("decompress", codec.decompress_command, codec.DECOMPRESS_TEXT)
    codec.add_decompress_arguments(sub)

    sub = add("sample", _sample, "continue a prompt with an artifact")
    sub.add_argument("artifact", type=Path)
    sub.add_argument("--prompt", default="", help="text to continue")
    sub.add_argument("--max-tokens", type=int, default=200)
    sub.add_argument("--temperature", type=float, default=0.8)
    sub.add_argument("--top-k", type=int, default=0)
    sub.add_argument("--seed", type=int, default=None)
    sub.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))

    sub = add("presets", _presets, "list the presets, or `show NAME` with every setting", overrides=True)
    sub.add_argument("action", nargs="?", choices=("list", "show"), default="list")
    sub.add_argument("name", nargs="?")
    add("doctor", _doctor, "what hardware, backends and libraries were found")
    return parser


def _overrides(rest: list[str], allowed: bool) -> dict[str, str]:
    """`--section.key value` and `--section.key=value` pairs."""
    values: dict[str, str] = {}
    position = 0
    while position < len(rest):
        word = rest[position]
        if not word.startswith("--") or not allowed:
            raise ConfigError(f"unexpected argument {word!r}; see --help")
        key, equals, value = word[2:].partition("=")
        if not equals:
            position += 1
            if position == len(rest):
                raise ConfigError(f"{word} needs a value")
            value = rest[position]
        if key in values:
            raise ConfigError(f"--{key} is given twice")
        values[key] = value
        position += 1
    return values


def _run(arguments: Arguments, out: Console) -> int:
    from bitgolf.artifact.compressors import missing_package
    from bitgolf.report.report import require_libraries
    from bitgolf.run.ranks import world
    from bitgolf.train.branch import find_trunk
    from bitgolf.train.stage import is_finished

    config = load_config(arguments.preset, arguments.overrides)
    with world(config.device) as peers, ExitStack() as hold:

        def begin() -> None:
            require_libraries()
            if (package := missing_package(config.pack.compressor)) is not None:
                raise ConfigError(
                    f"pack.compressor = '{config.pack.compressor}' needs {package}, which is not installed"
                )
            if arguments.branch:
                find_trunk(arguments.branch, config, arguments.out)
            run = RunDirectory.create(arguments.out, config, resume=arguments.resume, hold=hold)
            if not (arguments.resume and (run / "data").exists()):
                prepare_data(run, arguments.progress)

        _on_main(peers, begin)
        run = RunDirectory.open(arguments.out)
        outdated = not arguments.resume  # once a stage runs, the products of all later ones are

        def must_make(present: bool) -> bool:  # rank 0 decides: another rank may look after the file appears
            nonlocal outdated
            outdated = bool(peers.from_main(float(outdated or not present)))
            return outdated

        if must_make(is_finished(run)):
            train_stage(run, peers, arguments.progress, arguments.resume, arguments.branch)
        if must_make((run / "pack.json").exists()):
            _on_main(peers, lambda: pack_stage(run, peers.device, arguments.progress))
        if must_make((run / "score.json").exists()):
            score_stage(run, peers, arguments.progress)
        if not peers.is_main:
            return 0
        verdict = audit_stage(run, arguments.progress)
        page = report_stage(run, str(peers.device.type), arguments.progress)
    if arguments.json:
        _print_json(out, _summary(run) | {"audit_passed": verdict.passed, "report": str(page)})
    else:
        out.print(score_table(config.name, _product(run, "score.json"), _product(run, "pack.json")))
        out.print(audit_table(verdict.to_json()))
        out.print(f"report: {page}", soft_wrap=True, highlight=False)
    return int(verdict.exit_code)


def _on_main(peers: World, work: Callable[[], None]) -> None:
    """Do `work` on rank 0 while the others wait; when it fails there, they end too, and rank 0 says why."""
    failure: Exception | None = None
    if peers.is_main:
        try:
            work()
        except (BitgolfError, OSError) as error:
            failure = error
    if peers.from_main(float(failure is not None)):
        raise failure or RunError("rank 0 failed and says why")


def prepare_data(run: RunDirectory, progress: ConsoleProgress) -> None:
    """Stage `prepare` inside a run directory."""
    from bitgolf.data.prepare import prepare

    prepare(run.config.data, run.config.model.vocab_size, run / "data", progress)


def train_stage(
    run: RunDirectory, peers: Any, progress: ConsoleProgress, resume: bool = False, branch: str = ""
) -> None:
    from bitgolf.train.stage import train

    train(run, peers, resume=resume, branch=branch, progress=progress)


def pack_stage(run: RunDirectory, device: Any, progress: ConsoleProgress, cap: int | None = None) -> None:
    from bitgolf.bundle.single_file import code_bytes
    from bitgolf.quantize.pack import pack

    pack(run, device, code_bytes(run.config), artifact_bytes=cap, progress=progress)


def score_stage(run: RunDirectory, peers: Any, progress: ConsoleProgress) -> None:
    from bitgolf.evaluate.score import score

    score(run, peers, progress=progress)


def audit_stage(run: RunDirectory, progress: ConsoleProgress) -> Any:
    from bitgolf.audit.run import audit_run

    return audit_run(run, progress=progress)


def report_stage(run: RunDirectory, device: str, progress: ConsoleProgress) -> Path:
    from bitgolf.report.report import report

    return report(run, device=device, progress=progress)


def _prepare(arguments: Arguments, out: Console) -> int:
    from bitgolf.config import resolve
    from bitgolf.data.prepare import prepare

    if "data.source" in arguments.overrides:
        raise ConfigError("the source is the argument after `prepare`; leave out --data.source")
    foreign = [key for key in arguments.overrides if not key.startswith("data.") and key != "model.vocab_size"]
    if foreign:
        raise ConfigError(f"--{foreign[0]} means nothing to `prepare`; it takes --data.* and --model.vocab_size")
    config = resolve({}, arguments.overrides | {"data.source": json.dumps(arguments.source)})
    data = prepare(config.data, config.model.vocab_size, arguments.out, arguments.progress)
    if arguments.json:
        _print_json(out, data.manifest)
        return 0
    out.print(data_table(str(arguments.out), data.manifest))
    return 0


def _train(arguments: Arguments, out: Console) -> int:
    from bitgolf.run.ranks import world
    from bitgolf.train.metrics import read_events
    from bitgolf.train.stage import is_finished

    run = RunDirectory.open(arguments.run)
    if is_finished(run) and not arguments.overwrite:
        raise RunError(
            f"{run.path} is trained already, and training again would replace its weights, log and results; use "
            "--overwrite to do so, or start another run with `bitgolf run PRESET --out DIR`"
        )
    with world(run.config.device) as peers:
        train_stage(run, peers, arguments.progress, arguments.resume, arguments.branch)
    end = read_events(run / "train.jsonl")[-1]
    if arguments.json:
        _print_json(out, end)
    else:
        out.print(
            f"trained {end['step']} steps, {end['tokens']:,} tokens in {end['elapsed_seconds']:.1f} s "
            f"({end['tokens_per_second']:,.0f} tokens/s)",
            highlight=False,
        )
    return 0


def _pack(arguments: Arguments, out: Console) -> int:
    from bitgolf.run.ranks import choose_device

    run = RunDirectory.open(arguments.run)
    if arguments.artifact_bytes is not None and arguments.artifact_bytes < 1:
        raise ConfigError(f"--artifact-bytes {arguments.artifact_bytes}: the cap must be at least 1")
    pack_stage(run, choose_device(run.config.device), arguments.progress, arguments.artifact_bytes)
    packed = _product(run, "pack.json")
    if arguments.json:
        _print_json(out, packed)
    else:
        out.print(
            f"{packed['model_bytes']:,} bytes of model + {packed['code_bytes']:,} of code = "
            f"{packed['total_bytes']:,} of {packed['cap_bytes']:,} ({packed['bits_per_weight']:.3f} bits a weight)",
            highlight=False,
            soft_wrap=True,
        )
    return 0


def _score(arguments: Arguments, out: Console) -> int:
    from bitgolf.run.ranks import world

    run = RunDirectory.open(arguments.run)
    packed = None if arguments.json else _product(run, "pack.json")  # for the table: missing is said before the work
    with world(run.config.device) as peers:
        score_stage(run, peers, arguments.progress)
    if packed is None:
        _print_json(out, _product(run, "score.json"))
    else:
        out.print(score_table(run.config.name, _product(run, "score.json"), packed))
    return 0


def _report(arguments: Arguments, out: Console) -> int:
    from bitgolf.run.ranks import choose_device

    if arguments.more or arguments.out is not None:
        return compare.site_command(arguments, out)
    run = RunDirectory.open(arguments.run)
    page = report_stage(run, choose_device(run.config.device).type, arguments.progress)
    if arguments.json:
        _print_json(out, {"report": str(page)})
    else:
        out.print(f"report: {page}", soft_wrap=True, highlight=False)
    return 0


def _sample(arguments: Arguments, out: Console) -> int:
    from bitgolf.language_model import load

    model = load(arguments.artifact, arguments.device)
    text = model.generate(
        arguments.prompt,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        seed=arguments.seed,
    )
    if arguments.json:
        _print_json(out, {"prompt": arguments.prompt, "continuation": text})
    else:
        out.print(arguments.prompt + text, markup=False, highlight=False, soft_wrap=True)
    return 0


def _presets(arguments: Arguments, out: Console) -> int:
    from bitgolf.model.gpt import count_parameters

    if arguments.action == "show":
        if arguments.name is None:
            raise ConfigError(f"presets show needs a name: {', '.join(preset_names())}")
        config = load_config(arguments.name, arguments.overrides)
        if arguments.json:
            _print_json(out, config.model_dump(mode="json"))
        else:
            out.print(_annotated(config), markup=False, highlight=False, soft_wrap=True)
        return 0
    rows = []
    for name in preset_names():
        config = load_config(name)
        rows.append(
            {
                "name": name,
                "description": config.description,
                "parameters": count_parameters(config.model),
                "vocab_size": config.model.vocab_size,
                "artifact_bytes": config.budget.artifact_bytes,
                "train_seconds": config.budget.train_seconds,
                "eval_seconds": config.budget.eval_seconds,
            }
        )
    if arguments.json:
        _print_json(out, rows)
        return 0
    out.print(presets_table(rows))
    for row in rows:
        out.print(f"{row['name']}: {row['description']}", highlight=False)
    return 0


def _doctor(arguments: Arguments, out: Console) -> int:
    from bitgolf.commands.doctor import as_json, examine

    findings = examine()
    if arguments.json:
        _print_json(out, as_json(findings))
        return 0
    out.print(doctor_table(as_json(findings)["findings"]))
    return 0


def _annotated(config: Config) -> str:
    """The resolved configuration as TOML, every key with its description."""
    described = all_settings()
    section, lines = "", []
    for line in config.to_toml().splitlines():
        if line.startswith("["):
            section = line.strip("[]") + "."
        setting = described.get(section + line.split(" = ")[0]) if " = " in line else None
        text = setting.description if setting is not None else ""
        lines.append(f"{line:<40} # {text}" if text else line)
    return "\n".join(lines)


def _summary(run: RunDirectory) -> dict[str, Any]:
    return {"run": str(run.path), "preset": run.config.name} | {
        name.removesuffix(".json"): _product(run, name) for name in ("pack.json", "score.json")
    }


def _product(run: RunDirectory, name: str) -> Any:
    """A JSON product of the run; RunError when it is missing or damaged."""
    from bitgolf.report.sections import read_product

    run.require(name)
    return read_product(run, name.removesuffix(".json"))


def _print_json(out: Console, value: Any) -> None:
    if not out.quiet:
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
