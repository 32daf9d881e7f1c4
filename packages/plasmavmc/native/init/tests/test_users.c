/* Users are found as container engines find them, in tables that may be hostile. */

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "users.h"

static char etc[] = "/tmp/swg-users-XXXXXX";
static struct identity who;
static struct failure why;

static void write_table(const char *name, const char *text, size_t length)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", etc, name);
    unlink(path);
    FILE *table = fopen(path, "w");
    CHECK(table && fwrite(text, 1, length, table) == length);
    fclose(table);
}

static void write_usual_tables(void)
{
    static const char passwd[] = "root:x:0:0:root:/root:/bin/sh\n"
                                 "# a comment\n"
                                 "broken\n"
                                 "web:x:33:34:Web:/var/www:/bin/false\n"
                                 "odd:x:no:34::/:\n"
                                 "homeless:x:40:41\n";
    static const char group[] = "root:x:0:\nwww:x:34:\nssl:x:110:other,web\nlogs:x:111:web\nnear:x:112:webmaster\n";
    write_table("passwd", passwd, sizeof passwd - 1);
    write_table("group", group, sizeof group - 1);
}

static bool find(const char *text)
{
    return identity_find(etc, text, &who, &why);
}

static void test_a_name_brings_its_group_its_home_and_its_memberships(void)
{
    CHECK(find("web"));
    CHECK(who.uid == 33 && who.gid == 34 && !strcmp(who.home, "/var/www"));
    CHECK(who.group_count == 2 && who.groups[0] == 110 && who.groups[1] == 111);
    CHECK(find("33") && who.gid == 34 && who.group_count == 2);
}

static void test_a_given_group_replaces_the_others(void)
{
    CHECK(find("web:ssl") && who.uid == 33 && who.gid == 110 && who.group_count == 0);
    CHECK(find("web:500") && who.gid == 500);
    CHECK(find(":ssl") && who.uid == 0 && who.gid == 110);
}

static void test_a_number_that_no_line_knows_is_taken_as_it_is(void)
{
    CHECK(find("1000") && who.uid == 1000 && who.gid == 0 && !strcmp(who.home, "/"));
    CHECK(find("1000:1001") && who.uid == 1000 && who.gid == 1001);
    CHECK(find("") && who.uid == 0 && !strcmp(who.home, "/root"));
    CHECK(find("homeless") && who.uid == 40 && !strcmp(who.home, "/"));
}

static void test_names_that_are_not_there_are_refused(void)
{
    CHECK(!find("nobody-here") && !strcmp(why.code, "no-such-user"));
    CHECK(!find("web:nogroup") && !strcmp(why.code, "no-such-user"));
    CHECK(!find("odd") && !find("-1") && !find("4294967296") && !find("99999999999999"));
}

static void test_an_image_without_tables_knows_numbers_only(void)
{
    CHECK(identity_find("/nonexistent", "7:8", &who, &why) && who.uid == 7 && who.gid == 8);
    CHECK(!identity_find("/nonexistent", "web", &who, &why));
}

static void test_hostile_tables_do_no_harm(void)
{
    static char noise[200000];
    char path[128];
    unsigned random = 5;
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = "web:\n,0123456789\0"[next_random(&random) % 17];
    write_table("passwd", noise, sizeof noise);
    write_table("group", noise, sizeof noise);
    find("web");
    find("33:110");
    memset(noise, 'a', sizeof noise); /* one endless line, then a good one */
    memcpy(noise + sizeof noise - 34, "\nweb:x:33:34:Web:/var/www:/bin/sh\n", 34);
    write_table("passwd", noise, sizeof noise);
    CHECK(find("web") && who.uid == 33);
    snprintf(path, sizeof path, "%s/passwd", etc);
    unlink(path);
    CHECK(mkfifo(path, 0600) == 0);
    CHECK(!find("web")); /* and does not wait for a writer */
    unlink(path);
}

int main(void)
{
    char path[128];
    CHECK(mkdtemp(etc));
    write_usual_tables();
    test_a_name_brings_its_group_its_home_and_its_memberships();
    test_a_given_group_replaces_the_others();
    test_a_number_that_no_line_knows_is_taken_as_it_is();
    test_names_that_are_not_there_are_refused();
    test_an_image_without_tables_knows_numbers_only();
    test_hostile_tables_do_no_harm();
    snprintf(path, sizeof path, "%s/group", etc);
    unlink(path);
    CHECK(rmdir(etc) == 0);
    return 0;
}
