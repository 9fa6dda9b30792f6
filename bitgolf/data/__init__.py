"""From text to token shards: the first stage, `prepare`, and the loader of training.

`sources` yields documents, `split` assigns each document to training or validation, `tokenizer` turns documents into
token ids and proves the byte counts, `shards` stores the ids. `prepare_text` runs these four in order, and `prepare`
writes the result as a data directory. Training reads them with `row_order` and `loader`. Only these two import
torch, so the processes that tokenize start fast and use little memory.
"""
