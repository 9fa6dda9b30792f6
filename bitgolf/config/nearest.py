"""Guesses the setting that a user meant by an unknown key. Error messages name it.

The guess compares parts of names, then typing errors, then words of other programs, and last the descriptions.
"""

import difflib
import re

from bitgolf.config.settings import all_settings, is_group

# Words of other programs -> words of the keys here.
_SYNONYMS = {
    "learning_rate": "lr",
    "batch_size": "batch_tokens",
    "micro_batch_size": "micro_batch_tokens",
    "gradient_accumulation": "micro_batch_tokens",
    "context": "seq_len",
    "context_length": "seq_len",
    "block_size": "seq_len",
    "window": "seq_len",
    "depth": "num_layers",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "width": "model_dim",
    "hidden": "model_dim",
    "hidden_size": "model_dim",
    "n_embd": "model_dim",
    "d_model": "model_dim",
    "ffn": "multiple",
    "mlp_ratio": "multiple",
    "lr_schedule": "warmdown",
    "max_iters": "max_steps",
    "iterations": "max_steps",
    "log_interval": "log_every",
    "sparsity": "prune",
    "gpu": "device",
    "cuda": "device",
    "size": "artifact_bytes",
    "artifact_size": "artifact_bytes",
    "cap": "artifact_bytes",
    "time": "train_seconds",
    "file": "source",
    "path": "source",
    "dataset": "source",
}


def nearest_setting(key: str) -> str | None:
    """The setting that an unknown `key` probably means, or None."""
    key = key.replace("-", "_")
    group, _, word = key.rpartition(".")
    names = sorted(all_settings(), key=lambda name: name.count("."))  # stable: the order of the sections is kept

    def in_group(word: str) -> list[str]:
        """Names with `word` in the group of the key, or in the smallest group around it that has one."""
        parent = group
        while parent:
            if near := _with_word(word, [name for name in names if name.startswith(f"{parent}.")]):
                return near
            parent = parent.rpartition(".")[0]
        return []

    flat = f"_{key}".replace(".", "_")
    by_last = {name.rpartition(".")[2]: name for name in reversed(names)}
    synonym = _SYNONYMS.get(word, "")
    near = [name for name in names if f"_{name}".replace(".", "_").endswith(flat)]  # train.seconds, lora_rank
    near = near or (in_group(word) if word not in _SYNONYMS else [])
    near = near or difflib.get_close_matches(key, names, n=1, cutoff=0.8)
    near = near or (in_group(synonym) or _with_word(synonym, names) if synonym else [])
    near = near or ([] if is_group(group) else _with_word(word, names))
    near = near or [by_last[last] for last in difflib.get_close_matches(word, by_last, n=1, cutoff=0.8)]
    near = near or _described(word, [name for name in names if name.startswith(group)])
    return near[0] if near else None


def _with_word(word: str, names: list[str]) -> list[str]:
    """The names whose last part is `word`, or ends or begins with it. Names with fewer dots come first."""

    def rank(name: str) -> tuple[int, int]:
        last = name.rpartition(".")[2]
        tests = (last == word, last.endswith(f"_{word}"), last.startswith(f"{word}_"))
        return name.count("."), tests.index(True) if any(tests) else len(tests)

    return sorted((name for name in names if rank(name)[1] < 3), key=rank)


def _described(word: str, names: list[str]) -> list[str]:
    """The name whose description has the word, if it is the only one."""
    text = word.replace("_", " ")
    near = [name for name in names if re.search(rf"\b{re.escape(text)}s?\b", all_settings()[name].description, re.I)]
    return near if len(near) == 1 else []
