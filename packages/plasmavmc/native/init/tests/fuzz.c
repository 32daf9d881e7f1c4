/*
 * The guest's parsers against bytes of anybody's making: `fuzz TARGET SECONDS CORPUS ARTIFACT`.
 *
 * Each file of the directory CORPUS is given to the target as it is; then, for SECONDS, changed in ways that a run can
 * repeat by its seed. Built with the sanitizers, so that what a parser does wrong ends the process; the bytes that did it
 * are then written to ARTIFACT. Checksums are made right again in every second input: chance never finds them.
 */

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <grp.h>
#include <sanitizer/asan_interface.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "config.h"
#include "copy.h"
#include "frame.h"
#include "tar.h"
#include "tlv.h"
#include "users.h"

enum { INPUT_MAX = 96 * 1024, INPUTS_MAX = 1024, NOBODY = 65534, HANG_S = 20 };
enum { CHECKSUM = 148, CHECKSUM_SIZE = 8, MAGIC = 257 }; /* of a tar header */

struct input {
    uint8_t *data;
    size_t length;
};

static struct input inputs[INPUTS_MAX];
static size_t input_count;
static uint8_t bytes[INPUT_MAX];
static size_t length;
static unsigned seed = 2463534242u;
static const char *artifact_path;
static int artifact, own_stderr, no_stderr;
static bool over;
static char scratch[] = "/tmp/swg-fuzz-XXXXXX";
static struct failure why;

/* The targets: each takes `bytes`. Their results do not matter, but that they come back and what the sanitizers say. */

static void fuzz_frame(void)
{
    static struct parser parser;
    static uint8_t stream[SYNC_SIZE + FRAME_HEADER + INPUT_MAX];
    const uint8_t *cursor = stream;
    memcpy(stream, sync_magic, SYNC_MAGIC);
    memset(stream + SYNC_MAGIC, 7, SYNC_NONCE);
    size_t head = SYNC_SIZE;
    if (length > 4 && length <= FRAME_MAX_PAYLOAD && next_random(&seed) % 2) {
        memcpy(stream + head + FRAME_HEADER, bytes, length);
        frame_seal(stream + head, bytes[0], bytes[1], (uint32_t)length);
        head += FRAME_HEADER;
    } else {
        memcpy(stream + head, bytes, length);
    }
    memset(&parser, 0, sizeof parser);
    for (enum parse_event event = PARSE_SYNC; event != PARSE_MORE;) {
        event = parser_next(&parser, &cursor, stream + head + length);
        CHECK(event != PARSE_FRAME || parser.frame.length <= FRAME_MAX_PAYLOAD);
    }
    CHECK(cursor == stream + head + length);
}

static void fuzz_tlv(void)
{
    struct tlv field;
    bool sound;
    const uint8_t *cursor = bytes, *end = bytes + length;
    while (tlv_next(&cursor, end, &field, &sound))
        CHECK(field.value >= bytes && field.value + field.length <= end);
}

static void fuzz_config(void)
{
    struct config config = {0};
    struct command command = {0};
    struct identity_card card = {0};
    struct copy copy;
    config_parse(&config, bytes, length, &why);
    config_forget_raw(&config);
    config_free(&config);
    command_parse(&command, bytes, length, &why);
    command_free(&command);
    card_parse(&card, bytes, length, &why);
    card_free(&card);
    copy_parse(&copy, length % 2, bytes, length, &why);
}

static int as_file(void)
{
    int file = memfd_create("input", MFD_CLOEXEC);
    CHECK(file >= 0 && write(file, bytes, length) == (ssize_t)length && lseek(file, 0, SEEK_SET) == 0);
    return file;
}

static void fuzz_tar(void)
{
    static struct tar_member member;
    int file = as_file();
    while (tar_next(file, &member) == TAR_MEMBER) {
        CHECK(memchr(member.path, '\0', sizeof member.path) && memchr(member.target, '\0', sizeof member.target));
        if (!tar_take_data(file, member.size, -1))
            break;
    }
    close(file);
}

