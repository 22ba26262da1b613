#!/bin/sh
# Furnishes the namespaces of a node, then keeps them: called by nodes.py through
# unshare, as the first process of new pid, mount, network, ipc and uts namespaces.
#
#   node-namespaces.sh NODE_FOLDER NODE_NAME PAUSE_PROGRAM
#
# The node sees the machine's files, but for the folders whose paths are fixed in
# kubelet and containerd: those come from NODE_FOLDER. Every mount made here, or by a
# container, ends with the namespace and is never seen by the machine.
set -eu

node=$1
name=$2
pause=$3

# Pods may share mounts with the node (mountPropagation), never with the machine.
mount --make-rshared /

# An overlay lets us add folders to /var/lib without touching the machine's.
mount -t tmpfs -o mode=0755 tmpfs "$node/overlay"
mkdir "$node/overlay/upper" "$node/overlay/work"
mount -t overlay -o "lowerdir=/var/lib,upperdir=$node/overlay/upper,workdir=$node/overlay/work" overlay /var/lib
mkdir -p /var/lib/kubelet /var/lib/dra-driver-vgpu
mount --bind "$node/kubelet" /var/lib/kubelet
mount --bind "$node/agent" /var/lib/dra-driver-vgpu
mount --bind "$node/log" /var/log
mount --bind "$node/run" /run
[ "$(readlink -f /var/run)" = /run ] || mount --bind "$node/run" /var/run

# A pod in a user namespace (hostUsers: false) may mount a proc of its own only where
# one is to be seen whole, and the one at /proc has files mounted over it below.
mkdir "$node/overlay/proc"
mount -t proc -o nosuid,nodev,noexec proc "$node/overlay/proc"

# The kubelet insists on these values and would write them for the whole machine:
# it finds them as it wants them instead.
sysctl() {
	[ -e "/proc/sys/$1" ] || return 0
	mkdir -p "$node/overlay/sysctl"
	file="$node/overlay/sysctl/$(echo "$1" | tr / .)"
	echo "$2" >"$file"
	mount --bind "$file" "/proc/sys/$1"
}
sysctl vm/overcommit_memory 1
sysctl vm/panic_on_oom 0
sysctl kernel/panic 10
sysctl kernel/panic_on_oops 1
sysctl kernel/keys/root_maxkeys 1000000
sysctl kernel/keys/root_maxbytes 25000000

echo "$name" >/proc/sys/kernel/hostname

echo ready
exec "$pause" </dev/null >/dev/null 2>&1
