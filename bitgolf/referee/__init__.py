"""Audit of a submission folder, ours or a foreign one. Nothing in the folder is ever executed.

    folder, log, readme, code, texts      read the files, within limits
    form, limits, whole_split             checks of the files, the budgets and the validation split
    numbers, logs                         checks that recompute what the files say
    conduct                               checks of code and logs for what the rules forbid
    patterns, second_pass, shipped        what these look for in the syntax tree of the script

Every check is registered in `folder.submission_checks`. `run.audit_submission` makes them all.
"""
