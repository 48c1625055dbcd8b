"""What the tests test with: power cuts, other users, NFS and two kinds of MPI.

Each module owns one of them, cleans up after itself, and can say through
`missing()` (or, for `mpi`, by a LookupError) why it is not to be had here.
"""
