"""Mixed work for a long time, while everything that runs it is killed at random.

    work.py     what the tasks do; a client that submits them in waves and checks each value
    site.py     where it runs: local disk, NFS (in a User-Mode Linux kernel), SLURM; the strikes
    report.py   what the spool holds in the end, judged; memory, open files, directories

``./run soak --minutes 30 --on local,nfs,slurm`` prints a report, and fails on an anomaly.
"""
