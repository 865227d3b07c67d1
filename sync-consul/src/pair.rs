//! A key as Consul shows it, and how keys are taken out of a body as it comes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sync_core::backend::{Grant, Nonce, Sighted, Sighting, Version};
use sync_core::{FencingToken, LONGEST_RECORD, record_nonce};

use crate::mutant;

/// By these flags `consul lock` and Go's `api.Lock` know a key as a lock.
pub(crate) const LOCK_FLAGS: u64 = 3_304_740_253_564_472_344;

/// The longest entry that is read: the longest value that Consul takes by default, as JSON.
const LONGEST_ENTRY: usize = 1024 * 1024;

/// A key with what stands there.
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Pair {
    pub(crate) key: String,
    #[serde(default)]
    pub(crate) flags: u64,
    /// In base 64; missing where the answer leaves it out or it is empty.
    #[serde(default)]
    pub(crate) value: Option<String>,
    /// Empty where nobody holds it.
    #[serde(default)]
    pub(crate) session: String,
    pub(crate) create_index: u64,
    pub(crate) modify_index: u64,
}

impl Pair {
    pub(crate) fn record(&self) -> Vec<u8> {
        let value = self.value.as_deref().unwrap_or_default();
        STANDARD.decode(value).unwrap_or_default()
    }

    /// Which acquisition stands there, if it is one of these crates'.
    pub(crate) fn nonce(&self) -> Option<Nonce> {
        record_nonce(&self.record())
    }

    pub(crate) fn is_of(&self, session: &str, nonce: Nonce) -> bool {
        let is_nonce = mutant::on(mutant::NONCE_UNREAD) || self.nonce() == Some(nonce);
        self.session == session && is_nonce
    }

    /// The token of whoever holds this: it is made anew for each, and stays when it is changed.
    fn token(&self) -> FencingToken {
        let of_record = mutant::on(mutant::TOKEN_OF_RECORD);
        FencingToken::new(if of_record { self.modify_index } else { self.create_index })
    }

    /// The grant of whoever holds this.
    pub(crate) fn grant(&self) -> Grant {
        Grant { token: self.token(), version: version(self.modify_index), ttl: None }
    }
}

/// A record's version: the index of the key's last change, zero where there is no key.
pub(crate) fn version(index: u64) -> Version {
    Version::new(index.to_be_bytes())
}

/// The index that a version stands for.
pub(crate) fn index(version: &Version) -> u64 {
    version.as_bytes().try_into().map_or(0, u64::from_be_bytes)
}

/// Who holds a name, by its key.
pub(crate) fn sighting(pair: Option<&Pair>) -> Sighting {
    let Some(pair) = pair else {
        return Sighting { version: version(0), holder: None };
    };
    let holder = (!pair.session.is_empty()).then(|| {
        let mut record = pair.record();
        record.truncate(LONGEST_RECORD);
        // The index by which others make their keys tells their acquisitions not apart.
        let ours = record_nonce(&record).is_some();
        Sighted { record, token: ours.then(|| pair.token()) }
    });
    Sighting { version: version(pair.modify_index), holder }
}

pub(crate) fn encoded(value: &[u8]) -> String {
    STANDARD.encode(value)
}

/// Takes the keys out of a JSON body piece by piece, so that a long one need not be kept.
#[derive(Debug)]
pub(crate) struct Pairs {
    /// How many braces and brackets stand open before a key's own brace.
    level: usize,
    open: usize,
    text: Text,
    entry: Vec<u8>,
}

#[derive(Debug, PartialEq, Clone, Copy)]
enum Text {
    Outside,
    Inside,
    Escaped,
}

/// What stands there are no keys.
#[derive(Debug, PartialEq)]
pub(crate) struct NoPairs;

impl Pairs {
    /// Of `[{…}]`, as a read of keys is answered.
    pub(crate) fn of_read() -> Self {
        Self::at(1)
    }

    /// Of `{"Results":[{"KV":{…}}]}`, as a transaction is answered.
    pub(crate) fn of_transaction() -> Self {
        Self::at(3)
    }

    fn at(level: usize) -> Self {
        Self { level, open: 0, text: Text::Outside, entry: Vec::new() }
    }

