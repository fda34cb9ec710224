#!/bin/busybox sh
# The guest's first process: makes the machine usable, then does what the lab asks on a virtio serial port.
# A request is one line, "TOKEN SECONDS SCRIPT-OCTETS INPUT-OCTETS", then the script and its standard input.
# The answer is one line, "TOKEN STATUS OUTPUT-OCTETS ERROR-OCTETS", then the output and the errors.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin:/usr/local/bin HOME=/root
mount -t devtmpfs dev /dev 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts && mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
modprobe -a virtio_pci virtio_console virtio_net
ip link set lo up
mkdir /run/agent && cd /run/agent
until [ -c /dev/vport0p1 ] || [ -c /dev/vport1p1 ]; do usleep 10000; done
exec 3<>"$(echo /dev/vport*p1)"
echo "vtl: agent ready"
while :; do
    # Without a listener on the host a read ends at once.
    if ! read -r token seconds script input <&3; then usleep 10000; continue; fi
    [ -n "$input" ] || continue
    dd bs="$((script + input))" count=1 iflag=fullblock <&3 >request 2>/dev/null  # head(1) may read too much
    head -c "$script" request >script
    tail -c +"$((script + 1))" request >input
    (cd /root; timeout -s KILL "$seconds" sh /run/agent/script </run/agent/input >/run/agent/output 2>/run/agent/errors 3>&-)
    status=$?
    { echo "$token $status $(stat -c %s output) $(stat -c %s errors)"; cat output errors; } >&3
done
