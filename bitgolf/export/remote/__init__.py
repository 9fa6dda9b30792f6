"""Files that `bitgolf export --to transformers` copies into the folder. They need no bitgolf."""
