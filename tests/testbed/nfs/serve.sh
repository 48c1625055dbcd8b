# shellcheck shell=sh
# To be read by a job inside the kernel (`. serve.sh`): an NFS server for
# versions 3 and 4.2 on the loopback, and two clients of each version.
#
# `nosharecache` gives each mount caches of its own: for what they see of each
# other's changes they are two hosts. The file server's time to forget a dead
# client is cut from 90 s to 10 s.
set -e

mount -t tmpfs tmpfs /var/lib/nfs
export NFS_EXPORT=/run/export
export V3A=/run/v3a V3B=/run/v3b V4A=/run/v4a V4B=/run/v4b
mkdir -p /run/rpcbind $NFS_EXPORT $V3A $V3B $V4A $V4B \
    /var/lib/nfs/sm /var/lib/nfs/sm.bak /var/lib/nfs/v4recovery \
    /var/lib/nfs/rpc_pipefs
: >/var/lib/nfs/rmtab
: >/var/lib/nfs/etab
: >/var/lib/nfs/state
mount -t nfsd nfsd /proc/fs/nfsd
mount -t rpc_pipefs rpc_pipefs /var/lib/nfs/rpc_pipefs

# ext4, not tmpfs: what a client may believe hangs on the server's change attributes.
truncate -s "${NFS_SIZE:-256M}" /run/export.image
mkfs.ext4 -q -I 256 /run/export.image
mount -o loop /run/export.image $NFS_EXPORT
chmod 777 $NFS_EXPORT

rpcbind -w
exportfs -i -o rw,no_root_squash,no_subtree_check,insecure,fsid=0 "*:$NFS_EXPORT"
rpc.nfsd -L 10 -G 10 4
rpc.mountd
rpc.statd --no-notify

mount_v3() {
    mount -t nfs -o "vers=3,proto=tcp,mountproto=tcp,nosharecache${2:+,$2}" \
        "127.0.0.1:$NFS_EXPORT" "$1"
}
mount_v4() {
    mount -t nfs4 -o "vers=4.2,proto=tcp,nosharecache${2:+,$2}" 127.0.0.1:/ "$1"
}

mount_v3 $V3A "${NFS_OPTIONS:-}"
mount_v3 $V3B "${NFS_OPTIONS:-}"
mount_v4 $V4A "${NFS_OPTIONS:-}"
mount_v4 $V4B "${NFS_OPTIONS:-}"
set +e
