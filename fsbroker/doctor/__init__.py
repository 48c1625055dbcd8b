"""What a file system really does, measured between processes, and between nodes.

hands      the file calls of one side, in a process of its own: `python -m fsbroker.doctor.hands`
partners   starting such processes here, by ssh, or by srun, and talking with them
probes     what is measured, between two sides
verdict    what that means, in plain words, and what fsbroker will do about it
"""
