"""The protocol, stepped by a seeded scheduler on a model of the file system.

    model.py       the disk (truth, durability), and one process's view of it
    alone.py       the same for tests of the model: one caller at a time
    scheduler.py   greenlets in one thread, virtual time, kills, stops, power loss
    actors.py      agents, clients and packers: the real sessions in plain loops
    invariants.py  what must hold after every step, read from the disk's truth
    breaks.py      the protocol with one rule left out: each must be caught
    world.py       a seed's scenario, from its first call to its last check

``python -m tests.sim --help`` runs many seeds, or one with its trace.
"""
