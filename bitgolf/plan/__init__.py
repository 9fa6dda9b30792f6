"""What a run will need, before it starts: bytes, memory and seconds on this machine.

`predict` makes the numbers of `bitgolf plan`. `check` is the quick part that `bitgolf run` and `bitgolf train` make
first. Training reads nothing of this folder.
"""
