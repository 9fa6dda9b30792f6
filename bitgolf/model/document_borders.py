"""Attention within documents: a token attends only to earlier tokens of its own document in the row; and windows.

A document begins at each BOS. The tokens before the first BOS of a row are a document whose beginning was cut off.
Positions count from the start of the row. Rotary attention depends only on differences of positions, so a document in
the middle of a row is computed as in a row of its own, up to rounding.

Every attention backend needs the borders in another form, its *layout*. The layout is made from the token ids once per
pass, for all layers. Its shape depends only on the shape of the batch, so a compiled model is one graph:

    math, efficient, flash (CPU)   boolean mask (B, 1, T, T)
    flex                           block mask of FlexAttention (arXiv 2412.05496), which skips empty blocks
    fa3, fa4, varlen               borders (N + 1,) of sequences laid end to end (FlashAttention's varlen calls)

With `document_tokens` above 0, a longer document is cut into pieces of that many tokens, counted from its start. The
pieces do not see each other, so training and scoring see the same lengths in rows of any length (PR 1855). "Document"
below then means such a piece.

With a window of W tokens, a token attends to itself and to the W - 1 tokens before it. Layers of a model may have
windows while others have none, so a masked backend makes two masks per pass. Windows without documents use the same
backends: tokens without a BOS make every row one document.

To add a backend: one more `DocumentBackend`, with its layout and its kernel. `backends` proves it against `math`.
Source of variable-length training and of evaluation within documents: PR 1530.

Legend: B batch, T time, S all positions of a row, H query heads, G key/value heads, K head width, N documents.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bitgolf.errors import ConfigError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BOS = 1  # id of the document start in every challenge tokenizer
DOCUMENT_BACKENDS = ("fa3", "fa4", "flex", "varlen", "flash", "efficient", "math")

# The borders have space for this many documents per batch: one per 128 tokens, and 128 more for small batches. Unused
# space costs time (FlashAttention's backward pads its workspace by 128 tokens per sequence). Documents of web text have
# 500 to 1,200 tokens.
_SHORTEST_AVERAGE, _SPARE_DOCUMENTS = 128, 128
# For documents that are cut, in long rows: 257 sequences per row of 98,304 tokens, the largest number of PR 1855.
_SHORTEST_AVERAGE_CUT, _SPARE_DOCUMENTS_CUT = 512, 64

Layout = Any
"""The borders of the documents in the form that a backend's kernel needs: a Tensor or a BlockMask."""


@dataclass(frozen=True)
class DocumentBackend:
    """One implementation of attention within documents."""

    layout: Callable[..., Layout]  # tokens (B, T) int64, window=0 -> the layout
    # q (B, T, H, K), k and v (B, T, G, K), layout, window=0 -> (B, T, H, K). Scale and head groups are those of
    # `backends.attention_function`.
    attend: Callable[..., Tensor]
    is_masked: bool = True  # the layout depends on the window

    def layouts(self, tokens: Tensor, windows: tuple[int, int]) -> tuple[Layout, Layout]:
        """The layouts for both windows, equal ones if the layout does not depend on them."""
        if not self.is_masked or windows[0] == windows[1]:
            return (self.layout(tokens, window=windows[0]) if self.is_masked else self.layout(tokens),) * 2
        return self.layout(tokens, window=windows[0]), self.layout(tokens, window=windows[1])


def document_ids(tokens: Tensor, document_tokens: int = 0) -> Tensor:
    """Number of each token's document in its row, (B, T) int32, rising from 0 or 1, of tokens (B, T)."""
    return _begins(tokens, document_tokens).cumsum(1, dtype=torch.int32)


def first_of_pieces(tokens: Tensor, document_tokens: int = 0) -> Tensor:
    """Whether a document or piece begins at each token after the first of its row, bool (B, T), of tokens (B, T)."""
    return F.pad(_begins(tokens, document_tokens)[:, 1:], (1, 0))


def _begins(tokens: Tensor, document_tokens: int) -> Tensor:
    """Whether a document begins at each token, bool (B, T). With `document_tokens`, every row begins one.

    A running maximum of the beginnings would say the same, but a GPU computes that of one long row with a few threads.
    """
    if not document_tokens:
        return tokens == BOS
    places = torch.arange(tokens.numel(), device=tokens.device)
    starts = (tokens == BOS).flatten() | (places % tokens.size(1) == 0)
    first = torch.nonzero_static(starts, size=tokens.numel(), fill_value=0).squeeze(1)
    return ((places - first[starts.cumsum(0) - 1]) % document_tokens == 0).view(tokens.shape)


