"""The single-file program of a submission; `single_file` makes it, `readable_source` lays its sources out beside it."""
