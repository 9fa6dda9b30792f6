"""Text in, token shards out: sources, tokenizers with exact byte accounting, the shard format, preparation.

`sources` yields documents, `tokenizer` turns them into ids and proves the bytes, `shards` stores the ids, and
`prepare` joins the three into a data directory. Nothing in this package but the loader imports torch, so the
processes that tokenize start quickly and stay small.
"""
