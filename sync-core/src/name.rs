//! What is locked and under which prefix: parsed once, refused before anything is sent.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// Longest name in bytes, before it is encoded for a store.
pub const LONGEST_NAME: usize = 200;

/// As much of a name as an error shows that is too long to be one.
const EXCERPT: usize = 40;

/// A name as errors show it.
pub(crate) fn shown(name: &str) -> Cow<'_, str> {
    match name.char_indices().nth(EXCERPT) {
        Some((end, _)) if name.len() > LONGEST_NAME => format!("{}…", &name[..end]).into(),
        _ => name.into(),
    }
}

/// Segments that the key layout uses itself. A namespace of one of these would make the keys of
/// one namespace the names of another.
const RESERVED: [&str; 5] = ["lock", "leader", "line", "void", "wake"];

/// Whether a claim is a lock or a leadership. The two never disturb each other, whatever their names.
///
/// ```
/// assert_eq!(sync_core::Kind::Leader.as_str(), "leader");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Mutual exclusion.
    Lock,
    /// Leadership in an election.
    Leader,
}

impl Kind {
    /// The segment that stands for this kind in every key.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Lock => "lock",
            Kind::Leader => "leader",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of a lock or an election: 1 to 200 bytes of UTF-8 without control characters.
///
/// ```
/// use sync_core::Name;
///
/// let name = Name::parse("reports/nightly")?;
/// assert_eq!(name.encoded(), "reports=2Fnightly");
/// assert!(Name::parse("").is_err());
/// # Ok::<(), sync_core::InvalidName>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Reads a name.
    ///
    /// # Errors
    /// When it is empty, longer than 200 bytes, or holds a control character.
    pub fn parse(name: &str) -> Result<Self, InvalidName> {
        check(name)?;
        Ok(Self(name.into()))
    }

    /// The name as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as every store's keys carry it: its bytes, those outside `[A-Za-z0-9_-]` written
    /// as `=XX`. No two names encode alike, and none holds a separator of any store.
    #[must_use]
    pub fn encoded(&self) -> String {
        encode(&self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The prefix under which all keys of a coordinator stand: one or more segments joined by `/`.
///
/// Each segment follows the rules of a [`Name`]; `lock`, `leader`, `line`, `void` and `wake` are
/// refused as segments.
///
/// ```
/// use sync_core::Namespace;
///
/// let namespace = Namespace::parse("billing/eu")?;
/// assert_eq!(namespace.joined(':'), "billing:eu");
/// assert_eq!(Namespace::default().as_str(), "sync");
/// assert!(Namespace::parse("billing/lock").is_err());
/// # Ok::<(), sync_core::InvalidName>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// Reads a namespace.
    ///
    /// # Errors
    /// When it or one of its segments is empty, too long, reserved, or holds a control character.
    pub fn parse(namespace: &str) -> Result<Self, InvalidName> {
        for segment in namespace.split('/') {
            if segment.is_empty() && !namespace.is_empty() {
                return Err(InvalidName::EmptySegment);
            }
            check(segment)?;
            if RESERVED.contains(&segment) {
                return Err(InvalidName::Reserved(segment.to_owned()));
            }
        }
        if namespace.len() > LONGEST_NAME {
            return Err(InvalidName::TooLong(namespace.len()));
        }
        Ok(Self(namespace.into()))
    }

    /// The namespace as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its encoded segments with `separator` between them: the beginning of every key.
    #[must_use]
    pub fn joined(&self, separator: char) -> String {
        let segments: Vec<String> = self.0.split('/').map(encode).collect();
        segments.join(&separator.to_string())
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self("sync".into())
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Why a name or a namespace was refused.
///
/// ```
/// let refused = sync_core::Name::parse("a\nb").unwrap_err();
/// assert_eq!(refused.to_string(), "the name holds the control character '\\n'");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidName {
    /// Nothing was given.
    Empty,
    /// Nothing stands before, after or between slashes of a namespace.
    EmptySegment,
    /// More than 200 bytes: how many there were.
    TooLong(usize),
    /// A control character, which logs and other tools would mangle.
    Control(char),
    /// A segment of a namespace that the key layout uses itself.
    Reserved(String),
}

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InvalidName::Empty => f.write_str("the name is empty"),
            InvalidName::EmptySegment => f.write_str(
                "a segment of the namespace is empty: it may neither begin nor end with a slash, \
                 nor hold two in a row",
            ),
            InvalidName::TooLong(bytes) => {
                write!(f, "the name has {bytes} bytes, at most {LONGEST_NAME} are allowed")
            }
            InvalidName::Control(c) => write!(f, "the name holds the control character {c:?}"),
            InvalidName::Reserved(segment) => {
                write!(
                    f,
                    "the namespace segment {segment:?} is one that the key layout uses itself"
                )
            }
        }
    }
}

impl std::error::Error for InvalidName {}

fn check(name: &str) -> Result<(), InvalidName> {
    if name.is_empty() {
        return Err(InvalidName::Empty);
    }
    if name.len() > LONGEST_NAME {
        return Err(InvalidName::TooLong(name.len()));
    }
    match name.chars().find(|c| c.is_control()) {
        Some(c) => Err(InvalidName::Control(c)),
        None => Ok(()),
    }
}

fn encode(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("={byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other versions of these crates and other programs rely on this table.
    #[test]
    fn what_is_too_long_to_be_a_name_is_shown_in_part() {
        let longest = "x".repeat(LONGEST_NAME);
        assert_eq!(shown(&longest), longest);
        assert_eq!(shown(&"ä".repeat(1_000_000)), format!("{}…", "ä".repeat(EXCERPT)));
    }

    #[test]
    fn the_encoding_is_pinned() {
        for (name, encoded) in [
            ("nightly-report", "nightly-report"),
            ("a/b", "a=2Fb"),
            ("a=2Fb", "a=3D2Fb"),
            ("..", "=2E=2E"),
            ("%2f", "=252f"),
            ("?#{}'\" ", "=3F=23=7B=7D=27=22=20"),
            ("é", "=C3=A9"),
            ("e\u{301}", "e=CC=81"),
            ("\u{202e}x", "=E2=80=AEx"),
            ("A_z-9", "A_z-9"),
        ] {
            assert_eq!(Name::parse(name).unwrap().encoded(), encoded, "{name:?}");
        }
    }

    #[test]
    fn bad_names_are_refused() {
        let long = "x".repeat(LONGEST_NAME + 1);
        for name in ["", "a\0b", "a\r\nb", "\u{85}", long.as_str()] {
            assert!(Name::parse(name).is_err(), "{name:?}");
        }
        assert!(Name::parse(&long[1..]).is_ok());
    }

    #[test]
    fn namespaces_have_no_empty_and_no_reserved_segment() {
        for namespace in ["", "/", "a/", "/a", "a//b", "lock", "a/wake", "line/a"] {
            assert!(Namespace::parse(namespace).is_err(), "{namespace:?}");
        }
        assert_eq!(Namespace::parse("a.b/c").unwrap().joined('/'), "a=2Eb/c");
    }
}
