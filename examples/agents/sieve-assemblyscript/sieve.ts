// sieve: counts the prime numbers up to a limit. It only computes, and its fuel
// grows with the limit.
//
// Input   a whole number from 0 to 1000000000, in decimal.
// Output  compact JSON: {"limit":100,"primes":25,"largest":97};
//         "largest" is null when there is no prime.
// Fails   exit code 2 and one line on stderr for any other input; exit code 255
//         when AssemblyScript throws an exception.

const LIMIT_MAX: i64 = 1_000_000_000;
const EXIT_BAD_INPUT = 2;

// The odd numbers are sieved in segments of this size, one byte per number, so
// the memory stays small for every limit.
const SEGMENT: u32 = 32 * 1024;

// The largest input is "1000000000" and some white space.
const INPUT_BYTES_MAX = 64;

/** Reads stdin, or only its beginning when it is too long to be a number. */
function readInput(): string {
  const buffer = new ArrayBuffer(INPUT_BYTES_MAX);
  let length = 0;
  while (length < INPUT_BYTES_MAX) {
    const got = process.stdin.read(buffer, length);
    if (got <= 0) break;
    length += got;
  }
  return String.UTF8.decode(buffer.slice(0, length)).trim();
}

/** Returns the limit that the text states, or -1 if it is invalid. */
function parseLimit(text: string): i64 {
  if (text.length == 0 || text.length > 10) return -1;
  if (text.length > 1 && text.charCodeAt(0) == 48) return -1;
  let value: i64 = 0;
  for (let i = 0; i < text.length; i++) {
    const digit = text.charCodeAt(i) - 48;
    if (digit < 0 || digit > 9) return -1;
    value = value * 10 + digit;
  }
  return value <= LIMIT_MAX ? value : -1;
}

/** The odd primes p with p * p <= limit, by trial division. */
function basePrimes(limit: u32): Array<u32> {
  const primes = new Array<u32>();
  for (let n: u32 = 3; n * n <= limit; n += 2) {
    let isPrime = true;
    for (let i = 0; i < primes.length && primes[i] * primes[i] <= n; i++) {
      if (n % primes[i] == 0) {
        isPrime = false;
        break;
      }
    }
    if (isPrime) primes.push(n);
  }
  return primes;
}

let count: u32 = 0;
let largest: u32 = 0;

/** Sieves the odd numbers from 3 to the limit; sets count and largest. */
function sieve(limit: u32): void {
  if (limit >= 2) {
    count = 1;
    largest = 2;
  }
  const primes = basePrimes(limit);
  const next = new StaticArray<u32>(primes.length); // the next multiple to mark
  for (let i = 0; i < primes.length; i++) next[i] = primes[i] * primes[i];
  const composite = new StaticArray<u8>(SEGMENT); // of the number low + 2 * index

  for (let low: u32 = 3; low <= limit; low += 2 * SEGMENT) {
    const length = min((limit - low) / 2 + 1, SEGMENT);
    memory.fill(changetype<usize>(composite), 0, SEGMENT);
    for (let i = 0; i < primes.length; i++) {
      const step = primes[i];
      let index = (next[i] - low) / 2;
      for (; index < length; index += step) unchecked((composite[index] = 1));
      next[i] = low + 2 * index;
    }
    for (let index: u32 = 0; index < length; index++) {
      if (unchecked(composite[index]) == 0) {
        count++;
        largest = low + 2 * index;
      }
    }
  }
}

const limit = parseLimit(readInput());
if (limit < 0) {
  process.stderr.write("sieve: the input must be a whole number from 0 to 1000000000\n");
  process.exit(EXIT_BAD_INPUT);
}
sieve(<u32>limit);
const found = count == 0 ? "null" : largest.toString();
process.stdout.write(`{"limit":${limit},"primes":${count},"largest":${found}}\n`);
