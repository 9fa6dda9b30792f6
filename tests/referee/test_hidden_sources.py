"""Kinds of tricks in foreign scripts and logs, each in several spellings, and honest lines that look like them."""

import lzma
from pathlib import Path

import pytest
from synthetic_submission import (
    CODE,
    CONSTANT,
    Folder,
    Plant,
    add,
    claimed,
    for_seed,
    instead,
    judged,
    logged,
)

from bitgolf.referee.code import Script, read_script
from bitgolf.referee.folder import Submission, submission_checks
from bitgolf.referee.shipped import data_files, hidden_code, imported_files, uncertain, unknown_modules
from bitgolf.referee.training_data import covers_validation, training_on_validation

BEFORE_SEAL = "    serialize(h,"


def script(code: str) -> Script:
    return read_script("train_gpt.py", f"import os\n{code}\n".encode())


def folder(tmp_path: Path, code: str, *names: str) -> Submission:
    for name in ("train_gpt.py", *names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"import os\n{code}\n" if name == "train_gpt.py" else "x" * 100)
    return Submission(tmp_path)


HIDDEN = {  # what is said of the last line
    "hides what it calls": [
        "import builtins\ngetattr(builtins, 'ex' + 'ec')(text)",
        "import importlib\ntools = getattr(importlib, 'import_' + name)('tools')",
        "import builtins\nvars(builtins)[name](text)",
        "globals()['__builtins__']['exec'](text)",
        "import sys\nsys.modules['builtins'].exec('x')",
        "import operator, builtins\noperator.attrgetter('exec')(builtins)(text)",
    ],
    "uses __builtins__ under another name": [
        "__builtins__.__dict__['exec'](text)",
    ],
    "starts a program that it does not show": [
        "run = exec\nrun(open('w').read())",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', text])",
        "import subprocess\nsubprocess.check_output(command, shell=True)",
        "os.system('bash -c ' + text)",
    ],
    "executes what it reads": [
        "import builtins\nbuiltins.exec(open('w').read())",
        "exec(os.environ['PAYLOAD'])",
        "exec(os.getenv('PAYLOAD', ''))",
        "import sys\nexec(sys.stdin.read())",
        "import base64\nexec(base64.b64decode(open('p' + '.b64').read()))",
        "import sys\nexec(sys.argv[1])",
        "with open('w') as f:\n    lines = list(f)\nexec(lines[0])",
    ],
    "uses eval under another name": [
        "list(map(eval, texts))",
    ],
    "uses builtins.exec under another name": [
        "import builtins\nrun = builtins.exec",
    ],
    "imports a module by a computed name": [
        "from importlib import import_module as im\ntools = im('to' + 'ols')",
    ],
    "loads code from a file": [
        "import runpy\nrunpy.run_path('t' + '.txt')",
        "import zipimport\nt = zipimport.zipimporter('lib.zip')",
        "import marshal, types\ntypes.FunctionType(marshal.loads(data), globals())()",
        "import site\nsite.addsitedir('.')",
    ],
    "loads a library by a computed name": [
        "import ctypes\nctypes.CDLL(name)",
    ],
    "executes text that it does not show": [
        "import base64\nexec(base64.b64decode(main.__doc__))",
        "import inspect, sys\nexec(inspect.getsource(sys.modules[__name__]).split('#')[1])",
        "import cProfile\ncProfile.run(text)",
        "import timeit\ntimeit.timeit(stmt=text, number=1)",
        "import code\ncode.InteractiveInterpreter(names).runsource(text)",
    ],
    "loads an object that it does not show": [
        "import pickle\ntable = pickle.loads(b'cos\\nsystem\\n')",
    ],
}


@pytest.mark.parametrize(("words", "code"), [(words, code) for words, codes in HIDDEN.items() for code in codes])
def test_code_that_nobody_can_count_is_named(words: str, code: str) -> None:
    of_two_kinds = code.startswith("run = exec") or "FunctionType(marshal" in code
    problems = list(hidden_code(script(code)))
    assert len(problems) == 1 + of_two_kinds
    assert any(problem.startswith(f"line {code.count(chr(10)) + 2} {words}") for problem in problems), problems


