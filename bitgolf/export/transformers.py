"""Writes a folder that Hugging Face Transformers loads with `trust_remote_code=True`. Transformers is not needed here.

config.json, generation_config.json          settings
model.safetensors                            the decoded weights, fp32
network.py, modeling_bitgolf.py, ...         the code
tokenizer.model, tokenizer_config.json       the tokenizer
README.md                                    how to use the folder
"""

import json
from importlib import resources
from pathlib import Path

from bitgolf.artifact.open import PackedModel
from bitgolf.errors import ConfigError
from bitgolf.export.network_tensors import shapes_of, tensors_of
from bitgolf.model.weights import write_tensors
from bitgolf.run import atomic

_CODE = (
    ("bitgolf.export.remote", "network.py"),
    ("bitgolf.export.remote", "modeling_bitgolf.py"),
    ("bitgolf.export.remote", "configuration_bitgolf.py"),
    ("bitgolf.export.remote", "tokenization_bitgolf.py"),
    ("bitgolf.data", "case_markers.py"),
)

_README = """---
library_name: transformers
pipeline_tag: text-generation
---
# A language model made with bitgolf

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=True)
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100, do_sample=True)[0], skip_special_tokens=True))
```

It needs `transformers`, `torch` and `sentencepiece`. The weights are those of the packed file, decoded to fp32.
"""


def export_transformers(packed: PackedModel, folder: Path) -> None:
    """Write the folder, which gets its name when it is complete.

    Raises ConfigError if `folder` exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; choose another folder, or remove it")
    with atomic.atomic_directory(folder) as made:
        _write(packed, made)


def _write(packed: PackedModel, folder: Path) -> None:
    model, tokenizer = packed.model, packed.tokenizer
    tensors = tensors_of(model)
    named = {f"network.{name}": tensor for name, tensor in tensors.items()}
    write_tensors(folder / "model.safetensors", named, {"format": "pt"})
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.bos_id}
    documents = {
        "config.json": {
            "architectures": ["BitgolfForCausalLM"],
            "auto_map": {
                "AutoConfig": "configuration_bitgolf.BitgolfConfig",
                "AutoModelForCausalLM": "modeling_bitgolf.BitgolfForCausalLM",
            },
            "model_type": "bitgolf",
            "vocab_size": tokenizer.vocab_size,
            "max_position_embeddings": packed.window,
            "window": packed.window,
            "network": model.config.model_dump(mode="json"),
            "shapes": shapes_of(tensors),
            "dtype": "float32",
            "tie_word_embeddings": False,
            "use_cache": False,
            **ends,
        },
        "generation_config.json": {"use_cache": False, "temperature": 0.8, "top_k": 0, "do_sample": True, **ends},
        "tokenizer_config.json": {
            "auto_map": {"AutoTokenizer": ["tokenization_bitgolf.BitgolfTokenizer", None]},
            "tokenizer_class": "BitgolfTokenizer",
            "lossless": tokenizer.lossless,
            "marks_capitals": tokenizer.marks_capitals,
            "model_max_length": packed.window,
        },
    }
    for name, values in documents.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    for package, name in _CODE:
        source = resources.files(package).joinpath(name)
        (folder / name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    (folder / "README.md").write_text(_README, encoding="utf-8")
