"""Check that a submission scored the whole validation split, as far as its logs count tokens and documents.

The logs may also tell of a part that was left out: documents that were skipped, a limit that was set, an evaluation
that was cut short. Such a line fails the check. Source: docs/rules.md, condition C4.
"""

import re
from collections.abc import Iterator

from bitgolf.audit.verdict import Finding, MissingEvidence, judge
from bitgolf.errors import ForeignError
from bitgolf.foreign import parse_number
from bitgolf.referee.folder import VAL_DOCUMENTS, Submission, submission_checks
from bitgolf.referee.log import SEARCHED_CHARACTERS, Log

# Validation tokens by tokenizer, from the published logs: 50,000 documents, cut to whole windows by most scripts.
VAL_TOKENS = {"sp1024": 62_021_632, "sp8192": 40_540_160, "caseops": 47_851_520}
_CUT_TAIL = 1e-3  # share of the tokens: cutting to whole windows of 4,096 leaves out less
_LEFT_OUT = (
    r"(?:skip\w{0,4}|drop\w{0,4}|ignor\w{0,4}|exclud\w{0,4}|discard\w{0,4}|omit\w{0,4}|filter\w{0,4}(?: out)?"
    r"|remov\w{0,4}|truncat\w{0,4}|left out|leav\w{0,4} out|not (?:scored|evaluated|counted)|unscored)"
)
_THINGS = (
    r"(?:\w{1,20}[ _])?(?:documents?|docs?|sequences?|samples?|targets?|tokens?|batch(?:es)?|windows?|chunks?|shards?)"
)
_SKIPPED = re.compile(  # "skipped 12 documents", "docs_skipped: 12", "12 docs were skipped"
    rf"(?i)\b{_LEFT_OUT}[:= ]{{1,3}}(\d[\d,_]*) {_THINGS}\b"
    rf"|(?:{_THINGS}[_ ]{_LEFT_OUT}|\b{_LEFT_OUT}[_ ]{_THINGS})[:= ]{{1,3}}(\d[\d,_]*)"
    rf"|\b(\d[\d,_.]*)[kKmM]? {_THINGS} (?:\w{{1,6}} ){{0,3}}{_LEFT_OUT}\b"
    rf"|\b{_LEFT_OUT}[:= ]{{1,3}}(?:last |first )?(\d[\d,_.]*)[kKmM]? (?:\w{{1,12}} )?{_THINGS}\b"
    rf"|\b{_LEFT_OUT} {_THINGS} [\w ]{{0,60}}:\s?(\d[\d,_]*)"
    rf"|{_THINGS} (?:\([^()]{{1,40}}\) )?{_LEFT_OUT}[:= ]{{1,3}}(\d[\d,_]*)"
    rf"|\b(?:n|num)_{_LEFT_OUT}(?:_{_THINGS})?\s?[:=]\s?(\d[\d,_]*)"
)
_PART = re.compile(  # "49,000 of 50,000 documents"
    rf"(?i)\b(\d[\d,_]*)\s?(?:of|/|out of)\s?(\d[\d,_]*) {_THINGS}\b|\b(\d[\d,_]*) fewer {_THINGS}\b"
)
_SUBSET = re.compile(  # "using first 10000000 val tokens", "val subset: 10%", "eval on 5000 docs"
    rf"(?i)\b(?:first|only) [\d,_.]+[kKmM]? val\w{{0,7}} {_THINGS}|\bval\w{{0,7}}[ _]subset\b"
    rf"|\beval\w{{0,7}} on [\d,_.]+[kKmM]? {_THINGS}"
)
_LIMIT = re.compile(
    r"(?i)\b((?:max|limit)_(?:val|eval)_\w{1,12}|(?:val_(?:docs?|tokens?)|eval)_(?:fraction|frac|subset)|(?:max|limit|num_eval|eval)_docs(?:_limit)?|docs?_limit)\s?[:=]\s?([\d.]+)"
)
_CUT_SHORT = re.compile(  # of an evaluation, on lines after the artifact was made
    r"(?i)\beval\w{0,6}\b.{0,40}\b(stopp?ed|ended|aborted|capped|cut|interrupted)\b.{0,20}\b(early|at|after|short)\b"
    r"|\b(time|wall-?clock) ?(limit|budget|out)\b.{0,20}\b(reached|hit|exceeded)|\btimed out\b"
    r"|\b(clip|clamp|winsor|trim|cap)([pm]?|iz)(ed|ing)\b.{0,30}\b(loss(es)?|nll|nats|mean)\b"
    r"|\bcoverage[:= ]{1,3}\d{1,2}(\.\d+)?\s?%"
)
_EVALUATED = re.compile(r"(?i)\b(?:evaluat|scor)(?:ing|ed) (\d[\d,_]{3,}) (documents|docs)\b")


