// The JSON that this agent takes: an object with one member, a string.

/** The string that an object has as its only member, with this name; null for any other text. */
export function member(text: string, name: string): string | null {
  const reader = new Reader(text);
  if (!reader.expect("{")) return null;
  const found = reader.string();
  if (found === null || found != name || !reader.expect(":")) return null;
  const value = reader.string();
  if (value === null || !reader.expect("}")) return null;
  return reader.atEnd() ? value : null;
}

class Reader {
  private at: i32 = 0;

  constructor(private text: string) {}

  /** The next UTF-16 unit, -1 at the end. */
  private next(): i32 {
    return this.at < this.text.length ? this.text.charCodeAt(this.at++) : -1;
  }

  private skipSpace(): void {
    while (this.at < this.text.length) {
      const code = this.text.charCodeAt(this.at);
      if (code != 32 && code != 9 && code != 10 && code != 13) return;
      this.at++;
    }
  }

  atEnd(): bool {
    this.skipSpace();
    return this.at == this.text.length;
  }

  expect(wanted: string): bool {
    this.skipSpace();
    return this.next() == wanted.charCodeAt(0);
  }

  string(): string | null {
    if (!this.expect('"')) return null;
    let found = "";
    let begin = this.at;
    let code = this.next();
    for (; code != 34; code = this.next()) {
      if (code < 32) return null;
      if (code != 92) continue;
      found += this.text.substring(begin, this.at - 1);
      const meant = this.escaped();
      if (meant < 0) return null;
      found += String.fromCharCode(meant);
      begin = this.at;
    }
    return found + this.text.substring(begin, this.at - 1);
  }

  /** What an escape stands for, -1 if JSON does not have it. Halves of a pair come one after the other. */
  private escaped(): i32 {
    const code = this.next();
    if (code == 34 || code == 92 || code == 47) return code;
    if (code == 98) return 8;
    if (code == 102) return 12;
    if (code == 110) return 10;
    if (code == 114) return 13;
    if (code == 116) return 9;
    if (code != 117) return -1;
    let value = 0;
    for (let i = 0; i < 4; i++) {
      const digit = this.next() | 32;
      if (digit >= 48 && digit <= 57) value = value * 16 + digit - 48;
      else if (digit >= 97 && digit <= 102) value = value * 16 + digit - 87;
      else return -1;
    }
    return value;
  }
}
