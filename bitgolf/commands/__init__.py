"""The command line's own side: what each command reads from its arguments, prints, and how it shows progress."""
