/* Counts the words of a text and finds the most frequent one.
 *
 * Input   {"text": "..."}
 * Output  {"words":6,"unique":4,"top":"to","times":2}
 * Word    letters and digits; A to Z are taken as a to z. Every character beyond ASCII counts as a letter.
 * Fails   exit code 2 for a text without words or another input, 1 if memory or the output fails.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FAILED = 1, BAD_INPUT = 2, CHUNK = 65536 };

typedef struct {
    const unsigned char *at;
    size_t size;
} Word;

static _Noreturn void fail(int code, const char *why) {
    fprintf(stderr, "agent: %s\n", why);
    exit(code);
}

static unsigned char *read_input(void) {
    size_t room = CHUNK, size = 0, got;
    unsigned char *input = malloc(room);
    while (input != NULL && (got = fread(input + size, 1, room - size - 1, stdin)) > 0) {
        size += got;
        if (size == room - 1)
            input = realloc(input, room *= 2);
    }
    if (input == NULL)
        fail(FAILED, "not enough memory");
    input[size] = 0; /* ends every loop below: no JSON text contains a zero byte */
    return input;
}

/* ---- JSON: an object with the one member "text" -------------------------------------------------------------- */

static const char *const WANTED = "the input must be {\"text\": \"...\"}";

static unsigned char *skip_space(unsigned char *at) {
    while (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r')
        at++;
    return at;
}

static unsigned char *expect(unsigned char *at, unsigned char wanted) {
    at = skip_space(at);
    if (*at != wanted)
        fail(BAD_INPUT, WANTED);
    return at + 1;
}

static unsigned hex4(const unsigned char *at) {
    unsigned value = 0;
    for (int digit = 0; digit < 4; digit++) {
        unsigned char c = at[digit];
        if (c >= '0' && c <= '9')
            value = value * 16 + (c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            value = value * 16 + ((c | 32) - 'a' + 10);
        else
            fail(BAD_INPUT, "the input has a \\u without four hexadecimal digits");
    }
    return value;
}

static unsigned char *put_utf8(unsigned char *out, unsigned code) {
    if (code < 0x80) {
        *out++ = code;
    } else if (code < 0x800) {
        *out++ = 0xC0 | code >> 6;
        *out++ = 0x80 | (code & 0x3F);
    } else if (code < 0x10000) {
        *out++ = 0xE0 | code >> 12;
        *out++ = 0x80 | (code >> 6 & 0x3F);
        *out++ = 0x80 | (code & 0x3F);
    } else {
        *out++ = 0xF0 | code >> 18;
        *out++ = 0x80 | (code >> 12 & 0x3F);
        *out++ = 0x80 | (code >> 6 & 0x3F);
        *out++ = 0x80 | (code & 0x3F);
    }
    return out;
}

/* Decodes a string in its place, because it never becomes longer; `at` is behind its first quotation mark. */
static unsigned char *read_string(unsigned char *at, unsigned char **end) {
    static const char plain[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    unsigned char *out = at;
    while (*at != '"') {
        if (*at < 0x20)
            fail(BAD_INPUT, "the input has a string without an end");
        if (*at != '\\') {
            *out++ = *at++;
            continue;
        }
        const char *found = at[1] != 0 ? strchr(plain, at[1]) : NULL;
        if (found != NULL) {
            *out++ = meant[found - plain];
            at += 2;
        } else if (at[1] == 'u') {
            unsigned code = hex4(at + 2);
            at += 6;
            if (code >= 0xD800 && code < 0xDC00 && at[0] == '\\' && at[1] == 'u') {
                unsigned low = hex4(at + 2);
                if (low >= 0xDC00 && low < 0xE000) {
                    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                    at += 6;
                }
            }
            out = put_utf8(out, code >= 0xD800 && code < 0xE000 ? 0xFFFD : code);
        } else {
            fail(BAD_INPUT, "the input has an escape that JSON does not have");
        }
    }
    *end = out;
    return at + 1;
}

static Word read_text(void) {
    unsigned char *end, *at = expect(expect(read_input(), '{'), '"'), *name = at;
    at = read_string(at, &end);
    if (end - name != 4 || memcmp(name, "text", 4) != 0)
        fail(BAD_INPUT, WANTED);
    unsigned char *text = at = expect(expect(at, ':'), '"');
    at = skip_space(expect(read_string(at, &end), '}'));
    if (*at != 0)
        fail(BAD_INPUT, WANTED);
    return (Word){text, end - text};
}

/* ---- words --------------------------------------------------------------------------------------------------- */

static bool in_word(unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c > 127;
}

static int same_bytes_then_place(const void *left, const void *right) {
    const Word *a = left, *b = right;
    int order = memcmp(a->at, b->at, a->size < b->size ? a->size : b->size);
    if (order == 0)
        order = (a->size > b->size) - (a->size < b->size);
    return order != 0 ? order : (a->at > b->at) - (a->at < b->at);
}

static bool same(Word a, Word b) { return a.size == b.size && memcmp(a.at, b.at, a.size) == 0; }

int main(void) {
    Word text = read_text();
    Word *words = malloc((text.size / 2 + 1) * sizeof *words);
    if (words == NULL)
        fail(FAILED, "not enough memory");
    unsigned char *bytes = (unsigned char *)text.at;
    size_t count = 0, unique = 0, times = 0;
    for (size_t at = 0; at < text.size;) {
        size_t begin = at;
        for (; at < text.size && in_word(bytes[at]); at++)
            if (bytes[at] >= 'A' && bytes[at] <= 'Z')
                bytes[at] |= 32;
        if (at > begin)
            words[count++] = (Word){bytes + begin, at - begin};
        else
            at++;
    }
    if (count == 0)
        fail(BAD_INPUT, "the text has no words");
    qsort(words, count, sizeof *words, same_bytes_then_place);
    Word top = words[0];
    for (size_t first = 0, next; first < count; first = next) {
        for (next = first + 1; next < count && same(words[first], words[next]); next++)
            continue;
        unique++;
        if (next - first > times || (next - first == times && words[first].at < top.at)) {
            times = next - first;
            top = words[first];
        }
    }
    printf("{\"words\":%zu,\"unique\":%zu,\"top\":\"%.*s\",\"times\":%zu}\n", count, unique, (int)top.size, top.at,
           times);
    if (fflush(stdout) != 0 || ferror(stdout))
        fail(FAILED, "the output could not be written");
    return 0;
}
