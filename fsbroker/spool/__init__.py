"""The on-disk protocol: the only code that touches a spool's files.

From the bottom up: `files` (every file call), `layout` (every name), `container` and
`publish` (how a file comes to be), `taskfile`, `log`, `streams`, `presence` (the four kinds
of state), `live`, `index`, `packs` (a process's view of them), `spool` (opening one). Beside
them `jobs` (the log of queue jobs), `sharing`, `trust` and `neighbours` (other users), `gc`,
`fsck`, `mend` and `touch` (upkeep).
"""