@pytest.mark.parametrize(
    "code",
    [
        "exec('x = 1')", "model.eval()", "import re\npattern = re.compile('x')", "getattr(h, 'rank')",
        "import torch\nf = torch.compile(g)",
        "import importlib\nimportlib.import_module('math')", "getattr(model, f'layer{i}')", "x = {'a': 1}.get('exec')",
        "import subprocess\nsubprocess.run(['nvidia-smi', '-i', index])", "import sys\nm = sys.modules[__name__]",
        "import pickle\nx = pickle.loads(data)", "eval(compile('x = 1', 'x', 'exec'))", "f = vars(args)",
        "import builtins\ngetattr(builtins, 'print')(x)", "import builtins\nbuiltins.print = log",
        "import timeit\nt = timeit.default_timer()",
    ],
)  # fmt: skip
def test_honest_calls_hide_nothing(code: str) -> None:
    assert list(hidden_code(script(code))) == []


@pytest.mark.parametrize(
    ("code", "file"),
    [
        ("import sys\nsys.path.insert(0, 'lib.zip')", "lib.zip"),
        ("import pickle\npickle.load(open('tab' + 'le.pkl', 'rb'))", "table.pkl"),
        ("torch.load('extra' + '.pt')", "extra.pt"),
        ("torch.load(f'part{i}.pt')", "part1.pt"),
        ("np.memmap(f'hint{k}.bin')", "hint0.bin"),
        ("open('part%d.dat' % 1, 'rb').read()", "part1.dat"),
        ("open('part{}.dat'.format(1), 'rb').read()", "part1.dat"),
        ("name = 'tab'\nfile = name + 'le.npy'\nnp.load(file)", "table.npy"),
        ("for name in os.listdir('.'):\n    open(name, 'rb').read()", "blob"),
        ("[p.read_bytes() for p in Path(__file__).parent.iterdir()]", "blob"),
        ("import glob\n[open(p, 'rb').read() for p in glob.glob('*')]", "blob.bin"),
        ("[p.read_bytes() for p in Path('.').rglob('*.bin')]", "deep/blob.bin"),
        ("Path(__file__).with_suffix('.dat').read_bytes()", "train_gpt.dat"),
        ("open(__file__.replace('.py', '.dat'), 'rb').read()", "train_gpt.dat"),
        ("open(os.path.join(os.path.dirname(__file__), 'table.csv')).read()", "table.csv"),
        ("open('README.md').read()", "README.md"),
        ("(Path('.') / 'loss.png').read_bytes()", "loss.png"),
        ("Path('train_seed1.log').open().read()", "train_seed1.log"),
        ("json.load(open('submission.json'))", "submission.json"),
        ("torch.load('weights.model')", "weights.model"),
        ("open(os.environ.get('TABLE', 'weights.yaml')).read()", "weights.yaml"),
    ],
)
def test_files_are_found_however_their_names_are_put_together(code: str, file: str, tmp_path: Path) -> None:
    assert data_files(folder(tmp_path, code, file)) == {file: 100}


@pytest.mark.parametrize(
    ("code", "file"),
    [
        ("open('out.csv', 'w').write('x')", "out.csv"),
        ("plt.savefig('loss.png')", "loss.png"),
        ("(root / 'log.txt').open('a').write('x')", "log.txt"),
        ("os.listdir('./data')", "blob"),
        ("import glob\n[open(p, 'rb').read() for p in glob.glob('data/*')]", "blob"),
        ("open(f'{run}.log', mode='w')", "train.log"),
    ],
)
def test_files_that_are_written_or_elsewhere_are_not_read(code: str, file: str, tmp_path: Path) -> None:
    assert data_files(folder(tmp_path, code, file)) == {}


