/*
 * wordcount: counts the words of a text.
 *
 * Input   JSON: {"text": "...", "top": 10} ("top" is optional, 0 to 1000),
 *         or only a JSON string, which is the text.
 * Output  compact JSON: {"words":9,"unique":7,"top":[["the",2],["a",1]]},
 *         the most frequent words first, equal counts in byte order.
 * Word    a run of ASCII letters, ASCII digits and bytes over 127. ASCII letters
 *         are lower-cased; other UTF-8 is passed through, so a word needs no
 *         escaping in the output.
 * Fails   exit code 2 and one line on stderr for any other input;
 *         exit code 1 when memory runs out or the output cannot be written.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOP_DEFAULT = 10, TOP_MAX = 1000, EXIT_BAD_INPUT = 2 };

static _Noreturn void fail(int code, const char *message) {
    fprintf(stderr, "wordcount: %s\n", message);
    exit(code);
}

static _Noreturn void bad_input(const char *message) { fail(EXIT_BAD_INPUT, message); }

static void *checked(void *memory) {
    if (memory == NULL) fail(1, "out of memory");
    return memory;
}

/* ---- input ------------------------------------------------------------- */

typedef struct {
    unsigned char *bytes;
    size_t length;
} Text;

/* Reads all of stdin and appends a zero byte, so that the parser below can read
 * one byte ahead without checking for the end: it never accepts a zero byte. */
static unsigned char *read_input(void) {
    size_t capacity = 1 << 16, length = 0, got;
    unsigned char *input = checked(malloc(capacity));
    while ((got = fread(input + length, 1, capacity - length, stdin)) > 0) {
        length += got;
        if (length == capacity) input = checked(realloc(input, capacity *= 2));
    }
    if (ferror(stdin)) fail(1, "cannot read the input");
    if (memchr(input, 0, length) != NULL) bad_input("zero byte in the input");
    input[length] = 0;
    return input;
}

static void skip_space(unsigned char **at) {
    while (**at == ' ' || **at == '\t' || **at == '\n' || **at == '\r') ++*at;
}

static void expect(unsigned char **at, char wanted, const char *message) {
    skip_space(at);
    if (**at != (unsigned char)wanted) bad_input(message);
    ++*at;
}

static uint32_t parse_hex4(unsigned char **at) {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i) {
        unsigned char c = *(*at)++;
        if (c >= '0' && c <= '9') value = value << 4 | (uint32_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f') value = value << 4 | (uint32_t)((c | 32) - 'a' + 10);
        else bad_input("\\u needs four hexadecimal digits");
    }
    return value;
}

/* Parses one code point after "\u"; it may be a surrogate pair. */
static uint32_t parse_code_point(unsigned char **at) {
    uint32_t high = parse_hex4(at);
    if (high < 0xD800 || high > 0xDFFF) return high;
    if (high > 0xDBFF || (*at)[0] != '\\' || (*at)[1] != 'u') bad_input("lone surrogate in a string");
    *at += 2;
    uint32_t low = parse_hex4(at);
    if (low < 0xDC00 || low > 0xDFFF) bad_input("lone surrogate in a string");
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
}

static unsigned char *put_utf8(unsigned char *to, uint32_t c) {
    if (c < 0x80) {
        *to++ = (unsigned char)c;
        return to;
    }
    if (c < 0x800) {
        *to++ = (unsigned char)(0xC0 | c >> 6);
    } else {
        if (c < 0x10000) {
            *to++ = (unsigned char)(0xE0 | c >> 12);
        } else {
            *to++ = (unsigned char)(0xF0 | c >> 18);
            *to++ = (unsigned char)(0x80 | (c >> 12 & 0x3F));
        }
        *to++ = (unsigned char)(0x80 | (c >> 6 & 0x3F));
    }
    *to++ = (unsigned char)(0x80 | (c & 0x3F));
    return to;
}

/* Decodes a JSON string in place: an escape is at least as long as its bytes. */
static Text parse_string(unsigned char **at) {
    expect(at, '"', "expected a JSON object or string");
    unsigned char *start = *at, *to = *at;
    for (;;) {
        unsigned char c = *(*at)++;
        if (c == '"') return (Text){start, (size_t)(to - start)};
        if (c < 0x20) bad_input(c == 0 ? "string without an end" : "control character in a string");
        if (c != '\\') {
            *to++ = c;
            continue;
        }
        switch (c = *(*at)++) {
            case '"': case '\\': case '/': *to++ = c; break;
            case 'b': *to++ = '\b'; break;
            case 'f': *to++ = '\f'; break;
            case 'n': *to++ = '\n'; break;
            case 'r': *to++ = '\r'; break;
            case 't': *to++ = '\t'; break;
            case 'u': to = put_utf8(to, parse_code_point(at)); break;
            default: bad_input("unknown escape in a string");
        }
    }
}

static uint32_t parse_top(unsigned char **at) {
    static const char *message = "\"top\" must be a whole number from 0 to 1000";
    skip_space(at);
    if (**at < '0' || **at > '9' || (**at == '0' && (*at)[1] >= '0' && (*at)[1] <= '9')) bad_input(message);
    uint32_t value = 0;
    while (**at >= '0' && **at <= '9') {
        value = value * 10 + (uint32_t)(*(*at)++ - '0');
        if (value > TOP_MAX) bad_input(message);
    }
    if (**at == '.' || (**at | 32) == 'e') bad_input(message);
    return value;
}

