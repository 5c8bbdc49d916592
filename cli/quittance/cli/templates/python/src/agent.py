"""Counts the words of a text and finds the most frequent one.

Input   {"text": "..."}
Output  {"words":6,"unique":4,"top":"to","times":2}
Word    letters and digits; every character beyond ASCII counts as a letter; compared in lower case.
Fails   exit code 2 for a text without words or another input, 1 after an exception.
"""

import json
import re
import sys
from collections import Counter

BAD_INPUT = 2
WORD = re.compile(r"[^\0-/:-`{-\x7f]+")  # all but the ASCII characters that are neither letters nor digits


def read() -> str | None:
    """The text that was sent; None if the input is something else."""
    try:
        sent = json.load(sys.stdin)
    except ValueError:
        return None
    if not isinstance(sent, dict) or list(sent) != ["text"] or not isinstance(sent["text"], str):
        return None
    return sent["text"]


def main() -> int:
    """Run the agent; return its exit code."""
    text = read()
    if text is None:
        print('agent: the input must be {"text": "..."}', file=sys.stderr)
        return BAD_INPUT
    words = WORD.findall(text.lower())
    if not words:
        print("agent: the text has no words", file=sys.stderr)
        return BAD_INPUT
    (top, times), *_ = Counter(words).most_common(1)  # of several, the one that comes first
    found = {"words": len(words), "unique": len(set(words)), "top": top, "times": times}
    print(json.dumps(found, ensure_ascii=False, separators=(",", ":")))
    return 0


sys.exit(main())