@pytest.mark.parametrize(
    ("code", "file"),
    [
        ("import importlib\nimportlib.import_module('tools')", "tools.py"),
        ("t = __import__('tools')", "tools.py"),
        ("import subprocess, sys\nsubprocess.run([sys.executable, 'second.py'])", "second.py"),
        ("os.system('python ' + 'second.py')", "second.py"),
        ("import subprocess as sp\nsp.check_call('bash run.sh', shell=True)", "run.sh"),
        ("import ctypes\nctypes.CDLL('./lib' + '.so')", "lib.so"),
        ("import torch\ntorch.ops.load_library('lib.so')", "lib.so"),
        ("import sys\nsys.path = ['vendor'] + sys.path\nimport tricks", "vendor/tricks.py"),
        ("import sys\nsys.path += ['vendor']\nimport tricks", "vendor/tricks.py"),
        ("import sys\nsys.path[0] = 'vendor'\nimport tricks", "vendor/tricks.py"),
        ("x = 1", "sitecustomize.py"),
        ("import pyximport\nimport fast", "fast.pyx"),
    ],
)
def test_programs_that_are_imported_or_started_count(code: str, file: str, tmp_path: Path) -> None:
    assert imported_files(folder(tmp_path, code, file)) == {file: 100}


def test_a_path_for_imports_in_the_command_counts(tmp_path: Path) -> None:
    submission = folder(tmp_path, "import tricks", "vendor/tricks.py")
    (tmp_path / "README.md").write_text("```\nPYTHONPATH=./vendor python train_gpt.py\n```\n")
    assert imported_files(submission) == {"vendor/tricks.py": 100}


def test_what_cannot_be_told_is_not_run(tmp_path: Path) -> None:
    assert uncertain(folder(tmp_path / "a", "open(name, 'rb').read()", "blob.bin")) == {"blob.bin": 100}
    assert uncertain(folder(tmp_path / "b", "open(name, 'rb').read()", "loss.png")) == {}
    assert uncertain(folder(tmp_path / "c", "x = np.load(''.join(map(chr, codes)))", "blob.bin")) == {"blob.bin": 100}
    assert uncertain(folder(tmp_path / "g", "x = 1", "results.json")) == {}
    assert unknown_modules(folder(tmp_path / "d", "import secret_tools\nimport torch, json, numpy as np")) == [
        "secret_tools"
    ]
    needing = folder(tmp_path / "e", "import secret_tools")
    (tmp_path / "e" / "requirements.txt").write_text("secret-tools==1.0\n")
    assert unknown_modules(needing) == []
    made = judged("artifact-bytes", tmp_path, lambda f: add(f, "import secret_tools"))
    assert made.verdict == "NOT RUN" and "secret_tools" in made.reason
    made = judged("artifact-bytes", tmp_path / "f", lambda f: add(f, "open(name).read()", {"blob.bin": "x"}))
    assert made.verdict == "NOT RUN" and "blob.bin" in made.reason


@pytest.mark.parametrize(
    "code",
    [
        "import socket\ns = socket.create_connection(('1.2.3.4', 80))",
        "import urllib\nurllib.request.urlopen('http://x')",
        "from http.client import HTTPSConnection",
        "import ftplib",
        "import torch\nm = torch.hub.load('a/b', 'c')",
        "from torch.hub import load_state_dict_from_url as fetch\nfetch('x')",
        "from transformers import AutoModel\nm = AutoModel.from_pretrained('gpt2')",
        "import subprocess\nsubprocess.run(['wget', 'http://x'])",
        "os.popen('curl http://x').read()",
        "os.execvp('curl', ['curl ', 'x'])",
        "import sys, subprocess\nsubprocess.check_call([sys.executable, '-m', 'pip', 'install', 'x'])",
        "import pip\npip.main(['install', 'x'])",
        "r = __import__('requests').get(url)",
        "import importlib\nr = importlib.import_module('requests')",
        "import pandas as pd\nd = pd.read_csv('https' + '://x/y.csv')",
        "import tiktoken\ne = tiktoken.get_encoding('gpt2')",
    ],
)
def test_the_network_is_recognized(code: str) -> None:
    assert script(code).downloads()


