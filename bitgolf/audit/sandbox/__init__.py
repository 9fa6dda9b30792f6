"""A sealed process: it holds the artifact and its libraries, and gets tokens only when they are to be scored.

`kernel`, `namespaces`, `landlock` and `system_calls` are the means of isolation. `isolation` applies them and tests
them. `process` is the program that runs inside, `evaluation` is what it evaluates, and `client.SealedProcess` starts it
and talks to it.
"""
