"""The local server of a model: a page that colors text by surprisal, and an OpenAI-style completions endpoint."""
