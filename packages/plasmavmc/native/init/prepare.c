#include "prepare.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "files.h"
#include "group.h"
#include "net.h"
#include "net6.h"
#include "root.h"
#include "volumes.h"

enum { ENTROPY_MAX = 512, TEXT_MAX = 4096 };

/* random(4); musl has no kernel headers of its own. */
#define ADD_ENTROPY _IOW('R', 0x03, int[2])
#define RESEED _IO('R', 0x07)

static void set_clock(uint64_t unix_time_ns)
{
    struct timespec time = {.tv_sec = (time_t)(unix_time_ns / 1000000000), .tv_nsec = (long)(unix_time_ns % 1000000000)};
    if (unix_time_ns && clock_settime(CLOCK_REALTIME, &time) < 0)
        say("cannot set the clock: %s", strerror(errno));
}

/* The host's randomness, counted in full: a VM just booted has hardly any of its own. */
static void add_entropy(const uint8_t *bytes, size_t length)
{
    struct {
        int bits, size;
        uint8_t bytes[ENTROPY_MAX];
    } pool = {0};
    if (length > ENTROPY_MAX)
        length = ENTROPY_MAX;
    int fd = length ? open("/dev/urandom", O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    pool.bits = (int)length * 8;
    pool.size = (int)length;
    memcpy(pool.bytes, bytes, length);
    if (ioctl(fd, ADD_ENTROPY, &pool) < 0 || ioctl(fd, RESEED) < 0)
        say("cannot seed the kernel's generator: %s", strerror(errno));
    explicit_bzero(&pool, sizeof pool);
    close(fd);
}

static void write_text(const char *path, const char *text)
{
    if (!write_file(path, text, strlen(text), 0644))
        say("cannot write %s: %s", path, strerror(errno));
}

static void write_hosts(const struct identity_card *card, const char *hostname)
{
    char text[TEXT_MAX], own[INET_ADDRSTRLEN] = "127.0.1.1";
    if (card->has_network)
        inet_ntop(AF_INET, &card->ipv4, own, sizeof own);
    snprintf(text, sizeof text, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n%s\t%s\n", own,
             hostname);
    write_text("/etc/hosts", text);
}

static void write_resolver(const struct texts *nameservers)
{
    char text[TEXT_MAX] = "";
    size_t used = 0;
    for (size_t i = 0; i < nameservers->count && used < sizeof text - 80; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "nameserver %.60s\n", nameservers->items[i]);
    if (used)
        write_text("/etc/resolv.conf", text);
}

static void set_names(const struct identity_card *card)
{
    char text[TEXT_MAX];
    const char *hostname = card->hostname && *card->hostname ? card->hostname : "vm";
    if (sethostname(hostname, strlen(hostname)) < 0)
        say("cannot set the host name: %s", strerror(errno));
    make_directories("/etc", 0755);
    snprintf(text, sizeof text, "%.255s\n", hostname);
    write_text("/etc/hostname", text);
    write_hosts(card, hostname);
    write_resolver(&card->nameservers);
}

static bool take_place(const struct identity_card *card, struct failure *failure)
{
    const uint8_t *mac = card->has_mac ? card->mac : NULL;
    bool private = card->has_ipv6 && card->has_gateway_mac;
    if (!card->has_network)
        return true;
    if (private)
        net6_prepare();
    if (!net_configure(mac, card->ipv4, card->gateway, failure))
        return false;
    if (private && !net6_configure(card->ipv6, card->gateway_mac))
        say("no private network: %s", strerror(errno));
    return true;
}

/* As in a container: any user may serve a low port, and ping. A kernel without the setting goes without. */
static void set_kernel_defaults(void)
{
    write_setting("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    write_setting("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
}

/* The file's place in the tree, made where it is missing: a file can only be mounted over a file. */
static bool make_place(const char *path)
{
    make_parents(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0644);
    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static bool place_file(const struct file *file, const char *shelf, size_t number, struct failure *failure)
{
    char kept[64];
    snprintf(kept, sizeof kept, "%s/%zu", shelf, number);
    if (!write_file(kept, file->content, file->length, (mode_t)file->mode) || !make_place(file->path) ||
        mount(kept, file->path, NULL, MS_BIND, NULL) < 0)
        return fail(failure, "bad-file", "cannot write %.200s: %s", file->path, strerror(errno));
    return true;
}

/*
 * Files hold secrets and must not come to lie on a disk of the host's, where the writable layer is: they live in
 * memory and are mounted into their places. The file system itself is then hidden from view.
 */
static bool place_files(const struct config *config, struct failure *failure)
{
    const char *shelf = "/dev/.files";
    bool placed = true;
    if (!config->file_count)
        return true;
    make_directories(shelf, 0700);
    if (mount("tmpfs", shelf, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700") < 0)
        return fail(failure, "bad-file", "cannot keep files in memory: %s", strerror(errno));
    for (size_t i = 0; placed && i < config->file_count; i++)
        placed = place_file(&config->files[i], shelf, i, failure);
    umount2(shelf, MNT_DETACH);
    rmdir(shelf);
    return placed;
}

bool prepare_guest(const struct config *config, struct failure *failure)
{
    const struct identity_card *card = &config->card;
    set_clock(card->unix_time_ns);
    add_entropy(card->entropy, card->entropy_length);
    group_make();
    if (!root_switch(failure) || !volumes_mount(config, failure))
        return false;
    set_kernel_defaults();
    set_names(card);
    net_loopback_up();
    if (!take_place(card, failure))
        return false;
    return place_files(config, failure);
}

/* 32 digits (machine-id(5)); an image without the file goes without. */
static void renew_machine_id(const uint8_t *id)
{
    static const char path[] = "/etc/machine-id";
    char text[2 * MACHINE_ID_SIZE + 2];
    if (is_missing_or_empty(path))
        return;
    for (size_t i = 0; i < MACHINE_ID_SIZE; i++)
        snprintf(text + 2 * i, 3, "%02x", id[i]);
    memcpy(text + 2 * MACHINE_ID_SIZE, "\n", 2);
    write_text(path, text);
}

static void write_generation(uint64_t generation)
{
    char text[32];
    snprintf(text, sizeof text, "%llu\n", (unsigned long long)generation);
    make_directories("/run/shellwego", 0755);
    if (!write_file("/run/shellwego/.generation", text, strlen(text), 0644) ||
        rename("/run/shellwego/.generation", "/run/shellwego/generation") < 0)
        say("cannot write the generation: %s", strerror(errno));
}

bool renew_guest(const struct identity_card *card, struct failure *failure)
{
    set_clock(card->unix_time_ns);
    add_entropy(card->entropy, card->entropy_length);
    if (!take_place(card, failure))
        return false;
    if (card->hostname)
        set_names(card);
    if (card->has_machine_id)
        renew_machine_id(card->machine_id);
    if (card->generation)
        write_generation(card->generation);
    return true;
}
