#!/bin/busybox sh
# What udhcpc runs in the guest: sets the interface up as the server said, and keeps what it said in /run/lease.
case "$1" in
deconfig)
    ip -4 addr flush dev "$interface"
    ip link set "$interface" up
    ;;
bound | renew)
    [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
    ip -4 addr flush dev "$interface"
    ip addr add "$ip/$mask" dev "$interface"
    for address in $router; do ip route add default via "$address" dev "$interface"; done
    for address in $dns; do echo "nameserver $address"; done >/etc/resolv.conf
    for name in ip mask router dns mtu lease serverid; do eval "echo $name \$$name"; done >/run/lease
    ;;
esac
