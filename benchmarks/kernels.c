/*
 * kernels: small programs, each with one kind of work, to measure the cost of metering.
 *
 * Input   the name of a kernel and a number of rounds: "sha256 20000"
 * Output  a checksum, so that the compiler cannot remove the work
 *
 * Built with the compiler of the example agents (see examples/agents/README.md):
 *   python -m ziglang cc -target wasm32-wasi -O2 -s -Wl,-z,stack-size=65536 -o kernels.wasm kernels.c
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t state = 12345;

static uint32_t next_random(void) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

/* Integers: the compression function of SHA-256, repeated. */
static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotated(uint32_t x, int n) { return x >> n | x << (32 - n); }

static double sha256(long rounds) {
    uint32_t h[8] = {1, 2, 3, 4, 5, 6, 7, 8}, w[64];
    while (rounds--) {
        for (int i = 0; i < 16; ++i) w[i] = h[i % 8] + (uint32_t)i;
        for (int i = 16; i < 64; ++i) {
            uint32_t s0 = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3;
            uint32_t s1 = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10;
            w[i] = w[i - 16] + s0 + w[i - 7] + s1;
        }
        uint32_t v[8];
        memcpy(v, h, sizeof v);
        for (int i = 0; i < 64; ++i) {
            uint32_t s1 = rotated(v[4], 6) ^ rotated(v[4], 11) ^ rotated(v[4], 25);
            uint32_t t1 = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + K[i] + w[i];
            uint32_t s0 = rotated(v[0], 2) ^ rotated(v[0], 13) ^ rotated(v[0], 22);
            uint32_t t2 = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
            memmove(v + 1, v, 7 * sizeof *v);
            v[4] += t1;
            v[0] = t1 + t2;
        }
        for (int i = 0; i < 8; ++i) h[i] += v[i];
    }
    return h[0];
}

/* Integers and branches that cannot be predicted. */
static double collatz(long rounds) {
    uint64_t longest = 0;
    for (uint64_t start = 1; start <= (uint64_t)rounds; ++start) {
        uint64_t steps = 0;
        for (uint64_t n = start; n != 1; ++steps) n = n & 1 ? 3 * n + 1 : n / 2;
        if (steps > longest) longest = steps;
    }
    return (double)longest;
}

/* Floats in registers. */
static double mandelbrot(long rounds) {
    long inside = 0;
    for (long y = 0; y < rounds; ++y)
        for (long x = 0; x < rounds; ++x) {
            double cr = 3.0 * (double)x / (double)rounds - 2.0, ci = 2.0 * (double)y / (double)rounds - 1.0, r = 0, i = 0;
            int n = 0;
            for (; n < 100 && r * r + i * i < 4.0; ++n) {
                double t = r * r - i * i + cr;
                i = 2.0 * r * i + ci;
                r = t;
            }
            inside += n == 100;
        }
    return (double)inside;
}

/* Floats in memory, with square roots and divisions. */
static double bodies(long rounds) {
    enum { COUNT = 5 };
    static double p[COUNT][3], v[COUNT][3], m[COUNT] = {39.5, 0.04, 0.01, 0.002, 0.002};
    for (int i = 0; i < COUNT; ++i)
        for (int k = 0; k < 3; ++k) p[i][k] = i * 5 + k * 1.5 + 0.1, v[i][k] = 0.01 * (i - k);
    while (rounds--) {
        for (int i = 0; i < COUNT; ++i)
            for (int j = i + 1; j < COUNT; ++j) {
                double d[3], square = 0.01;
                for (int k = 0; k < 3; ++k) d[k] = p[i][k] - p[j][k], square += d[k] * d[k];
                double force = 0.001 / (square * __builtin_sqrt(square));
                for (int k = 0; k < 3; ++k) v[i][k] -= d[k] * m[j] * force, v[j][k] += d[k] * m[i] * force;
            }
        for (int i = 0; i < COUNT; ++i)
            for (int k = 0; k < 3; ++k) p[i][k] += 0.001 * v[i][k];
    }
    return p[0][0] * 1e6;
}

