#!/bin/sh
# Process 1 of the User-Mode Linux kernel: /run, and a few directories beside
# it, become writable; then the command in $UML_JOB runs, then the power goes.
#
# The root is the host's / without write access, so that the interpreter, the
# virtual environment and the tests are where they are on the host. For that
# reason nothing is mounted over /tmp, /home or /mnt: the repository may be there.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /run/home /run/tmp /run/out /run/modules/lib/modules
mount -t hostfs -o "$UML_OUT" none /run/out
export HOME=/run/home TMPDIR=/run/tmp PYTHONDONTWRITEBYTECODE=1
ip link set lo up

ln -s "/usr/lib/uml/modules/$(uname -r)" "/run/modules/lib/modules/$(uname -r)"
# shellcheck disable=SC2086  # a list; and few programs, as each takes 0.1 s in here
modprobe -d /run/modules -a loop $UML_MODULES

/run/out/job >/run/out/stdout 2>/run/out/stderr </dev/null
echo $? >/run/out/status
echo o >/proc/sysrq-trigger
sleep 5 # the power goes a moment later
