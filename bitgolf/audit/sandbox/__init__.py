"""A sealed process: it holds the artifact and its libraries, and is told tokens only as they are to be scored.

`kernel`, `namespaces`, `landlock` and `system_calls` are the means of isolation, `walls` puts them up and tries them;
`process` is what runs inside, `evaluation` what it evaluates, and `client.SealedProcess` starts it and speaks to it.
"""