/* Floats, loops in loops. */
static double matrices(long rounds) {
    enum { N = 96 };
    static double a[N][N], b[N][N], c[N][N];
    for (int i = 0; i < N; ++i)
        for (int j = 0; j < N; ++j) a[i][j] = i - j, b[i][j] = i + j;
    while (rounds--) {
        for (int i = 0; i < N; ++i)
            for (int j = 0; j < N; ++j) {
                double sum = 0;
                for (int k = 0; k < N; ++k) sum += a[i][k] * b[k][j];
                c[i][j] = sum;
            }
        a[0][0] += 1e-9 * c[N / 2][N / 3];
    }
    return c[1][1];
}

/* Memory: a walk through 8 MiB in random order; each step depends on the one before. */
static double chase(long rounds) {
    enum { N = 1 << 21 };
    static uint32_t next[N];
    for (uint32_t i = 0; i < N; ++i) next[i] = i;
    for (uint32_t i = N - 1; i > 0; --i) {
        uint32_t j = next_random() % i, t = next[i];
        next[i] = next[j];
        next[j] = t;
    }
    uint32_t at = 0;
    while (rounds--) at = next[at];
    return at;
}

/* Memory: two arrays of 4 MiB, read and written in order. */
static double stream(long rounds) {
    enum { N = 1 << 20 };
    static uint32_t from[N], to[N];
    for (uint32_t i = 0; i < N; ++i) from[i] = i;
    while (rounds--)
        for (uint32_t i = 0; i < N; ++i) to[i] += from[i] * 3 + 1;
    return to[N / 2];
}

/* Direct calls. */
static __attribute__((noinline)) long fibonacci(long n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

static double calls(long rounds) { return (double)fibonacci(rounds); }

/* Calls by function pointers: qsort. */
static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static double sorting(long rounds) {
    uint32_t *numbers = malloc((size_t)rounds * sizeof *numbers);
    if (!numbers) abort();
    for (long i = 0; i < rounds; ++i) numbers[i] = next_random();
    qsort(numbers, (size_t)rounds, sizeof *numbers, compare);
    double middle = numbers[rounds / 2];
    free(numbers);
    return middle;
}

/* Strings: search, byte by byte. */
static double searching(long rounds) {
    enum { LENGTH = 1 << 16 };
    static char text[LENGTH + 1];
    for (int i = 0; i < LENGTH; ++i) text[i] = (char)('a' + next_random() % 3);
    long found = 0;
    while (rounds--) {
        char word[9];
        for (int i = 0; i < 8; ++i) word[i] = (char)('a' + next_random() % 3);
        word[8] = 0;
        for (const char *at = text; (at = strstr(at, word)); ++at) ++found;
    }
    return (double)found;
}

/* Strings: format numbers, parse them and add them up. */
static double formatting(long rounds) {
    char text[64];
    double sum = 0;
    for (long i = 0; i < rounds; ++i) {
        snprintf(text, sizeof text, "%ld:%08x:%.6f", i, next_random(), (double)i / 7);
        sum += strtod(strrchr(text, ':') + 1, NULL);
    }
    return sum;
}

int main(void) {
    static const struct {
        const char *name;
        double (*run)(long rounds);
    } kernels[] = {{"sha256", sha256},       {"collatz", collatz}, {"mandelbrot", mandelbrot}, {"bodies", bodies},
                   {"matrices", matrices},   {"chase", chase},     {"stream", stream},         {"calls", calls},
                   {"sorting", sorting},     {"searching", searching}, {"formatting", formatting}};
    char name[32];
    long rounds;
    if (scanf("%31s %ld", name, &rounds) != 2 || rounds < 1) return 2;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; ++i)
        if (strcmp(name, kernels[i].name) == 0) {
            printf("%s %.0f\n", name, kernels[i].run(rounds));
            return fflush(stdout) != 0;
        }
    return 2;
}
