"""The single-file program of a submission; `bundle` makes it, `readable_source` lays its sources out beside it."""