@pytest.mark.parametrize(
    "code",
    [
        "import socket\nname = socket.gethostname()",
        "import urllib.parse",
        "print('see https://github.com/x')",
        "import subprocess\nsubprocess.run(['nvidia-smi'])",
        "import torch\nm = torch.load('final.pt')",
    ],
)
def test_honest_calls_fetch_nothing(code: str) -> None:
    assert script(code).downloads() == []


@pytest.mark.parametrize(
    "code",
    [
        "data_pattern = 'fineweb_*.bin'",
        "train_files = glob.glob('fineweb_train_*.bin') + glob.glob('fineweb_val_*.bin')",
        "h.train_files += h.val_files",
        "train_loader = DataLoader(h.val_files)",
        "x = DistributedTokenLoader('data/fineweb_*.bin')",
        "train_files = 'fineweb_[tv]*.bin'",
        "train_files: str = '*.bin'",
        "os.symlink('d/fineweb_val_000000.bin', 'd/fineweb_train_000099.bin')",
        "import shutil\nshutil.copy('d/fineweb_val_000000.bin', 'd/fineweb_train_000099.bin')",
        "Path('fineweb_val_000000.bin').rename('fineweb_train_000099.bin')",
        "import subprocess\nsubprocess.run(['ln', '-s', 'fineweb_val_000000.bin', 'fineweb_train_000099.bin'])",
        "files = [p.replace('val', 'train') for p in paths]",
        "train_files = sorted(Path(h.data_dir).iterdir())",
        "train_files = [os.path.join(d, f) for f in os.listdir(d)]",
        "train_files = [f for f in files if f.endswith('.bin')]",
        "train_files = glob.glob('fineweb_train_*.bin')\ntrain_files.extend(glob.glob('fineweb_val_*.bin'))",
        "files = glob.glob('fineweb_train_*.bin')\nfiles.append('fineweb_val_000000.bin')",
        "train_tokens = torch.cat([train_tokens, val_tokens])",
        "for f in itertools.chain(h.train_files, h.val_files):\n    learn(f)",
        "source = h.val_files\ntrain_loader = Loader(source)",
        "held = load_data_shard('fineweb_v' + 'al_000000.bin')\ntrain_tokens = held",
        "train_data = pick(val_share, other)",
        "def train_model():\n    x, y = val_loader.next_batch()\n    model(x, y).backward()",
        "def train_model():\n    x = val_data.tokens[:9]\n    loss = model(x)\n    loss.backward()",
    ],
)
def test_validation_shards_among_training_data_are_recognized(code: str) -> None:
    matches = list(training_on_validation(script(code)))
    assert matches and {match.line for match in matches} <= set(range(1, script(code).source.count("\n") + 2))


@pytest.mark.parametrize(
    "code",
    [
        "train_files = os.path.join(root, 'fineweb_train_*.bin')",
        "val_files = os.path.join(root, 'fineweb_val_*.bin')",
        "val_loader = DataLoader(h.val_files)",
        "train_time_ms = total - val_time_ms",
        "train_files, val_files = split(h.val_files)",
        "val = [p.replace('train', 'val') for p in paths]",
        "pattern = f'{root}/{name}_*.bin'",
        "train_files = [f for f in os.listdir(d) if 'train' in f]",
        "train_files = sorted(train_dir.iterdir())",
        "files = h.train_files if split == 'train' else h.val_files",
        "h.train_files = 'fineweb_train_*.bin'\nh.seen.append(f'{name}')\nh.kept.append(val_tokens)",
        "def train_model():\n    x = next(train_loader)\n    model(x).backward()\n    check(val_tokens)",
        "def train_model():\n    x = val_tokens\n    test(x)\n    x = train_tokens\n    model(x).backward()",
    ],
)
def test_honest_training_data_is_not_mistaken(code: str) -> None:
    assert list(training_on_validation(script(code))) == []