    /// Takes the next piece of the body.
    pub(crate) fn feed(&mut self, piece: &[u8], mut each: impl FnMut(Pair)) -> Result<(), NoPairs> {
        for &byte in piece {
            let (outside, before) = (self.text == Text::Outside, self.open);
            match (self.text, byte) {
                (Text::Outside, b'"') => self.text = Text::Inside,
                (Text::Outside, b'{' | b'[') => self.open += 1,
                (Text::Outside, b'}' | b']') => self.open = before.checked_sub(1).ok_or(NoPairs)?,
                (Text::Inside, b'"') => self.text = Text::Outside,
                (Text::Inside, b'\\') => self.text = Text::Escaped,
                (Text::Escaped, _) => self.text = Text::Inside,
                _ => {}
            }
            if self.entry.is_empty() && !(outside && byte == b'{' && before == self.level) {
                continue;
            }
            self.entry.push(byte);
            if self.entry.len() > LONGEST_ENTRY {
                return Err(NoPairs);
            }
            if self.open == self.level {
                each(serde_json::from_slice(&self.entry).map_err(|_| NoPairs)?);
                self.entry.clear();
            }
        }
        Ok(())
    }

    /// Whether the body has come to its end.
    pub(crate) fn is_whole(&self) -> bool {
        self.open == 0 && self.text == Text::Outside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(mut pairs: Pairs, body: &str, step: usize) -> Result<Vec<String>, NoPairs> {
        let mut keys = Vec::new();
        for piece in body.as_bytes().chunks(step) {
            pairs.feed(piece, |pair| keys.push(pair.key))?;
        }
        if pairs.is_whole() { Ok(keys) } else { Err(NoPairs) }
    }

    fn entry(key: &str) -> String {
        format!(
            r#"{{"LockIndex":1,"Key":{key:?},"Flags":0,"Value":null,"CreateIndex":12,"ModifyIndex":13}}"#
        )
    }

    #[test]
    fn keys_are_found_however_the_body_is_cut() {
        let hostile = ["a", "b\"}]{[", "c\\", "d\\\"{"];
        let entries: Vec<String> = hostile.iter().map(|key| entry(key)).collect();
        let read = format!("[{}]", entries.join(","));
        let wrapped: Vec<String> = entries.iter().map(|e| format!(r#"{{"KV":{e}}}"#)).collect();
        let transaction = format!(r#"{{"Results":[{}],"Errors":null}}"#, wrapped.join(","));
        for step in 1..30 {
            assert_eq!(keys(Pairs::of_read(), &read, step).unwrap(), hostile);
            assert_eq!(keys(Pairs::of_transaction(), &transaction, step).unwrap(), hostile);
        }
        assert!(keys(Pairs::of_read(), "[]", 1).unwrap().is_empty());
        let none = r#"{"Results":null,"Errors":null}"#;
        assert!(keys(Pairs::of_transaction(), none, 7).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_answer_is_not_read_as_one() {
        for body in ["]", "[{}]", r#"[{"Key":7}]"#, "[", r#"["#, r#"[{"Key":"a"#] {
            assert!(keys(Pairs::of_read(), body, 3).is_err(), "{body}");
        }
        let endless = format!("[{{\"Key\":\"{}", "x".repeat(LONGEST_ENTRY));
        assert!(keys(Pairs::of_read(), &endless, 4096).is_err());
    }

    #[test]
    fn a_foreign_holder_has_no_token_and_a_key_without_session_no_holder() {
        let mut pair = Pair {
            value: Some(encoded(b"somebody else")),
            session: "s".to_owned(),
            create_index: 7,
            modify_index: 9,
            ..Pair::default()
        };
        let seen = sighting(Some(&pair));
        assert_eq!(index(&seen.version), 9);
        let holder = seen.holder.unwrap();
        assert_eq!((&*holder.record, holder.token), (&b"somebody else"[..], None));
        pair.session.clear();
        assert!(sighting(Some(&pair)).holder.is_none());
        assert_eq!(index(&sighting(None).version), 0);
        let nonce = Nonce::from_bytes([0xab; 16]);
        pair.value =
            Some(encoded(format!(r#"{{"id":"a","nonce":"{}"}}"#, nonce.to_hex()).as_bytes()));
        pair.session = "s".to_owned();
        assert!(pair.is_of("s", nonce) && !pair.is_of("t", nonce));
        assert_eq!(sighting(Some(&pair)).holder.unwrap().token, Some(FencingToken::new(7)));
        pair.value = Some("no base 64!".to_owned());
        assert!(pair.record().is_empty());
    }
}
