//! Reads JSON text from left to right, a value at a time, without building anything: pages are large, and nearly all
//! of a page is short strings. What is passed over is only checked as far as it takes to find its end.

use std::borrow::Cow;

use memchr::memchr2;

/// So many bytes of a string are looked at one by one.
const NEAR: usize = 16;

/// Why a text is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// It ends too early.
    Short,
    /// Something else is there than what should be.
    Syntax,
}

pub(super) type Result<T> = std::result::Result<T, Problem>;

/// A place in a text.
#[derive(Clone, Debug)]
pub(super) struct Json<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Json<'t> {
    /// The beginning of a text.
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, at: 0 }
    }

    /// The first byte of what comes next.
    pub(super) fn peek(&mut self) -> Result<u8> {
        loop {
            match self.text.as_bytes().get(self.at) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                Some(byte) => return Ok(*byte),
                None => return Err(Problem::Short),
            }
        }
    }

    /// Makes sure that nothing comes next.
    pub(super) fn end(&mut self) -> Result<()> {
        match self.peek() {
            Err(Problem::Short) => Ok(()),
            _ => Err(Problem::Syntax),
        }
    }

    fn take(&mut self, byte: u8) -> Result<()> {
        if self.peek()? != byte {
            return Err(Problem::Syntax);
        }
        self.at += 1;
        Ok(())
    }

    /// Reads an object; `member` is told each name and has to read or skip the value.
    pub(super) fn object(&mut self, mut member: impl FnMut(&mut Self, &str) -> Result<()>) -> Result<()> {
        self.members(|json| {
            let name = json.name()?;
            member(json, &name)
        })
    }

    /// Reads an object; `member` has to read or skip each name and its value.
    pub(super) fn members(&mut self, mut member: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.take(b'{')?;
        if self.peek()? == b'}' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.peek()?;
            member(self)?;
            if !self.goes_on(b'}')? {
                return Ok(());
            }
        }
    }

    /// Reads a member's name and what divides it from the value.
    pub(super) fn name(&mut self) -> Result<Cow<'t, str>> {
        let name = self.string()?;
        self.take(b':')?;
        Ok(name)
    }

    /// Where the reading has come to.
    pub(super) fn place(&self) -> usize {
        self.at
    }

    /// What was read since a place.
    pub(super) fn since(&self, place: usize) -> &'t str {
        &self.text[place..self.at]
    }

    /// Passes over a text if it is what stands here.
    pub(super) fn repeats(&mut self, text: &str) -> bool {
        let repeats = self.text.as_bytes()[self.at..].starts_with(text.as_bytes());
        if repeats {
            self.at += text.len();
        }
        repeats
    }

    /// Reads an array; `item` has to read or skip each value.
    pub(super) fn array(&mut self, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.take(b'[')?;
        if self.peek()? == b']' {
            self.at += 1;
            return Ok(());
        }
        loop {
            item(self)?;
            if !self.goes_on(b']')? {
                return Ok(());
            }
        }
    }

    /// Whether a comma follows, or else the closing bracket.
    fn goes_on(&mut self, closing: u8) -> Result<bool> {
        let byte = self.peek()?;
        self.at += 1;
        match byte {
            b',' => Ok(true),
            byte if byte == closing => Ok(false),
            _ => Err(Problem::Syntax),
        }
    }

    /// Reads a string.
    pub(super) fn string(&mut self) -> Result<Cow<'t, str>> {
        let (whole, has_escapes) = self.raw_string()?;
        if has_escapes {
            serde_json::from_str(whole).map(Cow::Owned).map_err(|_| Problem::Syntax)
        } else {
            Ok(Cow::Borrowed(&whole[1..whole.len() - 1]))
        }
    }

    /// Passes over a string; gives it back as it stands, quotes included, and whether anything in it is escaped.
    fn raw_string(&mut self) -> Result<(&'t str, bool)> {
        self.take(b'"')?;
        let (text, start) = (self.text, self.at - 1);
        let mut has_escapes = false;
        loop {
            let rest = text.as_bytes().get(self.at..).ok_or(Problem::Short)?;
            let is_special = |byte: &u8| matches!(byte, b'"' | b'\\');
            // Most strings are so short that a search would take longer to begin.
            let found = match rest.iter().take(NEAR).position(is_special) {
                Some(found) => found,
                None => {
                    NEAR + rest.get(NEAR..).and_then(|far| memchr2(b'"', b'\\', far)).ok_or(Problem::Short)?
                }
            };
            if rest[found] == b'"' {
                self.at += found + 1;
                return Ok((&text[start..self.at], has_escapes));
            }
            has_escapes = true;
            self.at += found + 2;
        }
    }

    /// Reads a string, or a number or `true` or `false` as its text; `null` is the empty text.
    pub(super) fn scalar(&mut self) -> Result<Cow<'t, str>> {
        match self.peek()? {
            b'"' => self.string(),
            b'{' | b'[' => Err(Problem::Syntax),
            _ => Ok(Cow::Borrowed(self.literal()?)),
        }
    }

    fn literal(&mut self) -> Result<&'t str> {
        let rest = &self.text[self.at..];
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let literal = &rest[..rest.find(|c| !is_part(c)).ok_or(Problem::Short)?];
        self.at += literal.len();
        match literal {
            "null" => Ok(""),
            "true" | "false" => Ok(literal),
            number if serde_json::from_str::<serde_json::Number>(number).is_ok() => Ok(number),
            _ => Err(Problem::Syntax),
        }
    }

    /// Passes over a value, however deep; gives it back as it stands.
    pub(super) fn skip(&mut self) -> Result<&'t str> {
        self.peek()?;
        let (text, start) = (self.text, self.at);
        let mut depth = 0u32;
        loop {
            match self.peek()? {
                b'"' => drop(self.raw_string()?),
                b'{' | b'[' => {
                    self.at += 1;
                    depth += 1;
                }
                b'}' | b']' if depth > 0 => {
                    self.at += 1;
                    depth -= 1;
                }
                b',' | b':' if depth > 0 => self.at += 1,
                _ => drop(self.literal()?),
            }
            if depth == 0 {
                return Ok(&text[start..self.at]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads any value as serde_json would.
    fn read(json: &mut Json<'_>) -> Result<serde_json::Value> {
        Ok(match json.peek()? {
            b'{' => {
                let mut members = serde_json::Map::new();
                json.object(|json, name| {
                    members.insert(name.to_owned(), read(json)?);
                    Ok(())
                })?;
                members.into()
            }
            b'[' => {
                let mut items = Vec::new();
                json.array(|json| {
                    items.push(read(json)?);
                    Ok(())
                })?;
                items.into()
            }
            b'"' => json.string()?.into_owned().into(),
            _ => match json.scalar()?.as_ref() {
                "" => serde_json::Value::Null,
                "true" => true.into(),
                "false" => false.into(),
                number => serde_json::from_str(number).map_err(|_| Problem::Syntax)?,
            },
        })
    }

    fn value() -> impl Strategy<Value = serde_json::Value> {
        let text = "[a\"\\\\\u{0}\n\u{e4}\u{1f600}{},:\\[\\]]{0,8}";
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            text.prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map(text, inner, 0..6)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_text_is_read_as_it_was_written(value in value(), pretty in any::<bool>()) {
            let object = serde_json::json!({ "v": value });
            let text = if pretty { serde_json::to_string_pretty(&object) } else { serde_json::to_string(&object) };
            let text = text.expect("a value");
            let mut json = Json::new(&text);
            prop_assert_eq!(read(&mut json), Ok(object));
            prop_assert_eq!(json.end(), Ok(()));
            let mut json = Json::new(&text);
            prop_assert_eq!(json.skip(), Ok(text.as_str()));
            prop_assert_eq!(json.end(), Ok(()));
            for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
                prop_assert!(read(&mut Json::new(&text[..end])).is_err(), "{}", &text[..end]);
                prop_assert!(Json::new(&text[..end]).skip().is_err());
            }
        }

        #[test]
        fn reading_never_panics(text in "[{}\\[\\]\":,\\\\a-zäu0-9 _.+-]{0,60}") {
            let _ = read(&mut Json::new(&text));
            let _ = Json::new(&text).skip();
        }
    }
}