def refine(code: str, call: str) -> Plant:
    return lambda f: (add(f, code), instead(BEFORE_SEAL, f"    {call}\n{BEFORE_SEAL}")(f))


POLISH = "def polish(m, x):\n    m(x).backward()\n    opt.step()"


@pytest.mark.parametrize(
    ("code", "call"),
    [
        ("x = 1", "for batch in val_data.batches():\n        model(batch).backward()\n        optimizer.step()"),
        (POLISH, "functools.partial(polish, model)(val_data)"),
        (POLISH, "polish(model, {'x': val_data.tokens})"),
        ("polish = lambda m, x: (m(x).backward(), opt.step())", "polish(model, val_data)"),
        (f"{POLISH}\ndef outer(m, z):\n    polish(m, z)", "outer(model, val_data)"),
        ("def polish(m):\n    m(STREAM).backward()\n    opt.step()", "STREAM = val_data\n    polish(model)"),
        (POLISH, "held = load_data_shard('fineweb_val_000000.bin')\n    polish(model, held)"),
        (POLISH, "first, second = val_data, 3\n    polish(model, first)"),
        ("def polish(m, x):\n    g = torch.func.grad(m)(x)", "polish(model, val_data)"),
        ("def polish(m, x):\n    train_loss = m(x)\n    train_loss.backward()\n    opt.step()", "polish(m, val_data)"),
        ("x = 1", "cal = val_data\n    collect_hessians(model, cal, 16)"),
        ("x = 1", "table = build_ngram(val_data.val_tokens)"),
        ("x = 1", "t = min(temps, key=lambda t: eval_val(h, val_data, t))"),
    ],
)
def test_adaptation_before_the_seal_is_recognized(code: str, call: str, tmp_path: Path) -> None:
    assert judged("validation-unseen", tmp_path, refine(code, call)).verdict == "FAIL"


@pytest.mark.parametrize(
    "plant",
    [
        for_seed(0, settings={"train_pattern": "./data/fineweb_*.bin"}),
        lambda f: f.command.update(TRAIN_FILES="'data/fineweb_*.bin'"),
        lambda f: setattr(f, "readme_add", "```\nln -s fineweb_val_000000.bin data/fineweb_train_000099.bin\n```"),
        lambda f: f.extra.update({"prepare.sh": "cp fineweb_val_000000.bin fineweb_train_000080.bin\n"}),
    ],
)
def test_validation_in_training_is_recognized_in_logs_and_commands(plant: Plant, tmp_path: Path) -> None:
    assert judged("validation-unseen", tmp_path, plant).verdict == "FAIL"


@pytest.mark.parametrize(
    "line",
    [
        "skipping documents longer than 2048 tokens: 1204",
        "val: 49,000 of 50,000 documents scored",
        "evaluated on 49000/50000 docs",
        "documents kept: 49000",
        "num_skipped_docs=1204",
        "truncated 312 documents",
        "filtered out 312 documents",
        "312 documents were removed",
        "left out 312 documents",
        "n_dropped: 312",
        "WARNING: dropping last 4096 tokens",
        "val subset: 10%",
        "using first 10000000 val tokens",
        "eval_fraction: 0.5",
        "val_doc_fraction: 0.9",
        "max_val_tokens: 10000000",
        "scored 312 fewer documents",
        "eval on 5000 docs",
        "Skipped 1.2M tokens",
        "val_docs=49000",
        "evaluating 49,999 documents",
        "short docs (<64 tokens) not scored: 2,114",
        "max_docs: 10000",
        "eval capped at 40M tokens",
        "eval stopped early at batch 640/782",
        "time limit reached after 43211 docs",
        "12 batches with nan loss skipped",
        "clipping losses above 12.0 nats",
        "trimmed mean over documents (1% cut)",
        "coverage: 98.2%",
    ],
)
def test_documents_that_were_left_out_are_recognized(line: str, tmp_path: Path) -> None:
    assert judged("tokens-scored", tmp_path, logged(0, line)).verdict == "FAIL"


