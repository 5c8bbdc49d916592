/* JavaScript as an agent: QuickJS with just what an agent needs.
 *
 * The arguments are the script's name and its text, an ES module; `await` at its top level works.
 *
 *   agent.input()       all of stdin as a string; throws a TypeError if it is not UTF-8
 *   agent.inputBytes()  all of stdin as a Uint8Array
 *   agent.write(value)  a string, or the bytes of a Uint8Array, to stdout
 *   agent.exit(code)    ends the run: 0 is success, 1 to 125 are failures
 *   console.log(...), console.error(...)  one line to stdout, or to stderr
 *
 * An exception that nothing catches, a rejected promise that nothing handles and a script that waits for ever end the
 * run with code 1 and a line on stderr.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quickjs.h"

enum { FAILED = 1, CODE_MAX = 125, CHUNK = 65536, STACK_BYTES = 192 * 1024 };

static const char *input;
static size_t input_size;
static JSValue unhandled; /* the promise whose rejection nothing has handled so far */
static bool has_unhandled;

static _Noreturn void finish(int code) {
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fputs("agent: the output could not be written\n", stderr);
        code = code != 0 ? code : FAILED;
    }
    exit(code);
}

static _Noreturn void fail(const char *why) {
    fprintf(stderr, "agent: %s\n", why);
    finish(FAILED);
}

static void read_input(void) {
    if (input != NULL)
        return;
    char *bytes = malloc(CHUNK);
    size_t room = CHUNK, got;
    if (bytes == NULL)
        fail("not enough memory for the input");
    while ((got = fread(bytes + input_size, 1, room - input_size, stdin)) > 0) {
        input_size += got;
        if (input_size == room) {
            room *= 2;
            bytes = realloc(bytes, room);
            if (bytes == NULL)
                fail("not enough memory for the input");
        }
    }
    if (ferror(stdin))
        fail("the input could not be read");
    input = bytes;
}

