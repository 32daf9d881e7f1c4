/* A web server in one static file: whatever is asked, it answers with what it was started with. For images `FROM scratch`. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

extern char **environ;

static void answer(FILE *client, int argc, char **argv) {
    char *body = NULL, place[4096];
    size_t size = 0;
    FILE *text = open_memstream(&body, &size);
    for (int n = 0; n < argc; n++)
        fprintf(text, "arg=%s\n", argv[n]);
    fprintf(text, "uid=%d\ngid=%d\ncwd=%s\n", getuid(), getgid(), getcwd(place, sizeof place));
    for (char **pair = environ; *pair; pair++)
        fprintf(text, "env=%s\n", *pair);
    fclose(text);
    fprintf(client, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s", size, body);
    free(body);
}

int main(int argc, char **argv) {
    const char *port = getenv("PORT");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port ? port : "8080"))};
    int listener = socket(AF_INET, SOCK_STREAM, 0), client;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 64) != 0) {
        perror("mirror");
        return 1;
    }
    printf("mirror listens\n");
    fflush(stdout);
    while ((client = accept(listener, NULL, NULL)) >= 0) {
        char line[4096];
        FILE *stream = fdopen(client, "r+");
        while (fgets(line, sizeof line, stream) && strcmp(line, "\r\n") != 0)
            ;
        fseek(stream, 0, SEEK_CUR);
        answer(stream, argc, argv);
        fclose(stream);
    }
    return 1;
}