@pytest.mark.parametrize(
    "lines",
    [
        ["skipped 0 documents"], ["50,000 of 50,000 documents scored"], ["max_val_tokens: 0"], ["eval_fraction: 1.0"],
        ["scored 10000/50000 docs", "scored 20000/50000 docs"], ["train: dropped 312 documents"],
        ["val_fraction = 0.08"], ["evaluating 50,000 documents"], ["coverage: 100.0%"], ["max_docs: 50000"],
    ],
)  # fmt: skip
def test_complete_evaluations_are_not_mistaken(lines: list[str], tmp_path: Path) -> None:
    assert judged("tokens-scored", tmp_path, for_seed(0, in_evaluation=lines)).verdict == "PASS"


def test_code_cannot_be_counted_with_fewer_bytes_than_any_compression_makes(tmp_path: Path) -> None:
    half = len(lzma.compress(CODE.encode(), preset=9)) / 2
    made = judged("artifact-bytes", tmp_path / "a", claimed(bytes_code=half - 0.5))
    assert made.verdict == "FAIL" and "less than any compression makes of train_gpt.py" in made.reason
    assert "any compression" not in judged("artifact-bytes", tmp_path / "b", claimed(bytes_code=half)).reason


@pytest.mark.parametrize(
    "line",
    [
        "5000/20000 val_loss: 2.4012 val_bpb: 1.1012",
        "resuming training for 300 more steps",
        "finetune epoch 1 loss:2.4 time:80s",
        "extra 500 steps after the clock",
        "training clock paused for 30.2s",
        "excluded from wallclock: data loading 41s",
    ],
)
def test_training_after_the_clock_is_recognized(line: str, tmp_path: Path) -> None:
    assert judged("train-clock", tmp_path, logged(0, line, "before_seal")).verdict == "FAIL"


BACKWARD = "400/20000 train_loss: 2.7 train_time: 9.9m\n450/20000 train_loss: 2.7 train_time: 1m"


@pytest.mark.parametrize(
    ("check", "plant", "words"),
    [
        ("files", for_seed(0, stop_ms=-5), "gives no time"),
        ("train-clock", for_seed(0, steps=19_999), "as the end of training"),
        ("train-clock", logged(0, BACKWARD, "before_seal"), "gives 60.0 s at step 450, and 594.0 s at step 400 before"),
    ],
)  # fmt: skip
def test_clocks_that_cannot_be_are_named(check: str, plant: Plant, words: str, tmp_path: Path) -> None:
    made = judged(check, tmp_path, plant)
    assert made.verdict == "FAIL" and words in made.reason


def test_a_total_that_is_less_than_its_pass_hides_no_time(tmp_path: Path) -> None:
    path = Folder().write(tmp_path / "stack")
    log = path / "train_seed42.log"
    log.write_text(log.read_text().replace("eval_time:488210ms", "eval_time:688210ms"))
    made = submission_checks.make(Submission(path), only=["eval-clock"])["eval-clock"]
    assert made.verdict == "FAIL" and "evaluation took 688.2 s" in made.reason


def test_a_warm_up_may_be_outside_the_clock(tmp_path: Path) -> None:
    line = "compile warm-up excluded from wallclock: 41s"
    assert judged("train-clock", tmp_path, logged(0, line, "before_seal")).verdict == "PASS"


@pytest.mark.parametrize(
    "code",
    ["nll = torch.clamp(nll, max=10.0)", "val_loss = torch.nan_to_num(val_loss)", "x = losses[losses < 9].mean()"],
)
def test_losses_that_are_changed_before_the_mean_are_recognized(code: str, tmp_path: Path) -> None:
    plant = instead("    return score(starts)", f"    {code}\n    return score(starts)")
    assert judged("distribution", tmp_path, plant).verdict == "FAIL"


