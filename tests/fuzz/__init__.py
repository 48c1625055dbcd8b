"""Readers of the spool, given bytes that nobody should have written.

corpus.py    real files, made by the real writers
mutate.py    damage that passes the checksums: what a hostile writer would write
targets.py   one target for each reader, and what it may answer
engine.py    many inputs, within limits of time and memory; findings
findings/    inputs that once broke a reader

python -m tests.fuzz TARGET --minutes 20      guided by coverage where atheris is installed
python -m tests.fuzz TARGET --input FILE      one input again
"""
