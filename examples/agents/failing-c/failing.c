/*
 * failing: an agent that always fails, to demonstrate a refund.
 *
 * Input   anything; it is not read.
 * Output  nothing; one line on stderr.
 * Fails   always, with exit code 3.
 */
#include <stdio.h>

int main(void) {
    fputs("failing: this agent always fails, so the budget goes back\n", stderr);
    return 3;
}