static int is_key(Text key, const char *name) {
    return key.length == strlen(name) && memcmp(key.bytes, name, key.length) == 0;
}

static Text parse_request(unsigned char *input, uint32_t *top) {
    Text text = {NULL, 0};
    int have_top = 0;
    unsigned char *at = input;
    skip_space(&at);
    if (*at != '{') {
        text = parse_string(&at);
    } else {
        ++at;
        skip_space(&at);
        while (*at != '}') {
            Text key = parse_string(&at);
            expect(&at, ':', "expected ':' after a key");
            skip_space(&at);
            if (is_key(key, "text")) {
                if (text.bytes != NULL) bad_input("\"text\" is given twice");
                if (*at != '"') bad_input("\"text\" must be a string");
                text = parse_string(&at);
            } else if (is_key(key, "top")) {
                if (have_top++) bad_input("\"top\" is given twice");
                *top = parse_top(&at);
            } else {
                bad_input("unknown key: only \"text\" and \"top\" are known");
            }
            skip_space(&at);
            if (*at == '}') break;
            expect(&at, ',', "expected ',' or '}' in the object");
            skip_space(&at);
            if (*at != '"') bad_input("expected a key after ','");
        }
        ++at;
        if (text.bytes == NULL) bad_input("\"text\" is missing");
    }
    skip_space(&at);
    if (*at != 0) bad_input("something follows the JSON value");
    return text;
}

/* ---- counting ---------------------------------------------------------- */

typedef struct {
    const unsigned char *bytes; /* NULL: a free slot */
    uint32_t length, hash, count;
} Word;

typedef struct {
    Word *slots;
    uint32_t capacity, used; /* the capacity is a power of two */
} Table;

/* Finds the word's slot, or the free one where it belongs (linear probing). */
static Word *find(const Table *table, const Word *word) {
    for (uint32_t i = word->hash;; ++i) {
        Word *slot = &table->slots[i & (table->capacity - 1)];
        if (slot->bytes == NULL) return slot;
        if (slot->hash == word->hash && slot->length == word->length &&
            memcmp(slot->bytes, word->bytes, word->length) == 0) return slot;
    }
}

static void resize(Table *table, uint32_t capacity) {
    Table larger = {checked(calloc(capacity, sizeof(Word))), capacity, table->used};
    for (uint32_t i = 0; i < table->capacity; ++i)
        if (table->slots[i].bytes != NULL) *find(&larger, &table->slots[i]) = table->slots[i];
    free(table->slots);
    *table = larger;
}

static void count_word(Table *table, const Word *word) {
    if (table->used * 2 >= table->capacity) resize(table, table->capacity * 2);
    Word *slot = find(table, word);
    if (slot->bytes == NULL) {
        *slot = *word;
        ++table->used;
    }
    ++slot->count;
}

static int is_word_byte(unsigned char c) {
    return c >= 0x80 || (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
}

/* Lower-cases the text in place and counts each of its words. */
static uint32_t count_words(Text text, Table *table) {
    uint32_t words = 0;
    size_t i = 0;
    for (;;) {
        while (i < text.length && !is_word_byte(text.bytes[i])) ++i;
        if (i == text.length) return words;
        Word word = {text.bytes + i, 0, 2166136261u, 0}; /* FNV-1a */
        for (; i < text.length && is_word_byte(text.bytes[i]); ++i, ++word.length) {
            if (text.bytes[i] >= 'A' && text.bytes[i] <= 'Z') text.bytes[i] |= 32;
            word.hash = (word.hash ^ text.bytes[i]) * 16777619u;
        }
        count_word(table, &word);
        ++words;
    }
}

/* ---- output ------------------------------------------------------------ */

static int by_rank(const void *left, const void *right) {
    const Word *a = left, *b = right;
    if (a->count != b->count) return a->count > b->count ? -1 : 1;
    int order = memcmp(a->bytes, b->bytes, a->length < b->length ? a->length : b->length);
    return order != 0 ? order : (a->length > b->length) - (a->length < b->length);
}

/* Moves the used slots to the front and sorts them. find() no longer works. */
static const Word *rank(Table *table) {
    uint32_t to = 0;
    for (uint32_t i = 0; i < table->capacity; ++i)
        if (table->slots[i].bytes != NULL) table->slots[to++] = table->slots[i];
    qsort(table->slots, to, sizeof(Word), by_rank);
    return table->slots;
}

int main(void) {
    uint32_t top = TOP_DEFAULT;
    Text text = parse_request(read_input(), &top);
    Table table = {NULL, 0, 0};
    resize(&table, 64);
    uint32_t words = count_words(text, &table);
    const Word *ranked = rank(&table);

    printf("{\"words\":%u,\"unique\":%u,\"top\":[", words, table.used);
    for (uint32_t i = 0; i < table.used && i < top; ++i)
        printf("%s[\"%.*s\",%u]", i == 0 ? "" : ",", (int)ranked[i].length, (const char *)ranked[i].bytes, ranked[i].count);
    printf("]}\n");
    if (fflush(stdout) != 0 || ferror(stdout)) fail(1, "cannot write the output");
    return 0;
}
