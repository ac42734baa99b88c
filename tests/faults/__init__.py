"""Faults put into commands, files and option sets, thousands of them: `python -m tests.faults --help`.

Every outcome has to be right, or refused with one sentence and exit code 2. What was stopped, killed or repeated has to
end as what was never disturbed.
"""