@pytest.mark.parametrize(
    "line",
    [
        "second evaluation pass, keeping the better",
        "re-evaluating with best lr",
        "evaluation repeated",
        "eval run 2 of 2",
        "val sweep: best temperature 0.97 val_bpb 1.0612",
        "averaging scores of 2 evaluations",
        "iteration 2/2 of evaluation",
        "warm start from adapted weights of the run before",
        "selected alpha=0.3 with lowest val_bpb",
        "temperature tuned on validation: 0.97",
        "oracle mixing weight 0.31",
        "round 2: val_loss:2.30000000 val_bpb:1.05100000",
        f"quantized_ttt_phased_run1 val_loss:{1.08 / CONSTANT:.8f} val_bpb:1.08000000 eval_time:480000ms",
    ],
)
def test_a_second_pass_in_a_log_is_recognized(line: str, tmp_path: Path) -> None:
    assert judged("single-pass", tmp_path, logged(0, line)).verdict == "FAIL"


CALL = "    eval_val_ttt(h, model, val_data)\n"


@pytest.mark.parametrize(
    "calls",
    [
        CALL * 2,
        f"    for trial in range(3):\n    {CALL}",
        "    go = eval_val_ttt\n    go(h, model, val_data)\n    go(h, model, val_data)\n",
        "    a = eval_val_ttt(h, model, val_data)\n    b = eval_val_ttt(h, model, val_data)\n    print(min(a, b))\n",
    ],
)
def test_a_second_pass_in_code_is_recognized(calls: str, tmp_path: Path) -> None:
    assert CODE.count(CALL) == 1
    assert judged("single-pass", tmp_path, instead(CALL, calls)).verdict == "FAIL"


def test_passes_in_two_branches_are_one(tmp_path: Path) -> None:
    branches = f"    if h.a:\n    {CALL}    else:\n    {CALL}"
    assert judged("single-pass", tmp_path, instead(CALL, branches)).verdict == "NOT RUN"


@pytest.mark.parametrize("day", ["20260427", "2026-W18-1", "2026/04/27", "", "2026-04-27T25:00:00"])
def test_dates_have_one_form(day: str, tmp_path: Path) -> None:
    assert judged("json-schema", tmp_path, claimed(date=day)).verdict == "FAIL"


def test_a_log_cannot_be_later_than_the_submission(tmp_path: Path) -> None:
    made = judged("json-schema", tmp_path, logged(0, "started at 2026-04-29 10:00:00"))
    assert made.verdict == "FAIL" and "was written on 2026-04-29" in made.reason
    assert judged("json-schema", tmp_path / "b", logged(0, "started at 2026-04-28 10:00:00")).verdict == "PASS"


@pytest.mark.parametrize(
    "plant",
    [
        claimed(val_bpb_stdev=0.0),
        claimed(sigma=-0.001),
        lambda f: setattr(f, "readme_add", "The standard deviation over seeds is 0.0000."),
    ],
)
def test_deviations_of_zero_in_other_places(plant: Plant, tmp_path: Path) -> None:
    assert judged("numbers-agree", tmp_path, plant).verdict == "FAIL"


@pytest.mark.parametrize("value", ["nan", "inf", "-1.0", "NaN"])
def test_losses_that_are_none_are_named(value: str, tmp_path: Path) -> None:
    made = judged("files", tmp_path, logged(0, f"quantized val_loss:{value} val_bpb:{value}"))
    assert made.verdict == "FAIL" and "is no loss" in made.reason


@pytest.mark.parametrize(
    ("pattern", "covered"),
    [
        ("data/fineweb_val_*.bin", True), ("fineweb_val_000000.bin", True), ("fineweb_*.bin", True), ("*", True),
        ("fineweb_[tv]*_000000.bin", True), ("val_??????.bin", True), ("fineweb_validation_*.bin", True),
        ("fineweb_train_*.bin", False), ("*.npy", False), ("train_*.bin", False), ("val.bin", False), ("", False),
        ("fineweb_train_000000.bin", False), ("fineweb_val", False), ("[a-t]*_val.txt", False),
    ],
)  # fmt: skip
def test_patterns_that_cover_a_shard_of_validation(pattern: str, covered: bool) -> None:
    assert covers_validation(pattern) is covered
