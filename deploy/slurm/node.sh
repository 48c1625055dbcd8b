#!/bin/sh
# node.sh DIR NAME: the first process of a pretend machine, in PID, UTS and mount namespaces of
# its own (tests/testbed/slurm.py makes them). The machine goes off, with all that runs on it,
# when this process is killed, or at the end of its standard input, which comes when nobody is
# left who holds the other end.
set -eu

# What others know this process by; inside, it is number 1.
read -r pid _ </proc/self/stat

hostname "$2"
# Programs that look for the processes of a job must see this machine's alone.
mount -t proc proc /proc
# Another machine, or this one switched on again, has another one.
cat /proc/sys/kernel/random/uuid >"$1/boot-$2"
mount --bind "$1/boot-$2" /proc/sys/kernel/random/boot_id
# MPI libraries put files there that are named by process number.
mount -t tmpfs shm /dev/shm
# mpiexec goes to the nodes of a job by their names.
mount --bind "$1/hosts" /etc/hosts

exec 3<&0
cat <&3 >/dev/null &
echo "$pid $!"
exec >/dev/null
# Meanwhile `wait` collects orphans of jobs, as the first process of a machine should.
wait $!
