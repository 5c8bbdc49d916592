/*
 * misbehave: does on request what an agent should not do, to test the limits.
 *
 * Input   a command; N is a decimal number.
 *   exit N         end with exit code N
 *   trap           run the "unreachable" instruction
 *   loop           loop for ever
 *   memory         grow and touch the memory until it is refused, then trap
 *   flood          write to stdout for ever, even after writes fail
 *   stderr-flood   the same on stderr
 *   recurse        recurse without end
 *   oob            read beyond the end of the memory
 *   div0           divide by zero
 *   sleep N        sleep N seconds, then print "slept N"
 *   echo BYTES     copy the bytes after the one separator to stdout
 *   binary         write the bytes 0 to 255 to stdout
 *   size N         write N bytes "x" to stdout
 *   time           print both clocks, in nanoseconds
 *   random         print 16 random bytes as hexadecimal
 * Output  as stated above; most commands have none.
 * Fails   as requested; exit code 2 and a line on stderr for any other input,
 *         exit code 1 when a write or a system call fails.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { INPUT_BYTES_MAX = (1 << 20) + 64, PAGE_BYTES = 1 << 16 };

/* Volatile, so that the compiler cannot evaluate or remove the misbehaviour. */
static volatile int one = 1, zero = 0, depth = 0;

static char input[INPUT_BYTES_MAX + 1];
static char block[4096];

static _Noreturn void fail(int code, const char *message) {
    fprintf(stderr, "misbehave: %s\n", message);
    exit(code);
}

static size_t read_input(void) {
    size_t length = 0;
    ssize_t got;
    while ((got = read(STDIN_FILENO, input + length, INPUT_BYTES_MAX - length)) > 0) length += (size_t)got;
    if (got < 0) fail(1, "cannot read the input");
    input[length] = 0;
    return length;
}

static void write_all(const char *bytes, size_t length) {
    while (length > 0) {
        ssize_t written = write(STDOUT_FILENO, bytes, length);
        if (written <= 0) fail(1, "the output was refused");
        bytes += written;
        length -= (size_t)written;
    }
}

/* Writes exactly N bytes. */
static void write_size(long length) {
    memset(block, 'x', sizeof block);
    for (; length > (long)sizeof block; length -= (long)sizeof block) write_all(block, sizeof block);
    write_all(block, (size_t)length);
}

static _Noreturn void flood(int to) {
    memset(block, 'x', sizeof block);
    for (;;) (void)!write(to, block, sizeof block);
}

/* Grows the memory directly, without malloc, so that the count is exact. */
static _Noreturn void exhaust_memory(void) {
    size_t grown = 0, page;
    while ((page = __builtin_wasm_memory_grow(0, 1)) != SIZE_MAX) {
        *(volatile char *)(page * PAGE_BYTES) = 1;
        ++grown;
    }
    fprintf(stderr, "misbehave: memory was refused after %zu KiB more\n", grown * (PAGE_BYTES / 1024));
    abort();
}

/* Uses no linear memory, so that the call stack overflows. */
static __attribute__((noinline)) void recurse(void) {
    ++depth;
    if (one) recurse();
    --depth;
}

static long long nanoseconds(clockid_t clock) {
    struct timespec now;
    if (clock_gettime(clock, &now) != 0) fail(1, "the clock was refused");
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void sleep_seconds(long seconds) {
    struct timespec duration = {.tv_sec = seconds};
    if (nanosleep(&duration, NULL) != 0) fail(1, "the sleep was refused");
    printf("slept %ld\n", seconds);
}

static void print_random(void) {
    unsigned char bytes[16];
    if (getentropy(bytes, sizeof bytes) != 0) fail(1, "randomness was refused");
    for (size_t i = 0; i < sizeof bytes; ++i) printf("%02x", bytes[i]);
    printf("\n");
}

static long parse_number(const char *text) {
    char *end;
    long number = strtol(text, &end, 10);
    end += strspn(end, " \r\n");
    if (text[0] < '0' || text[0] > '9' || *end != 0) fail(2, "this command needs a number");
    return number;
}

int main(void) {
    size_t length = read_input();
    size_t word = strcspn(input, " \r\n");
    char *rest = input + word + (word < length);
    size_t rest_length = length - (size_t)(rest - input);
    input[word] = 0;

    if (strcmp(input, "exit") == 0) exit((int)parse_number(rest));
    else if (strcmp(input, "trap") == 0) __builtin_trap();
    else if (strcmp(input, "loop") == 0) for (;;) ++depth;
    else if (strcmp(input, "memory") == 0) exhaust_memory();
    else if (strcmp(input, "flood") == 0) flood(STDOUT_FILENO);
    else if (strcmp(input, "stderr-flood") == 0) flood(STDERR_FILENO);
    else if (strcmp(input, "recurse") == 0) recurse();
    else if (strcmp(input, "oob") == 0) return *(volatile int *)(0xFFFFFFF0u * (unsigned)one);
    else if (strcmp(input, "div0") == 0) return one / zero;
    else if (strcmp(input, "sleep") == 0) sleep_seconds(parse_number(rest));
    else if (strcmp(input, "echo") == 0) write_all(rest, rest_length);
    else if (strcmp(input, "binary") == 0) {
        for (int i = 0; i < 256; ++i) block[i] = (char)i;
        write_all(block, 256);
    }
    else if (strcmp(input, "size") == 0) write_size(parse_number(rest));
    else if (strcmp(input, "time") == 0)
        printf("realtime %lld\nmonotonic %lld\n", nanoseconds(CLOCK_REALTIME), nanoseconds(CLOCK_MONOTONIC));
    else if (strcmp(input, "random") == 0) print_random();
    else fail(2, "unknown command; see the list at the top of misbehave.c");
    if (fflush(stdout) != 0 || ferror(stdout)) fail(1, "the output was refused");
    return 0;
}
