"""Checks of what a submission did, as far as code, logs and README show it.

Rules about behavior cannot be proven from files. Those checks fail when something forbidden is recognized and are
otherwise NOT RUN. Settings and self-containment can be decided from the files.
Source: docs/rules.md, conditions C1 to C4 and section 6.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import zip_longest

from bitgolf.audit.verdict import Finding, MissingEvidence, failed, judge, not_run
from bitgolf.errors import ForeignError
from bitgolf.foreign import parse_number
from bitgolf.referee import patterns
from bitgolf.referee.code import read_script
from bitgolf.referee.folder import SCRIPT, Submission, submission_checks
from bitgolf.referee.log import SEARCHED_CHARACTERS, Log, Metric
from bitgolf.referee.training_data import covers_validation, links_validation

_UNPROVEN = "no violation was recognized in script and logs, which is no proof; only a run can show it"
# Read by launchers and libraries, not by the script.
_OF_THE_SYSTEM = re.compile(
    r"^(CUDA|NCCL|OMP|MKL|TORCH|PYTORCH|TRITON|PYTHON|HF_|HUGGING|TOKENIZERS|MASTER|NPROC|LD_|PATH$|HOME$|OPENBLAS|GLOO"
    r"|TMPDIR$|LOG(_FILE|DIR)?$|SCRIPT|WANDB|UCX|NVTE|VLLM|XLA|JAX)"
)
_OFF, _ON = ("0", "false", "no", "none"), ("1", "true", "yes")
_SETTING = re.compile(r"^(?: {2}\w+:|\w+ =)(?P<value>.*)$")  # as logs print them
_PRE_QUANT = re.compile(
    r"(?i)\bpre[-_ ]?quant\w*[-_ :]*ttt|\bttt\w*[-_ :]*pre[-_ ]?quant|\bval[-_ ]?(finetune|fine-tune|train)\b"
)
_ADAPTS = re.compile(r"(?i)^\W*\w*(ttt|adapt)\w*\W.*\bepoch\b")
_AGAIN = re.compile(
    r"(?i)(\b|_)(two[-_ ]?pass|second[-_ ](\w{1,12}[-_ ])?pass|pass[:= _]?2\b|re-?scor(e|ed|ing)|best[-_ ]of"
    r"|re-?evaluat(e|ed|ing|ion)|previous evaluation|evaluat\w{1,4} (again|repeated|twice)|keep\w{0,3} the be(tter|st)"
    r"|eval\w{0,6} (run|pass|seed|trial|attempt) (\d+ (of|/) |\d+/)([2-9]|\d\d)"
    r"|best[-_ ](lr|temperature|alpha|lambda|threshold|seed|epoch)"
    r"|(select|chos|pick|tun)\w{0,4}\b.{0,40} (on|by|with (the )?(lowest|best)) val(idation|_bpb|_loss)?"
    r"|oracle \w+|(averag|ensembl)\w{1,4} \w+ of \d+ (eval|pass)\w*|warm[- ]start from adapted)(\b|_)"
)
_LATER_ROUND = re.compile(r"(?i)\b(round|iteration|attempt|trial)[ :#=]{0,2}([2-9]|\d\d)\b.*(\bval_(bpb|loss)|of eval)")
_NUMBERED = re.compile(r"[-_ ]?(run|pass|try|trial|attempt|seed|round|v)?[-_ ]?\d+$")
_EPOCH_SCORE = re.compile(r"(?i)\bepoch[:= ]*(\d+)")
_COPYING = re.compile(r"\b(ln|cp|mv|cat|rsync|symlink\w*|link|copy\w*|move|rename|replace)\b")
_STARTS = re.compile(r"(?i)\btotal_docs:"), re.compile(r"(?i)^beginning \w{0,12} ?eval(uation)? timer")
_GATES = re.compile(r"\b(within_gate|word_gate)=(\d+)")
# A claim in prose, what the script must then hold, and what it is called.
_TECHNIQUES = (
    (r"(?i)leaky[ _-]?relu", r"(?i)leaky_?relu|negative_slope", "LeakyReLU"),
    (r"(?i)\bswiglu\b", r"(?i)swiglu|silu", "SwiGLU"),
    (r"(?i)\bbigram ?hash\b", r"(?i)bigram", "BigramHash"),
    (r"(?i)\bsmear ?gate\b", r"(?i)smear", "SmearGate"),
    (r"(?i)\bGPTQ\b", r"(?i)gptq|hessian", "GPTQ"),
    (r"\bEMA\b", r"(?i)ema(_|$)|_ema|^ema", "EMA"),
    (r"\bSWA\b", r"(?i)swa", "SWA"),
    (r"\bXSA\b", r"(?i)xsa|self_value|exclusive", "XSA"),
)


@submission_checks.register("validation-unseen", "B7", "validation data shaped nothing before the artifact was sealed")
def validation_unseen(submission: Submission) -> Finding:
    """B7: test-time training before quantization, calibration on validation data, checkpoints chosen by it."""
    problems = _matches(submission, patterns.validation_before_seal)
    for log in submission.logs:
        sealed = log.sealed_line
        for number, line in log.lines.items():
            start = line[:SEARCHED_CHARACTERS]
            if _PRE_QUANT.search(start) or (number < sealed and _ADAPTS.search(start)):
                problems.append(f"{log.name} line {number}: {line.strip()[:80]!r}, before the artifact was made")
                break
        for key, value in log.settings.items():
            if "train" in key.lower() and covers_validation(value):
                problems.append(f"{log.name}: training reads {value}")
    with suppress(MissingEvidence):
        for key, value in submission.readme.assigned.items():
            if "TRAIN" in key and covers_validation(value):
                problems.append(f"README: training reads {value}")
        problems += [f"README: {line[:80]}" for line in submission.readme.commands if _links_shards(line)]
    for path in submission.files:
        if path.suffix in (".py", ".sh") and path.name != SCRIPT:
            lines = submission.read(path).decode(errors="replace").splitlines()
            problems += [f"{path.name}: {line.strip()[:80]}" for line in lines if _links_shards(line)]
    return _unless_proven(problems)


def _links_shards(line: str) -> bool:
    """Whether a command makes training shards of validation shards."""
    return _COPYING.search(line[:SEARCHED_CHARACTERS]) is not None and links_validation(line[:SEARCHED_CHARACTERS])


@submission_checks.register("single-pass", "C4", "each target is scored once, and its first score stands")
def single_pass(submission: Submission) -> Finding:
    """C4: second passes, the last epoch's score, windows that score the tail again."""
    problems = _matches(submission, patterns.several_passes)
    for log in submission.logs:
        for number, line in log.lines.items():
            setting = _SETTING.match(line)
            switched_on = setting is None or setting["value"].strip().lower() in _ON
            numbered = number > log.sealed_line > 0 and _LATER_ROUND.search(line[:SEARCHED_CHARACTERS])
            if switched_on and (numbered or _AGAIN.search(line[:SEARCHED_CHARACTERS])):
                problems.append(f"{log.name} line {number}: {line.strip()[:80]!r}")
                break
        problems += [f"{log.name}: {what}" for what in _passes_before_the_headline(log)]
        epochs = [metric for metric in log.metrics if _EPOCH_SCORE.search(metric.label) and not metric.in_training]
        if log.final and len(epochs) > 1 and any(abs(m.bpb - log.final.bpb) < 1e-7 for m in epochs[1:]):
            problems.append(
                f"{log.name}: validation was scored in {len(epochs)} epochs and the score of a later one "
                f"({log.final.bpb}) is the headline; the first gave {epochs[0].bpb}"
            )
    return _unless_proven(problems)