def marked(tokens: Tensor, documents: bool) -> Tensor:
    """The tokens, whose BOS are the borders; without `documents`, tokens that make every row one document."""
    return tokens if documents else torch.zeros_like(tokens)


def document_mask(tokens: Tensor, last: int = 0, document_tokens: int = 0, window: int = 0) -> Tensor:
    """True where a position may attend to another: bool (B, 1, T, S), the `last` T positions (0 = all) of (B, S)."""
    ids, total = document_ids(tokens, document_tokens), tokens.size(1)
    last = last or total
    causal = torch.ones(last, total, dtype=torch.bool, device=tokens.device).tril(total - last)
    if window:
        causal = causal.triu(total - last - window + 1)
    return ((ids[:, -last:, None] == ids[:, None, :]) & causal)[:, None]


def document_borders(tokens: Tensor, document_tokens: int = 0) -> Tensor:
    """Beginnings of the documents when rows (B, T) are laid end to end: (N + 1,) int32, filled up with B * T.

    N depends only on the shape. Raises RuntimeError (on a GPU a device-side assertion) if there are more than N
    documents, because merged documents would see each other.
    """
    B, T = tokens.shape
    average, spare = (
        (_SHORTEST_AVERAGE_CUT, _SPARE_DOCUMENTS_CUT) if document_tokens else (_SHORTEST_AVERAGE, _SPARE_DOCUMENTS)
    )
    most = min(B * T, B + B * T // average + spare)
    starts = ((tokens == BOS) | (torch.arange(T, device=tokens.device) == 0)).flatten()
    first, count = torch.nonzero_static(starts, size=most, fill_value=B * T).squeeze(1), starts.sum()
    if document_tokens:
        first, num_pieces = _cut(F.pad(first, (0, 1), value=B * T), document_tokens)
        count = torch.where(count <= most, num_pieces, count)
    torch._assert_async(
        count <= most,
        f"model.attention.within_documents: a batch of {B} x {T} tokens has more than {most} documents, the limit of "
        "backends fa3, fa4 and varlen; use train.attention = flex, efficient or math",
    )
    return F.pad(first, (0, 1), value=B * T).to(torch.int32)


def _cut(borders: Tensor, document_tokens: int) -> tuple[Tensor, Tensor]:
    """Cut the documents between `borders`, (N + 1,), after every `document_tokens` tokens.

    Returns:
        The first tokens of the first N pieces, (N,) int64, filled up with the last border.
        The number of pieces, a scalar, which may be above N.
    """
    lengths = borders.diff()
    ends = ((lengths + document_tokens - 1) // document_tokens).cumsum(0)  # pieces up to the end of each document, (N,)
    piece = torch.arange(len(lengths), device=borders.device)
    document = torch.searchsorted(ends, piece, right=True).clamp(max=len(lengths) - 1)
    before = F.pad(ends, (1, 0))[document]  # pieces of the documents before
    first = borders[document] + document_tokens * (piece - before)
    return torch.where(piece < ends[-1], first, borders[-1]), ends[-1]


def document_backend(backend: str, document_tokens: int = 0) -> DocumentBackend:
    """The backend of `DOCUMENT_BACKENDS` with this name.

    Args:
        document_tokens: documents are cut after every so many tokens; 0 = never.
    Raises:
        ConfigError: the name is unknown, or the package of the backend is not installed.
    """
    if backend in _MASKED:
        mask = functools.partial(document_mask, document_tokens=document_tokens)
        return DocumentBackend(mask, functools.partial(_attend_masked, backend))
    if backend == "flex":
        return DocumentBackend(functools.partial(_block_mask, document_tokens=document_tokens), _attend_flex)
    if backend in ("fa3", "fa4", "varlen"):
        kernel = {"fa3": _fa3_kernel, "fa4": _fa4_kernel, "varlen": _varlen_kernel}[backend]()
        borders = functools.partial(document_borders, document_tokens=document_tokens)
        return DocumentBackend(borders, functools.partial(_attend_packed, kernel, document_tokens), is_masked=False)
    raise ConfigError(
        f"attention backend {backend!r} supports neither model.attention.within_documents = true nor "
        f"model.attention.window; allowed: auto, {', '.join(DOCUMENT_BACKENDS)}"
    )


_MASKED = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def _attend_masked(backend: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, window: int = 0) -> Tensor:
    """Attention under a boolean mask (B, 1, T, T)."""
    group = q.size(2) // k.size(2)
    if backend == "efficient" and group > 1:  # this kernel does not support head groups
        k, v, group = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2), 1
    with sdpa_kernel(_MASKED[backend]):
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, enable_gqa=group > 1
        )
    return y.transpose(1, 2)


