#!/bin/sh
# A microVM by hand: the line that the platform's VMs are started with, written out, and none of our code around it.
# Everything is given in the environment: KERNEL ACPI (on, or off for a kernel of our own configuration) INITRD ROOT LAYER
# TAP MAC MEMORY TSC_KHZ CONFIG (bytes for the guest's channel, made beforehand) and DIR (for the sockets).
# What the guest says on its channel is written to DIR/heard.
rm -f "$DIR/ctl" "$DIR/console" "$DIR/qmp"
(
    until [ -S "$DIR/ctl" ]; do sleep 0.005; done
    exec socat "OPEN:$CONFIG,ignoreeof!!CREATE:$DIR/heard" "UNIX-CONNECT:$DIR/ctl,retry=100,interval=0.01" 2>/dev/null
) &
exec /usr/bin/qemu-system-x86_64 -name floor -nodefaults -no-user-config -no-reboot -display none \
    -M "microvm,acpi=$ACPI,memory-backend=mem" -accel tcg,tb-size=32 -cpu max -smp cpus=1,sockets=1,cores=1,threads=1 -m "$MEMORY" \
    -object "memory-backend-memfd,id=mem,size=$MEMORY,share=on" \
    -kernel "$KERNEL" -initrd "$INITRD" \
    -append "console=ttyS0 reboot=t 8250.nr_uarts=1 no_timer_check quiet panic=-1 cryptomgr.notests audit=0 init_on_alloc=0 tsc=reliable tsc_early_khz=$TSC_KHZ" \
    -blockdev "driver=raw,node-name=d0,file.driver=file,file.filename=$ROOT,file.locking=off,read-only=on" \
    -device virtio-blk-device,drive=d0 \
    -blockdev "driver=raw,node-name=d1,file.driver=file,file.filename=$LAYER,file.locking=off,discard=unmap,file.discard=unmap" \
    -device virtio-blk-device,drive=d1,werror=report \
    -netdev "tap,id=n0,ifname=$TAP,script=no,downscript=no" -device "virtio-net-device,netdev=n0,mac=$MAC" \
    -device virtio-serial-device \
    -chardev "socket,id=c0,path=$DIR/ctl,server=on,wait=off" -device virtserialport,chardev=c0,name=ctl,nr=1 \
    -device virtio-balloon-device,free-page-reporting=on \
    -chardev "socket,id=s0,path=$DIR/console,server=on,wait=off" -serial chardev:s0 \
    -chardev "socket,id=q0,path=$DIR/qmp,server=on,wait=off" -mon chardev=q0,mode=control \
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