def _passes_before_the_headline(log: Log) -> Iterator[str]:
    """Evaluations that the log reports more than once: the same figure with another value, a second start."""
    final = log.final
    name = _evaluation(final) if final is not None else ""
    after = [metric for metric in log.metrics if not metric.in_training]
    same = {metric.bpb: metric.line for metric in after if _evaluation(metric) == name}
    exact = {bpb for bpb in same if final is None or abs(bpb - final.bpb) > 10.0 ** -min(4, final.decimals)}
    if final is not None and not final.in_training and exact:
        first = min(same[bpb] for bpb in exact)
        yield f"line {first}: {name or 'the evaluation'} was made before and gave another score than the headline"
    for begins in _STARTS:
        starts = [number for number, line in log.lines.items() if begins.search(line[:200])]
        if len(starts) > 1:
            yield f"lines {starts[0]} and {starts[1]}: the evaluation was started {len(starts)} times"


def _evaluation(metric: Metric) -> str:
    """The name of the evaluation that gave figures, without the number of the attempt."""
    label = metric.label.removesuffix("_exact")
    return _NUMBERED.sub("", label) or label


@submission_checks.register("causal", "C1, C3", "no prediction uses its target or later tokens")
def causal(submission: Submission) -> Finding:
    """C1, C3: SLOT, experts gated by the target, schedules by length, warm-up on validation tokens."""
    problems = _matches(submission, patterns.peeking)
    for log in submission.logs:
        for number, line in log.lines.items():
            counts = _GATES.findall(line[:SEARCHED_CHARACTERS])
            gates = [f"{name}={count}" for name, count in counts if count.strip("0")]
            if gates:
                problems.append(f"{log.name} line {number}: {', '.join(gates)}: hints gated by the word of the target")
                break
    return _unless_proven(problems)


@submission_checks.register("distribution", "C2", "probabilities are a distribution over the tokens")
def distribution(submission: Submission) -> Finding:
    """C2: probabilities for the realized token alone."""
    return _unless_proven(_matches(submission, patterns.not_a_distribution))


