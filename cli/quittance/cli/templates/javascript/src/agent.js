// Counts the words of a text and finds the most frequent one.
//
// Input   {"text": "..."}
// Output  {"words":6,"unique":4,"top":"to","times":2}
// Word    letters and digits; every character beyond ASCII counts as a letter; compared in lower case.
// Fails   exit code 2 for a text without words or another input, 1 after an exception.

const BAD_INPUT = 2;

function fail(why) {
  console.error(`agent: ${why}`);
  agent.exit(BAD_INPUT);
}

/** The text that was sent; undefined if the input is something else. */
function read() {
  let sent;
  try {
    sent = JSON.parse(agent.input());
  } catch {
    return undefined;
  }
  const right = sent !== null && typeof sent === "object" && Object.keys(sent).join() === "text";
  return right && typeof sent.text === "string" ? sent.text : undefined;
}

const text = read();
if (text === undefined) fail('the input must be {"text": "..."}');
const words = text.toLowerCase().match(/[a-z0-9\u0080-\uffff]+/g) ?? [];
if (words.length === 0) fail("the text has no words");

const times = new Map();
for (const word of words) times.set(word, (times.get(word) ?? 0) + 1);
let top = words[0];
for (const [word, count] of times) if (count > times.get(top)) top = word; // of several, the one that comes first

console.log(JSON.stringify({ words: words.length, unique: times.size, top, times: times.get(top) }));
