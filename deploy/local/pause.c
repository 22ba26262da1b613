/*
 * The first process of a pod's sandbox, and of a node's namespaces: it keeps
 * them alive and collects the orphans that end in them. Built by images.py.
 */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signal_number) {
    (void)signal_number;
    _exit(0);
}

int main(void) {
    struct sigaction on_end = {.sa_handler = end};
    struct sigaction on_child = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT};

    /* SA_NOCLDWAIT: the kernel collects the children by itself. */
    if (sigaction(SIGTERM, &on_end, NULL) != 0 || sigaction(SIGINT, &on_end, NULL) != 0 ||
        sigaction(SIGCHLD, &on_child, NULL) != 0)
        return EXIT_FAILURE;
    for (;;)
        pause();
}
