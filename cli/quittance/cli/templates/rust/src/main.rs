//! Counts the words of a text and finds the most frequent one.
//!
//! Input   {"text": "..."}
//! Output  {"words":6,"unique":4,"top":"to","times":2}
//! Word    letters and digits; every character beyond ASCII counts as a letter; compared in lower case.
//! Fails   exit code 2 for a text without words or another input, 1 if the output fails.

mod json;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::process::exit;

const FAILED: i32 = 1;
const BAD_INPUT: i32 = 2;

fn main() {
    let mut sent = String::new();
    let found = match io::stdin().read_to_string(&mut sent) {
        Ok(_) => json::member(&sent, "text").and_then(|text| count(&text)),
        Err(error) => Err(error.to_string()),
    };
    match found {
        Err(why) => {
            eprintln!("agent: {why}");
            exit(BAD_INPUT)
        }
        Ok(found) => {
            if writeln!(io::stdout(), "{found}").is_err() {
                exit(FAILED)
            }
        }
    }
}

fn count(text: &str) -> Result<String, String> {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower
        .split(|c: char| c.is_ascii() && !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let mut times: HashMap<&str, usize> = HashMap::new();
    for word in &words {
        *times.entry(word).or_default() += 1;
    }
    let mut top = *words.first().ok_or("the text has no words")?;
    for word in &words {
        // not over the map, whose order is random
        if times[word] > times[top] {
            top = word;
        }
    }
    // A word has neither quotation marks nor control characters, so it needs no escapes.
    Ok(format!(
        r#"{{"words":{},"unique":{},"top":"{top}","times":{}}}"#,
        words.len(),
        times.len(),
        times[top]
    ))
}
