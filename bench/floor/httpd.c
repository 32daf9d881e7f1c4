/* The smallest web server: answers every request with 200 and "ok". Its start costs nothing, so that what is measured is
 * everything around it. Static, for a scratch image. */
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char ANSWER[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";

static void serve(int client)
{
    char request[4096];
    size_t filled = 0;
    while (filled < sizeof request - 1) {
        ssize_t got = read(client, request + filled, sizeof request - 1 - filled);
        if (got <= 0)
            return;
        filled += (size_t)got;
        request[filled] = 0;
        if (strstr(request, "\r\n\r\n"))
            break;
    }
    if (write(client, ANSWER, sizeof ANSWER - 1) < 0)
        return;
}

int main(void)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8080)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64))
        return 1;
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0)
            continue;
        serve(client);
        close(client);
    }
}
