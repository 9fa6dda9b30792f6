"""The SentencePiece tokenizer of a bitgolf model for Hugging Face Transformers. A BOS stands before every text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer

from .case_markers import lowered, spell  # of bitgolf.data

_SPACE = "\u2581"  # how SentencePiece writes a space


class BitgolfTokenizer(PreTrainedTokenizer):
    """Encodes as bitgolf does: with a lossless tokenizer every text comes back exactly."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, lossless: bool = True, marks_capitals: bool = False, **kwargs: Any) -> None:
        self.vocab_file, self.lossless, self.marks_capitals = vocab_file, lossless, marks_capitals
        self.sp_model = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        bos = self.sp_model.id_to_piece(self.sp_model.bos_id())
        # Text that looks like a special token is text.
        kwargs = {"bos_token": bos, "eos_token": bos, "padding_side": "right", "split_special_tokens": True} | kwargs
        super().__init__(lossless=lossless, marks_capitals=marks_capitals, **kwargs)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return int(self.sp_model.get_piece_size())

    def get_vocab(self) -> dict[str, int]:
        """Id of every token."""
        return {self.sp_model.id_to_piece(i): i for i in range(self.vocab_size)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        if not self.lossless:
            return list(self.sp_model.encode(text, out_type=str))
        pieces: list[str] = []
        text = lowered(text) if self.marks_capitals else text
        for position, part in enumerate(text.split(_SPACE)):  # this character itself is encoded as its bytes
            pieces += [f"<0x{byte:02X}>" for byte in _SPACE.encode()] if position else []
            pieces += self.sp_model.encode(part, out_type=str)
        return pieces

    def _convert_token_to_id(self, token: str) -> int:
        return int(self.sp_model.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        return str(self.sp_model.id_to_piece(index))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        if not self.lossless:
            return str(self.sp_model.decode_pieces(tokens))
        pieces = [self._bytes(token) for token in tokens]
        return b"".join(spell(pieces) if self.marks_capitals else pieces).decode("utf-8", errors="replace")

    def _bytes(self, token: str) -> bytes:
        index = self.sp_model.piece_to_id(token)
        if self.sp_model.is_byte(index):
            return bytes([int(token[3:5], 16)])
        if self.sp_model.is_control(index) or self.sp_model.is_unknown(index):
            return b""
        return token.replace(_SPACE, " ").encode()

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """BOS before the text."""
        return [self.bos_token_id, *token_ids_0, *(token_ids_1 or [])]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy the SentencePiece model."""
        path = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}tokenizer.model"
        if path.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, path)
        return (str(path),)