def _block_mask(tokens: Tensor, document_tokens: int, window: int = 0) -> BlockMask:
    from torch.nn.attention.flex_attention import create_block_mask

    ids = document_ids(tokens, document_tokens)
    B, T = tokens.shape

    def attends(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        sees = (ids[row, query] == ids[row, key]) & (query >= key)
        return sees & (query - key < window) if window else sees

    return create_block_mask(attends, B, None, T, T, device=tokens.device)


def _attend_flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, window: int = 0) -> Tensor:
    """FlexAttention under a block mask. Its kernel must be compiled, so an eager model compiles it separately."""
    from torch.nn.attention.flex_attention import flex_attention

    is_compiled = torch.compiler.is_compiling() or q.device.type == "cpu"  # on CPUs it runs without a kernel
    kernel: Any = flex_attention if is_compiled else _compiled_flex()
    y: Tensor = kernel(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        block_mask=mask,
        enable_gqa=q.size(2) != k.size(2),
    )
    return y.transpose(1, 2)


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _attend_packed(
    kernel: Callable[..., Tensor],
    document_tokens: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    borders: Tensor,
    window: int = 0,
) -> Tensor:
    """Attention of sequences laid end to end; `kernel(q, k, v, borders, longest, window)` with q (B * T, H, K)."""
    longest = min(document_tokens or q.size(1), q.size(1))
    y = kernel(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), borders, longest, window)
    return y.view(q.shape)


def _fa3_kernel() -> Callable[..., Tensor]:
    try:
        from flash_attn_interface import flash_attn_varlen_func
    except ImportError as error:
        raise ConfigError(
            "attention backend fa3 needs the package flash_attn_interface (FlashAttention 3), which is not installed; "
            "use auto, flex, varlen, efficient or math"
        ) from error

    def kernel(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, longest: int, window: int) -> Tensor:
        y = flash_attn_varlen_func(
            q,
            k,
            v,
            cu_seqlens_q=borders,
            cu_seqlens_k=borders,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            causal=True,
            window_size=(window - 1, 0) if window else (-1, -1),  # positions to the left and to the right
        )
        return y[0] if isinstance(y, tuple) else y

    return kernel


def _fa4_kernel() -> Callable[..., Tensor]:
    try:
        import flash_attn.cute.interface  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"attention backend fa4 needs the package flash-attn-4, which cannot be imported ({error}); install "
            "bitgolf[hopper], or use auto, flex, varlen, efficient or math"
        ) from error
    from bitgolf.model.flash4 import fa4_forward

    def kernel(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, longest: int, window: int) -> Tensor:
        y: Tensor = fa4_forward(q, k, v, borders, longest, window)[0]
        return y

    return kernel


def _varlen_kernel() -> Callable[..., Tensor]:
    """PyTorch's own varlen call, which runs FlashAttention 2 on most GPUs."""
    parameters: Sequence[str] = ()
    try:
        from torch.nn.attention.varlen import varlen_attn

        parameters = list(inspect.signature(varlen_attn).parameters)
    except ImportError:
        pass  # before PyTorch 2.10
    if "window_size" not in parameters:
        raise ConfigError(
            "attention backend varlen needs torch.nn.attention.varlen.varlen_attn with its argument window_size, which "
            f"PyTorch {torch.__version__} does not have; use auto, flex, efficient or math"
        )
    has_enable_gqa = "enable_gqa" in parameters  # earlier versions accept grouped heads without this argument

    def kernel(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, longest: int, window: int) -> Tensor:
        options: dict[str, Any] = {"window_size": (window - 1, 0)}  # -1: all positions to the left; none to the right
        if has_enable_gqa and q.size(1) != k.size(1):
            options["enable_gqa"] = True
        y = varlen_attn(q, k, v, borders, borders, longest, longest, **options)
        assert isinstance(y, Tensor)
        return y

    return kernel
