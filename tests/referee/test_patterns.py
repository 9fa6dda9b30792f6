"""Each pattern of code, and code that differs from it in one respect, which is no match."""

import textwrap
from collections.abc import Callable, Iterator

import pytest

from bitgolf.referee import patterns
from bitgolf.referee.code import Match, Script, read_script

Pattern = Callable[[Script], Iterator[Match]]
TWICE = """
    def eval_ttt(m, val_tokens):
        m(val_tokens).backward()
    def main():
        eval_ttt(m, val_tokens)
        eval_ttt(m, val_tokens)
"""
LOOP = TWICE.replace("eval_ttt(m, val_tokens)\n        eval_ttt(m, val_tokens)", "for i in x:\n            {}")
LOOP = LOOP.format("eval_ttt(m, val_tokens)")
BRANCHES = TWICE.replace(
    "        eval_ttt(m, val_tokens)\n        eval", "        if a: eval_ttt(m, val_tokens)\n        eval"
)
POLISH = "def polish(m, x):\n    m(x).backward()\ndef main():\n"
CASES: dict[str, tuple[Pattern, list[tuple[str, list[tuple[int, str]]]]]] = {
    "learning before the artifact is made": (
        patterns.validation_before_seal,
        [
            ("def pre_quant_ttt(m):\n    pass\npre_quant_ttt(m)", [(1, "prequant")]),
            ("def pre_quant_ttt(m):\n    pass", []),
            ("def main():\n    calibrate(model, val_tokens)", [(2, "calib")]),
            ("def main():\n    gather_hessian(model, val_tokens)", [(2, "calib")]),
            ("def main():\n    calibrate(model, train_tokens)", []),
            ("def main():\n    inspect(model, val_tokens)", []),
            ("def main():\n    t = bigrams(val_tokens)\n    quantize(m)", [(2, "calib")]),
            ("def main():\n    t = bigrams(x)\n    quantize(m)", []),
            ("def main():\n    quantize(m)\n    t = bigrams(val_tokens)", []),
            ("def main():\n    t = bigrams(val_tokens)\n    dequantize(m)", []),
            ("def main():\n    for x in val_data:\n        f(x).backward()\n    quantize(m)", [(2, "ttt")]),
            ("def main():\n    quantize(m)\n    for x in val_data:\n        f(x).backward()", []),
            ("def main():\n    for x in val_data:\n        f(x).forward()\n    quantize(m)", []),
            ("def main():\n    for x in data:\n        f(x).backward()\n    quantize(m)", []),
            ("def main():\n    for x in zip(val_data, train_loader):\n        f(x).backward()\n    quantize(m)", []),
            ("def main():\n    for x in val_data:\n        scheduler.step()\n    quantize(m)", []),
            (f"{POLISH}    partial(polish, m)(val_data)\n    quantize(m)", [(4, "ttt")]),
            (f"{POLISH}    partial(polish, m)(data)\n    quantize(m)", []),
            (f"{POLISH}    polish(m, val_data)\n    quantize(m)", [(4, "ttt")]),
            (f"{POLISH}    quantize(m)\n    polish(m, val_data)", []),
        ],
    ),
    "weights that validation chooses": (
        patterns.validation_before_seal,
        [
            ("if val_bpb < best_bpb:\n    kept = model.state_dict()", [(1, "best")]),
            ("if bpb < best:\n    save(m)", [(1, "best")]),
            ("if val_bpb < best:\n    kept = deepcopy(m)", [(1, "best")]),
            ("if val_bpb < limit:\n    save(m)", []),
            ("if loss < best:\n    save(m)", []),
            ("if val_bpb < best:\n    best = val_bpb", []),
            ("if val_best:\n    save(m)", []),
            ("t = min(x, key=lambda t: eval_val(val_data, t))", [(1, "best")]),
            ("t = sorted(eval_val(val_data, t) for t in x)", [(1, "best")]),
            ("t = min(x, key=lambda t: eval_val(data, t))", []),
            ("t = sum(eval_val(val_data, t) for t in x)", []),
            ("t = min(x, key=lambda t: look_up(val_data, t))", []),
        ],
    ),
    "a second pass": (
        patterns.several_passes,
        [
            (TWICE, [(5, "repeat")]),
            (LOOP, [(5, "repeat")]),
            (BRANCHES, []),
            (TWICE.replace("def main():\n        eval_ttt(m, val_tokens)\n", "def main():\n"), []),
            (TWICE.replace(".backward()", ".sum()"), []),
            (TWICE.replace("        eval_ttt(m, val_tokens)\n", "        eval_ttt(m, x)\n"), []),
            ("s = [i for i in range(0, n, 64) if min(i + w, n) - i >= 1]", [(1, "sliding")]),
            ("s = [i for i in range(0, n, 64) if min(i + w, n) - i > 0]", [(1, "sliding")]),
            ("s = [i for i in range(0, n, 64) if min(i + w, n) - i >= 2]", []),
            ("s = [i for i in range(0, n, 64) if min(i + w, n) - i > 1]", []),
            ("s = [i for i in range(0, n, 64) if min(i + w, n) - i < 1]", []),
            ("s = [i for i in range(0, n, 64) if min(i + w, n) - i >= k]", []),
            ("s = [i for i in range(0, n, 64) if min(i + w, n) + i >= 1]", []),
            ("s = [i for i in range(0, n, 64) if max(i + w, n) - i >= 1]", []),
            ("s = [i for i in range(0, n, 64) if 9 >= min(i + w, n) - i >= 1]", []),
            ("s = [i for i in range(0, n) if min(i + w, n) - i >= 1]", []),
            ("s = [i for i in steps(0, n, 64) if min(i + w, n) - i >= 1]", []),
            ("def rescore(m):\n    return m.loss\nbest = rescore(m)\nprint(best)", [(1, "rescore")]),
            ("def rescore(m):\n    return m.loss", []),
        ],
    ),
    "peeking": (
        patterns.peeking,
        [
            ("def slot_adapt(x):\n    x.backward()", [(1, "slot")]),
            ("def slots(x):\n    x.backward()", []),
            ("def slot_adapt(x):\n    x.forward()", []),
            ("def warm_up(m, val_tokens):\n    m(val_tokens).backward()", [(1, "warmup")]),
            ("def warm_up(m, tokens):\n    m(tokens).backward()", []),
            ("def start(m, val_tokens):\n    m(val_tokens).backward()", []),
            ("def ngram_tilt(tgt):\n    return is_boundary[tgt]", [(2, "gram")]),
            ("def hints(x):\n    return starts_word[x.next_tok]", [(2, "gram")]),
            ("def table(tgt):\n    return is_boundary[tgt]", []),
            ("def ngram_tilt(x):\n    return is_boundary[x]", []),
            ("def ngram_tilt(tgt):\n    return counts[tgt]", []),
            ("def f():\n    if doc_len < 5:\n        chunk = 3", [(2, "short")]),
            ("def f():\n    if length < 5:\n        chunk = 3", []),
            ("def f():\n    if doc_len < 5:\n        size = 3", []),
        ],
    ),
    "no distribution": (
        patterns.not_a_distribution,
        [
            ("def ngram(c, tgt):\n    return (c ^ (tgt * 31)) % size", [(2, "gram")]),
            ("def ngram(c, tgt):\n    return (c ^ tgt) & mask", [(2, "gram")]),
            ("def ngram(c, tgt):\n    return (c + tgt) % size", []),
            ("def ngram(c, x):\n    return (c ^ x) % size", []),
            ("def ngram(c, tgt):\n    return (c ^ tgt) + size", []),
            ("def hash_key(c, tgt):\n    gram = (c ^ tgt) % size", [(2, "gram")]),
            ("def key(c, tgt):\n    gram = (c ^ tgt) % size", []),
            ("def hash_key(c, tgt):\n    slot = (c ^ tgt) % size", []),
            ("def eval_val(x):\n    nll = clamp(nll, 3)", [(2, "clip_loss")]),
            ("def eval_val(x):\n    return losses[losses < 3]", [(2, "clip_loss")]),
            ("def eval_val(x):\n    return losses[3]", []),
            ("def eval_val(x):\n    x = clamp(x, 3)", []),
            ("def train(x):\n    nll = clamp(nll, 3)", []),
            ("def eval_val(x):\n    nll = mean(nll)", []),
            ("def ppm_mix(x):\n    byte_share = x", [(1, "ppm")]),
            ("def ppm_mix(x):\n    share = x", []),
            ("def ppmx(x):\n    byte_share = x", []),
        ],
    ),
    "a small validation split": (
        patterns.small_validation_split,
        [
            ("p.add_argument('--val-docs', type=int, default=49999)", [(1, "val_docs")]),
            ("p.add_argument('--num-val-docs', default=1)", [(1, "val_docs")]),
            ("p.add_argument('--val-docs', default=50000)", []),
            ("p.add_argument('--val-docs', default=0)", []),
            ("p.add_argument('--val-docs', default='9')", []),
            ("p.add_argument('--val-docs', nargs=9)", []),
            ("p.add_argument('--docs', default=9)", []),
            ("num_val_docs = 49_999", [(1, "val_docs")]),
            ("h.n_val = 9", [(1, "val_docs")]),
            ("num_val_docs = 50_000", []),
            ("num_docs = 9", []),
        ],
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_each_pattern_and_its_neighbors(kind: str) -> None:
    pattern, examples = CASES[kind]
    for code, expected in examples:
        script = read_script("train_gpt.py", textwrap.dedent(code).strip().encode())
        assert script.tree is not None, code
        assert [(match.line, match.topic) for match in pattern(script)] == expected, code
