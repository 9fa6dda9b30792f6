"""The single-file program of a submission: `single_file` makes it, `readable_source` writes its sources beside it."""
