/*
 * failing: an agent that never succeeds, to see a refund happen.
 *
 * Input   anything; it is not read.
 * Output  nothing; one line on stderr, which becomes the log of the task.
 * Fails   always, with exit code 3.
 */
#include <stdio.h>

int main(void) {
    fputs("failing: this agent always fails, so the budget goes back\n", stderr);
    return 3;
}
