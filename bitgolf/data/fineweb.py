"""The source `fineweb[:VARIANT]`: the challenge's published shards, from the Hugging Face hub.

The repository's manifest gives the number of shards of a variant and its tokenizer.
Source of the layout: data/cached_challenge_fineweb.py of openai/parameter-golf.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitgolf.data.existing_shards import ExistingShards
from bitgolf.data.hub import FOLDER, REPOSITORY, Hub
from bitgolf.data.shards import read_header
from bitgolf.data.tokenizer import Tokenizer
from bitgolf.errors import DataError, ForeignError
from bitgolf.foreign import as_integer, as_list, as_object, as_text, field, read_json
from bitgolf.run.progress import Progress, silent

_MAX_FILES = 100_000  # shards of a split


def fetch_fineweb(
    variant: str, train_shards: int = 0, progress: Progress = silent, hub: Hub | None = None
) -> ExistingShards:
    """Download the shards of `variant`, for example 'sp1024', unless they are in the cache.

    `train_shards` limits the training shards; 0 = all. All validation shards are downloaded. Raises DataError:
    huggingface_hub is not installed, the hub cannot be reached, the variant or the number of shards does not exist, or
    a file does not have the hash that the hub announced.
    """
    hub = hub or Hub()
    published = _read_variant(hub.fetch(f"{FOLDER}/manifest.json"), variant)
    if train_shards > published.num_train:
        raise DataError(f"data.train_shards is {train_shards}; {REPOSITORY} has {published.num_train} for {variant!r}")
    folder = f"{FOLDER}/datasets/{published.name}"
    names = [f"fineweb_val_{i:06d}.bin" for i in range(published.num_val)]
    names += [f"fineweb_train_{i:06d}.bin" for i in range(train_shards or published.num_train)]
    paths = []
    for number, name in enumerate(names):
        progress("prepare", number, len(names) + 1, f"downloading {name}")
        path = hub.fetch(f"{folder}/{name}", published.digests.get(name))
        read_header(path)
        paths.append(path)
    tokenizer = Tokenizer.load(hub.fetch(f"{FOLDER}/{published.model}"))
    progress("prepare", len(names) + 1, len(names) + 1, "all files downloaded")
    origin = {"repository": REPOSITORY, "revision": hub.revision, "variant": variant}
    return ExistingShards(paths[published.num_val :], paths[: published.num_val], tokenizer, origin)


@dataclass(frozen=True)
class _Variant:
    """One data set of the repository's manifest."""

    name: str
    num_train: int  # shards
    num_val: int
    model: str  # path of its tokenizer
    digests: dict[str, str]  # file name -> SHA-256, as far as the manifest lists them


def _read_variant(manifest: Path, variant: str) -> _Variant:
    """The data set of `variant` in the manifest. Raises DataError if there is none, or if it has an unknown form."""
    name = f"fineweb10B_{variant}"
    try:
        record = as_object(read_json(manifest), "the manifest")
        entries = [as_object(e, "a data set") for e in as_list(field(record, "datasets"), "datasets")]
        datasets = {as_text(field(e, "name"), "name"): e for e in entries}
        if name not in datasets:
            variants = ", ".join(sorted(key.removeprefix("fineweb10B_") for key in datasets))
            raise DataError(f"{REPOSITORY} has no variant {variant!r}; published variants: {variants}")
        entry = datasets[name]
        stats = as_object(field(entry, "stats"), "stats")
        num_train, num_val = (as_integer(field(stats, f"files_{s}"), s, 1, _MAX_FILES) for s in ("train", "val"))
        tokenizers = [as_object(t, "a tokenizer") for t in as_list(field(record, "tokenizers"), "tokenizers")]
        models = {as_text(field(t, "name"), "name"): t.get("model_path") for t in tokenizers}
        model = models.get(as_text(field(entry, "tokenizer_name"), "tokenizer_name"))
        if not model:
            raise DataError(
                f"variant {variant!r} has no SentencePiece tokenizer; choose a variant whose name begins with sp"
            )
        return _Variant(name, num_train, num_val, as_text(model, "model_path"), _digests(entry))
    except ForeignError as error:
        raise DataError(f"the manifest of {REPOSITORY} has an unknown form: {error}") from error


def _digests(entry: dict[str, Any]) -> dict[str, str]:
    """File name -> SHA-256, if the manifest lists them (`files: [{path, sha256}]`)."""
    files = [as_object(file, "a file") for file in as_list(entry.get("files") or [], "files")]
    return {
        Path(as_text(field(f, "path"), "path")).name: as_text(f["sha256"], "sha256") for f in files if f.get("sha256")
    }