static void write_table(const char *name, const uint8_t *text, size_t size)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", scratch, name);
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(file >= 0 && write(file, text, size) == (ssize_t)size);
    close(file);
}

/* A line with whom is looked for, passwd up to an empty line, and group. */
static void fuzz_users(void)
{
    static struct identity who;
    char text[128];
    const uint8_t *end = bytes + length;
    const uint8_t *line = memchr(bytes, '\n', length);
    const uint8_t *tables = line ? line + 1 : end;
    const uint8_t *split = memmem(tables, (size_t)(end - tables), "\n\n", 2);
    const uint8_t *group = split ? split + 2 : end;
    snprintf(text, sizeof text, "%.*s", line ? (int)(line - bytes) % 100 : 0, (const char *)bytes);
    write_table("passwd", tables, (size_t)((split ? split : end) - tables));
    write_table("group", group, (size_t)(end - group));
    if (identity_find(scratch, text, &who, &why))
        CHECK(who.group_count <= GROUPS_MAX && memchr(who.home, '\0', sizeof who.home));
}

static void nothing(void) {}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *place)
{
    (void)status, (void)kind;
    return place->level ? remove(path) : 0;
}

static size_t count_entries(const char *path)
{
    size_t count = 0;
    DIR *directory = opendir(path);
    CHECK(directory);
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

/* Whatever the archive says, all of it lies beneath the directory that was asked for, which has links out of it. */
static void fuzz_copy_in(void)
{
    struct copy copy = {.in = true, .name = "x"};
    char path[COPY_PATH_MAX + 8];
    int code, file = as_file();
    snprintf(copy.path, sizeof copy.path, "%s/in", scratch);
    CHECK(mkdir(copy.path, 0700) == 0);
    snprintf(path, sizeof path, "%s/out", copy.path);
    CHECK(symlink("..", path) == 0);
    CHECK(dup2(file, STDIN_FILENO) == STDIN_FILENO);
    close(file);
    CHECK(dup2(no_stderr, STDERR_FILENO) == STDERR_FILENO); /* a refusal is a line */
    copy_in(&copy, nothing, &why, &code);
    CHECK(dup2(own_stderr, STDERR_FILENO) == STDERR_FILENO);
    CHECK(count_entries(scratch) == 3);
    CHECK(nftw(copy.path, remove_entry, 16, FTW_DEPTH | FTW_PHYS) == 0 && rmdir(copy.path) == 0);
}

static const struct target {
    const char *name;
    void (*take)(void);
    bool is_tar;
} targets[] = {
    {"frame", fuzz_frame, false}, {"tlv", fuzz_tlv, false},     {"config", fuzz_config, false},
    {"tar", fuzz_tar, true},      {"users", fuzz_users, false}, {"copy_in", fuzz_copy_in, true},
};

/* Changes */

static size_t below(size_t bound)
{
    return bound ? next_random(&seed) % bound : 0;
}

static void insert(size_t at, const uint8_t *data, size_t count)
{
    if (length + count > INPUT_MAX)
        return;
    memmove(bytes + at + count, bytes + at, length - at);
    memmove(bytes + at, data, count);
    length += count;
}

static void change(void)
{
    static const uint8_t telling[] = {0, 1, 0x7f, 0x80, 0xff, '/', '.', ':', '=', '\n'};
    static uint8_t piece[INPUT_MAX];
    const struct input *other = &inputs[below(input_count)];
    size_t at = below(length + 1), count = below(length - at + 1);
    switch (below(5)) {
    case 0:
        if (length)
            bytes[below(length)] = telling[below(sizeof telling)];
        break;
    case 1:
        if (length)
            bytes[below(length)] = (uint8_t)next_random(&seed);
        break;
    case 2:
        memmove(bytes + at, bytes + at + count, length - at - count);
        length -= count;
        break;
    case 3:
        memcpy(piece, bytes + at, count);
        insert(at, piece, count);
        break;
    default:
        count = below(other->length + 1);
        insert(at, other->data + below(other->length - count + 1), count);
        break;
    }
}

/* Each block that may be a header gets the checksum that it should have. */
static void seal_blocks(void)
{
    for (size_t at = 0; at + TAR_BLOCK <= length; at += TAR_BLOCK) {
        uint8_t *block = bytes + at;
        unsigned sum = 0;
        if (memcmp(block + MAGIC, "ustar", 5) != 0)
            continue;
        memset(block + CHECKSUM, ' ', CHECKSUM_SIZE);
        for (size_t each = 0; each < TAR_BLOCK; each++)
            sum += block[each];
        snprintf((char *)block + CHECKSUM, CHECKSUM_SIZE, "%06o", sum);
    }
}

static void make_input(const struct target *target)
{
    const struct input *base = &inputs[below(input_count)];
    memcpy(bytes, base->data, base->length);
    length = base->length;
    for (size_t left = 1 + below(6); left; left--)
        change();
    if (target->is_tar && below(2))
        seal_blocks();
}

/* The run */

static void read_input(const char *directory, const char *name)
{
    char path[4096];
    struct input *input = &inputs[input_count];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(file >= 0 && input_count < INPUTS_MAX);
    ssize_t count = read(file, bytes, INPUT_MAX);
    close(file);
    if (count < 0)
        return; /* a directory */
    CHECK((input->data = malloc((size_t)count + 1)));
    memcpy(input->data, bytes, (size_t)count);
    input->length = (size_t)count;
    input_count++;
}

static void read_corpus(const char *path)
{
    DIR *directory = opendir(path);
    CHECK(directory);
    for (struct dirent *entry; (entry = readdir(directory));)
        if (entry->d_name[0] != '.')
            read_input(path, entry->d_name);
    closedir(directory);
    CHECK(input_count);
}

static void keep_input(void)
{
    if (!over && write(artifact, bytes, length) == (ssize_t)length)
        dprintf(own_stderr, "the input is in %s\n", artifact_path);
    over = true;
}

static void hang(int number)
{
    (void)number;
    keep_input();
    _exit(1);
}

/* What a parser of archives writes, it writes as nobody, in a directory of its own. */
static void confine(void)
{
    CHECK(mkdtemp(scratch));
    if (geteuid() == 0)
        CHECK(chown(scratch, NOBODY, NOBODY) == 0 && setgroups(0, NULL) == 0 &&
              setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0);
}

static void take(const struct target *target)
{
    alarm(HANG_S);
    target->take();
}

int main(int count, char **arguments)
{
    const struct target *target = targets, *end = targets + sizeof targets / sizeof *targets;
    CHECK(count == 5);
    while (target < end && strcmp(target->name, arguments[1]) != 0)
        target++;
    CHECK(target < end);
    artifact_path = arguments[4];
    artifact = open(artifact_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600); /* later we are nobody */
    own_stderr = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    no_stderr = open("/dev/null", O_WRONLY | O_CLOEXEC);
    __sanitizer_set_report_fd((void *)(intptr_t)own_stderr);
    read_corpus(arguments[3]);
    confine();
    __sanitizer_set_death_callback(keep_input);
    CHECK(atexit(keep_input) == 0);
    signal(SIGALRM, hang);
    for (size_t each = 0; each < input_count; each++) {
        length = inputs[each].length;
        memcpy(bytes, inputs[each].data, length);
        take(target);
    }
    unsigned long rounds = 0;
    for (time_t last = time(NULL) + atoi(arguments[2]); time(NULL) < last; rounds++) {
        make_input(target);
        take(target);
    }
    over = true;
    nftw(scratch, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    rmdir(scratch);
    printf("%s: %zu inputs and %lu changed ones\n", target->name, input_count, rounds);
    return 0;
}
