"""`python -m benchmarks.gpu OUT_DIR`: everything a machine with a GPU should say, as one PASS/FAIL table.

session.py     one invocation: commands with a deadline and a log, what is kept in OUT_DIR from run to run
steps.py       the steps, as a table
selection.py   what --only may name
progress.py    a pytest plugin: which tests have passed, so that the next run goes on from there
table.py       the closing table
__main__.py    the command line
"""
