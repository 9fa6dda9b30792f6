"""Audit of a submission folder, ours or a foreign one, as far as its files allow: nothing in it is ever executed.

`log`, `readme` and `code` read what is there; `limits`, `numbers` and `logs` recompute what it says; `conduct` looks in
logs and code for what the rules forbid (`patterns`); `run.audit_submission` puts them together.
"""
