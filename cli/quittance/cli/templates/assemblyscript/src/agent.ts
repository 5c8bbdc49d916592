// Counts the words of a text and finds the most frequent one.
//
// Input   {"text": "..."}
// Output  {"words":6,"unique":4,"top":"to","times":2}
// Word    letters and digits; every character beyond ASCII counts as a letter; compared in lower case.
// Fails   exit code 2 for a text without words or another input, 255 if AssemblyScript throws an exception.

import { member } from "./json";

const BAD_INPUT = 2;
const CHUNK = 65536;

/** All of stdin. */
function readInput(): string {
  let bytes = new ArrayBuffer(CHUNK);
  let length = 0;
  for (;;) {
    const got = process.stdin.read(bytes, length);
    if (got <= 0) break;
    length += got;
    if (length == bytes.byteLength) {
      const larger = new ArrayBuffer(2 * length);
      memory.copy(changetype<usize>(larger), changetype<usize>(bytes), length);
      bytes = larger;
    }
  }
  return String.UTF8.decodeUnsafe(changetype<usize>(bytes), length);
}

function fail(why: string): void {
  process.stderr.write("agent: " + why + "\n");
  process.exit(BAD_INPUT);
}

function inWord(code: i32): bool {
  return (code >= 97 && code <= 122) || (code >= 48 && code <= 57) || code > 127;
}

/** The words of a text, in lower case and in their order. */
function wordsOf(text: string): Array<string> {
  const lower = text.toLowerCase();
  const words = new Array<string>();
  let begin = 0;
  for (let at = 0; at <= lower.length; at++) {
    if (at < lower.length && inWord(lower.charCodeAt(at))) continue;
    if (at > begin) words.push(lower.substring(begin, at));
    begin = at + 1;
  }
  return words;
}

const text = member(readInput(), "text");
if (text === null) fail('the input must be {"text": "..."}');
const words = wordsOf(text!);
if (words.length == 0) fail("the text has no words");

const times = new Map<string, i32>();
for (let i = 0; i < words.length; i++) {
  times.set(words[i], times.has(words[i]) ? times.get(words[i]) + 1 : 1);
}
let top = words[0];
for (let i = 0; i < words.length; i++) {
  if (times.get(words[i]) > times.get(top)) top = words[i];
}
// A word has neither quotation marks nor control characters, so it needs no escapes.
process.stdout.write(
  `{"words":${words.length},"unique":${times.size},"top":"${top}","times":${times.get(top)}}\n`,
);
