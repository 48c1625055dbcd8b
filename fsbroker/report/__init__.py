"""Workflows as things to look at, to hand on and to bring elsewhere.

    executor that only plans (plan) ---\
                                        > calls -> graph -> layout -> svg, text (drawing)
    tasks in a spool (stored) ---------/        -> definition: Python Workflow Definition, JSON
                                                     -> steps: run by any executor
    tasks in a spool -> crate: an RO-Crate with their data -> arrival: another spool

Each module imports only from those to its right or below. None of them unpickles anything but
`plan` and `steps`, which see live objects.
"""