@submission_checks.register("tokens-scored", "C4", "the whole validation split was scored, each target once")
def tokens_scored(submission: Submission) -> Finding:
    """C4: validation tokens and documents that the logs count, against the full split."""
    problems, counted = [], {}
    expected = VAL_TOKENS.get(submission.tokenizer)
    for log in submission.logs:
        tokens, targets, documents = (log.counts.get(what, []) for what in ("val_tokens", "target_tokens", "documents"))
        # Our own logs count on the line of the pass, and repeat its score without counts at the end.
        same = [metric.counts for metric in log.metrics if log.final is not None and metric.bpb == log.final.bpb]
        targets = [*targets, *(counts[0] for counts in same if counts is not None)]
        if tokens or targets or documents:
            counted[log.name] = {"val_tokens": tokens, "target_tokens": targets, "documents": documents}
        for count in {*tokens, *targets}:
            if expected and abs(count / expected - 1) > _CUT_TAIL:
                problems.append(
                    f"{log.name}: {count:,} validation tokens, {count / expected:.1%} of the full split's {expected:,}"
                )
        if tokens and targets and max(targets) > max(tokens):
            problems.append(f"{log.name}: {max(targets):,} targets were scored of {max(tokens):,} tokens: some twice")
        problems += [
            f"{log.name}: {count:,} validation documents, the split has {VAL_DOCUMENTS:,}"
            for count in {*documents}
            if count != VAL_DOCUMENTS
        ]
        problems += [f"{log.name} line {number}: {line.strip()[:80]!r}" for number, line in _skipped(log)]
        problems += [f"{log.name}: {key} is {value}" for key, value in _limits(log, expected)]
    different = {max(log["val_tokens"] or log["target_tokens"] or [0]) for log in counted.values()} - {0}
    if len(different) > 1:
        problems.append(
            f"the logs scored different amounts: {', '.join(f'{count:,}' for count in sorted(different))} tokens"
        )
    if not counted:
        raise MissingEvidence("no log says how many validation tokens there were")
    if not problems and not expected and not any(log["documents"] for log in counted.values()):
        raise MissingEvidence(
            f"{max(different, default=0):,} validation tokens were scored; whether that is the full split cannot be "
            "told for this tokenizer"
        )
    reason = f"{max(different, default=0):,} validation tokens in {len(counted)} logs: the full split"
    return judge(list(dict.fromkeys(problems))[:8], reason, counted=counted, expected=expected)


def _limits(log: Log, expected: int | None) -> Iterator[tuple[str, str]]:
    """Settings that limit the validation data, among the settings and on any line."""
    on_lines = {
        match[1]: match[2] for line in log.lines.values() for match in _LIMIT.finditer(line[:SEARCHED_CHARACTERS])
    }
    for key, value in {**on_lines, **{k: v for k, v in log.settings.items() if _LIMIT.fullmatch(f"{k}:{v}")}}.items():
        number = _as_float(value)
        share = key.endswith(("fraction", "frac", "subset"))
        whole = VAL_DOCUMENTS if "doc" in key or not expected else expected
        if number and (number != 1 if share else number < whole):
            yield key, value


def _skipped(log: Log) -> Iterator[tuple[int, str]]:
    """Lines that tell of documents or tokens that were left out, with more than zero of them."""
    parts: dict[str, list[tuple[int, str, bool]]] = {}  # by the whole: lines that tell of a part of it
    for number, line in log.lines.items():
        start = line[:SEARCHED_CHARACTERS]
        if "train" in start.lower():
            continue
        of_documents = [int(_digits(match[1])) for match in _EVALUATED.finditer(start)]
        if (number > log.sealed_line > 0 and _CUT_SHORT.search(start)) or any(n != VAL_DOCUMENTS for n in of_documents):
            yield number, line
            continue
        counts = [next(filter(None, match.groups()), "0") for match in _SKIPPED.finditer(start)]
        if any(count.strip("0,_.") for count in counts) or _SUBSET.search(start):
            yield number, line
            continue
        for part, whole, fewer in _PART.findall(start):
            if fewer:
                yield number, line
            else:
                complete = int(_digits(part)) >= int(_digits(whole))
                parts.setdefault(whole, []).append((number, line, complete))
    for lines in parts.values():  # several lines are progress
        if len(lines) == 1 and not lines[0][2]:
            yield lines[0][:2]


def _digits(text: str) -> str:
    return text.replace(",", "").replace("_", "")[:18] or "0"


def _as_float(text: str) -> float | None:
    try:
        return parse_number(text)
    except ForeignError:
        return None