static bool is_utf8(const unsigned char *at, size_t size) {
    const unsigned char *end = at + size;
    while (at < end) {
        unsigned first = *at++, more, least, code;
        if (first < 0x80)
            continue;
        if (first >= 0xC2 && first < 0xE0)
            more = 1, least = 0x80, code = first & 0x1F;
        else if (first >= 0xE0 && first < 0xF0)
            more = 2, least = 0x800, code = first & 0x0F;
        else if (first >= 0xF0 && first < 0xF5)
            more = 3, least = 0x10000, code = first & 0x07;
        else
            return false;
        for (; more > 0; more--) {
            if (at == end || (*at & 0xC0) != 0x80)
                return false;
            code = code << 6 | (*at++ & 0x3F);
        }
        if (code < least || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
            return false;
    }
    return true;
}

static JSValue agent_input(JSContext *context, JSValueConst this, int count, JSValueConst *values) {
    (void)this, (void)count, (void)values;
    read_input();
    if (!is_utf8((const unsigned char *)input, input_size))
        return JS_ThrowTypeError(context, "the input is not UTF-8");
    return JS_NewStringLen(context, input, input_size);
}

static JSValue agent_input_bytes(JSContext *context, JSValueConst this, int count, JSValueConst *values) {
    (void)this, (void)count, (void)values;
    read_input();
    return JS_NewUint8ArrayCopy(context, (const uint8_t *)input, input_size);
}

static JSValue agent_write(JSContext *context, JSValueConst this, int count, JSValueConst *values) {
    (void)this;
    if (count < 1)
        return JS_ThrowTypeError(context, "agent.write needs a value");
    size_t size;
    if (JS_GetTypedArrayType(values[0]) == JS_TYPED_ARRAY_UINT8) {
        const uint8_t *bytes = JS_GetUint8Array(context, &size, values[0]);
        if (bytes == NULL && size > 0)
            return JS_EXCEPTION;
        fwrite(bytes, 1, size, stdout);
        return JS_UNDEFINED;
    }
    const char *text = JS_ToCStringLen(context, &size, values[0]);
    if (text == NULL)
        return JS_EXCEPTION;
    fwrite(text, 1, size, stdout);
    JS_FreeCString(context, text);
    return JS_UNDEFINED;
}

static JSValue agent_exit(JSContext *context, JSValueConst this, int count, JSValueConst *values) {
    (void)this;
    int32_t code = 0;
    if (count > 0 && JS_ToInt32(context, &code, values[0]) != 0)
        return JS_EXCEPTION;
    if (code < 0 || code > CODE_MAX)
        return JS_ThrowRangeError(context, "agent.exit takes a code from 0 to %d", CODE_MAX);
    finish(code);
}

static JSValue print_line(JSContext *context, JSValueConst this, int count, JSValueConst *values, int to_stderr) {
    (void)this;
    FILE *file = to_stderr ? stderr : stdout;
    for (int at = 0; at < count; at++) {
        size_t size;
        const char *text = JS_ToCStringLen(context, &size, values[at]);
        if (text == NULL)
            return JS_EXCEPTION;
        if (at > 0)
            fputc(' ', file);
        fwrite(text, 1, size, file);
        JS_FreeCString(context, text);
    }
    fputc('\n', file);
    return JS_UNDEFINED;
}

static void add_function(JSContext *context, JSValueConst object, const char *name, JSCFunction *function, int length) {
    JS_SetPropertyStr(context, object, name, JS_NewCFunction(context, function, name, length));
}

static void add_globals(JSContext *context) {
    JSValue global = JS_GetGlobalObject(context), agent = JS_NewObject(context), console = JS_NewObject(context);
    add_function(context, agent, "input", agent_input, 0);
    add_function(context, agent, "inputBytes", agent_input_bytes, 0);
    add_function(context, agent, "write", agent_write, 1);
    add_function(context, agent, "exit", agent_exit, 1);
    JS_SetPropertyStr(context, console, "log", JS_NewCFunctionMagic(context, print_line, "log", 1,
                                                                    JS_CFUNC_generic_magic, false));
    JS_SetPropertyStr(context, console, "error", JS_NewCFunctionMagic(context, print_line, "error", 1,
                                                                      JS_CFUNC_generic_magic, true));
    JS_SetPropertyStr(context, global, "agent", agent);
    JS_SetPropertyStr(context, global, "console", console);
    JS_FreeValue(context, global);
}

static void note_rejection(JSContext *context, JSValueConst promise, JSValueConst reason, bool handled, void *data) {
    (void)reason, (void)data;
    if (!handled && !has_unhandled) {
        has_unhandled = true;
        unhandled = JS_DupValue(context, promise);
    } else if (handled && has_unhandled && JS_IsStrictEqual(context, promise, unhandled)) {
        has_unhandled = false;
        JS_FreeValue(context, unhandled);
    }
}

static _Noreturn void fail_with(JSContext *context, JSValue reason) {
    const char *text = JS_ToCString(context, reason);
    fprintf(stderr, "%s\n", text != NULL ? text : "an exception that has no text");
    if (JS_IsError(reason)) {
        JSValue stack = JS_GetPropertyStr(context, reason, "stack");
        const char *lines = JS_IsUndefined(stack) ? NULL : JS_ToCString(context, stack);
        if (lines != NULL)
            fputs(lines, stderr);
    }
    finish(FAILED);
}

int main(int count, char **arguments) {
    if (count < 2)
        fail("this module contains no script");
    JSRuntime *runtime = JS_NewRuntime();
    JSContext *context = runtime != NULL ? JS_NewContext(runtime) : NULL;
    if (context == NULL)
        fail("not enough memory");
    JS_SetMaxStackSize(runtime, STACK_BYTES);
    JS_SetHostPromiseRejectionTracker(runtime, note_rejection, NULL);
    add_globals(context);
    JSValue done = JS_Eval(context, arguments[1], strlen(arguments[1]), arguments[0], JS_EVAL_TYPE_MODULE);
    if (JS_IsException(done))
        fail_with(context, JS_GetException(context));
    int jobs;
    JSContext *of_job;
    while ((jobs = JS_ExecutePendingJob(runtime, &of_job)) > 0)
        continue;
    if (jobs < 0)
        fail_with(of_job, JS_GetException(of_job));
    if (JS_PromiseState(context, done) == JS_PROMISE_REJECTED)
        fail_with(context, JS_PromiseResult(context, done));
    if (has_unhandled)
        fail_with(context, JS_PromiseResult(context, unhandled));
    if (JS_PromiseState(context, done) == JS_PROMISE_PENDING)
        fail("the script waits for something that never comes");
    finish(0);
}
