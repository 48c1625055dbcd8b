"""The benchmark: every budget of the design, beside the peers, in one run.

    __main__ -> budgets (what is measured, which limit) -> runner -> sample, sample, sample
                   |                                                 (a fresh process each)
                   +-> table

Each number comes from a process of its own (`sample`), which starts a pool, measures one
thing and compares every value before the number counts. The runner takes them in turns
(fsbroker, peer, fsbroker, peer, ...), so that a busy minute of the machine hits both sides,
and ratios are formed pair by pair.

    work.py      what the tasks do            trace.py      system calls, through strace
    peers.py     pools with one interface     processes.py  CPU time and memory, from /proc
    tasks.py     throughput, round trip, chain, shortest useful task
    storage.py   arrays, cached calls, pending tasks, starts
"""