@submission_checks.register("split", "B7", "the data preparation keeps all validation documents out of training")
def split(submission: Submission) -> Finding:
    """B7: default sizes of the validation split in the scripts that prepare data."""
    scripts = [
        read_script(path.name, submission.read(path))
        for path in submission.files
        if path.suffix == ".py" and path.name != SCRIPT and re.search(r"(?i)prep|data|export|download", path.name)
    ]
    if not scripts:
        raise MissingEvidence("the folder has no script that prepares data: it uses shards made elsewhere")
    names = [script.name for script in scripts]
    problems = [f"{s.name} line {m.line}: {m.what}" for s in scripts for m in patterns.small_validation_split(s)]
    if problems:
        return failed("; ".join(problems[:5]), scripts=names)
    return not_run(
        f"{', '.join(names)}: no small validation split by default; the documents themselves are not here to compare"
    )


@submission_checks.register("settings-read", "section 6", "every setting of README's commands is read by the script")
def settings_read(submission: Submission) -> Finding:
    """Section 6: an environment variable that nothing reads is a silent no-op."""
    assigned = {name: value for name, value in submission.readme.assigned.items() if not _OF_THE_SYSTEM.match(name)}
    if not assigned:
        raise MissingEvidence("README gives no command with settings")
    source = submission.source
    read = source.settings | {name.upper() for log in submission.logs for name in log.settings}
    ignored = sorted(name for name in assigned if name not in read)
    problems = [f"{name}={assigned[name]} is never read by {source.name}" for name in ignored]
    reason = f"{len(assigned)} settings of README's commands, all read"
    return judge(problems[:8], reason, assigned=assigned, ignored=ignored)


@submission_checks.register("claims-agree", "section 6", "README, logs and script agree about what was run")
def claims_agree(submission: Submission) -> Finding:
    """Section 6: settings in README against those that the logs resolved, techniques against the script."""
    problems = []
    assigned = submission.readme.assigned
    compared = 0
    for log in submission.logs:
        resolved = {key.upper(): value for key, value in log.settings.items()}
        for name, value in assigned.items():
            if name in resolved and name not in ("SEED", "RUN_ID", "LOGFILE") and "/" not in value and "$" not in value:
                compared += 1
                if not _same_setting(value, resolved[name]):
                    problems.append(f"README sets {name}={value}, {log.name} ran with {resolved[name]}")
    words = submission.source.names | submission.source.strings
    for claim, needed, name in _TECHNIQUES:
        line = submission.readme.claims(claim)
        if line and not any(re.search(needed, word) for word in words):
            problems.append(f"README claims {name} ({line[:60]!r}), {submission.source.name} has nothing of the name")
    return judge(
        list(dict.fromkeys(problems))[:8],
        f"{compared} settings as the logs resolved them, no technique missing",
        compared=compared,
    )


def _same_setting(assigned: str, resolved: str) -> bool:
    truths = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}
    if assigned.lower() in truths and resolved.lower() in truths:
        return truths[assigned.lower()] == truths[resolved.lower()]
    try:
        return parse_number(assigned.replace("_", "")) == parse_number(resolved.replace("_", ""))
    except ForeignError:
        return assigned.lower() == resolved.strip("'\"").lower()


@submission_checks.register("self-contained", "B7", "the script neither downloads nor installs anything")
def self_contained(submission: Submission) -> Finding:
    source = submission.source
    problems = [f"{source.name} {what}" for what in source.downloads()]
    return judge(problems[:8], f"{len(source.imports)} imports, none that fetches anything")


@submission_checks.register("logged-source", "section 5", "the source in the logs is the script that was submitted")
def logged_source(submission: Submission) -> Finding:
    """Section 5: where a log holds the script, it is the submitted one."""
    sources = {log.name: log.source for log in submission.logs if log.source.strip()}
    if not sources:
        raise MissingEvidence("the logs do not hold the source of the script")
    script = submission.script.source
    if not script:
        raise MissingEvidence(f"{SCRIPT} cannot be unpacked to compare it with the source in the logs")
    problems = []
    for name, source in sources.items():
        for here, there in zip_longest(_code_lines(script), _code_lines(source)):
            if here != there:
                line = "its end" if there is None else there.strip()
                problems.append(f"{name} was written by another script: it differs from {SCRIPT} at {line[:60]!r}")
                break
    return judge(problems, f"the source in {len(sources)} logs is {SCRIPT}")


def _code_lines(source: str) -> list[str]:
    return [line.rstrip() for line in source.splitlines() if line.strip()]


def _matches(submission: Submission, pattern: patterns.Pattern) -> list[str]:
    """The matches of a pattern in the script, without those that the settings in the logs switch off."""
    script = submission.source
    matches = {match for match in pattern(script) if not _switched_off(submission, match.topic)}
    return [f"{script.name} line {match.line}: {match.what}" for match in sorted(matches, key=lambda m: m.line)]


def _switched_off(submission: Submission, topic: str) -> bool:
    """Whether every log has a setting of that name that is off, and none that is on."""
    for log in submission.logs:
        values = {value.lower() for key, value in log.settings.items() if topic in key}
        if not values & {*_OFF} or values & {*_ON}:
            return False
    return True


def _unless_proven(problems: list[str]) -> Finding:
    return failed("; ".join(problems[:5]), recognized=problems[:40]) if problems else not_run(_UNPROVEN)
