//! The JSON that this agent takes: an object with one member, a string.

use std::iter::Peekable;
use std::str::Chars;

/// The string that an object has as its only member, with this name.
pub fn member(text: &str, name: &str) -> Result<String, String> {
    read(text, name).ok_or_else(|| format!(r#"the input must be {{"{name}": "..."}}"#))
}

fn read(text: &str, name: &str) -> Option<String> {
    let mut rest = text.chars().peekable();
    expect(&mut rest, '{')?;
    if string(&mut rest)? != name {
        return None;
    }
    expect(&mut rest, ':')?;
    let value = string(&mut rest)?;
    expect(&mut rest, '}')?;
    skip_space(&mut rest);
    rest.next().is_none().then(|| value)
}

fn skip_space(rest: &mut Peekable<Chars>) {
    while matches!(rest.peek(), Some(' ' | '\t' | '\n' | '\r')) {
        rest.next();
    }
}

fn expect(rest: &mut Peekable<Chars>, wanted: char) -> Option<()> {
    skip_space(rest);
    (rest.next()? == wanted).then(|| ())
}

fn string(rest: &mut Peekable<Chars>) -> Option<String> {
    expect(rest, '"')?;
    let mut found = String::new();
    loop {
        match rest.next()? {
            '"' => return Some(found),
            '\\' => found.push(match rest.next()? {
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'u' => unicode(rest)?,
                same @ ('"' | '\\' | '/') => same,
                _ => return None,
            }),
            control if control < ' ' => return None,
            other => found.push(other),
        }
    }
}

/// What a `\u` stands for, with the second half of a pair.
fn unicode(rest: &mut Peekable<Chars>) -> Option<char> {
    let first = hex4(rest)?;
    if !(0xD800..0xDC00).contains(&first) {
        return Some(char::from_u32(first).unwrap_or('\u{FFFD}'));
    }
    let mut ahead = rest.clone();
    if ahead.next() == Some('\\') && ahead.next() == Some('u') {
        let second = hex4(&mut ahead)?;
        if (0xDC00..0xE000).contains(&second) {
            *rest = ahead;
            return char::from_u32(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00));
        }
    }
    Some('\u{FFFD}')
}

fn hex4(rest: &mut Peekable<Chars>) -> Option<u32> {
    (0..4).try_fold(0, |value, _| Some(value * 16 + rest.next()?.to_digit(16)?))
}
