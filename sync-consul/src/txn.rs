//! Transactions: what they ask, and what their answers say.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sync_core::StoreError;
use sync_core::backend::Nonce;

use crate::api::no_json;
use crate::error;
use crate::http::Head;
use crate::line::Line;
use crate::pair::{LOCK_FLAGS, Pair, encoded};

/// As many operations as a transaction may have.
pub(crate) const MOST_OPERATIONS: usize = 64;

/// One operation of a transaction.
#[derive(Debug, Clone, Serialize, Default)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Op<'a> {
    verb: &'static str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flags: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
}

impl<'a> Op<'a> {
    /// Whether this is what a good answer shows of the operation; `None` where it shows nothing.
    fn echoed(&self, pair: &Pair) -> Option<bool> {
        match self.verb {
            "check-index" => Some(pair.key == self.key && self.index == Some(pair.modify_index)),
            "lock" | "unlock" | "get" => Some(pair.key == self.key),
            _ => None,
        }
    }

    fn writes(&self) -> bool {
        matches!(self.verb, "lock" | "unlock" | "delete")
    }

    fn new(verb: &'static str, key: &'a str) -> Self {
        Self { verb, key, ..Self::default() }
    }

    /// Only if there is no such key.
    pub(crate) fn absent(key: &'a str) -> Self {
        Self::new("check-not-exists", key)
    }

    /// Only if the key was last changed at `index`.
    pub(crate) fn unchanged(key: &'a str, index: u64) -> Self {
        Self { index: Some(index), ..Self::new("check-index", key) }
    }

    pub(crate) fn lock(key: &'a str, session: &'a str, record: &[u8]) -> Self {
        let (value, session) = (Some(encoded(record)), Some(session));
        Self { value, session, flags: Some(LOCK_FLAGS), ..Self::new("lock", key) }
    }

    /// Takes the session off a key whose value is left as it is.
    pub(crate) fn unlock(pair: &'a Pair) -> Self {
        Self {
            value: Some(pair.value.clone().unwrap_or_default()),
            flags: Some(pair.flags),
            session: Some(&pair.session),
            ..Self::new("unlock", &pair.key)
        }
    }

    pub(crate) fn delete(key: &'a str) -> Self {
        Self::new("delete", key)
    }

    pub(crate) fn get(key: &'a str) -> Self {
        Self::new("get", key)
    }

    pub(crate) fn get_tree(prefix: &'a str) -> Self {
        Self::new("get-tree", prefix)
    }
}

/// As the API wants an operation.
#[derive(Serialize)]
struct Wrapped<'a> {
    #[serde(rename = "KV")]
    kv: &'a Op<'a>,
}

#[derive(Deserialize)]
struct Refusals {
    #[serde(rename = "Errors", default)]
    errors: Vec<Refusal>,
}

/// Why a transaction was not done.
#[derive(Deserialize)]
struct Refusal {
    #[serde(rename = "OpIndex", default)]
    operation: usize,
    #[serde(rename = "What", default)]
    what: String,
}

/// What the answer to a transaction is searched for.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    key: &'a str,
    /// The claim's key, with its value, as it stands after the transaction.
    pub(crate) pair: Option<Pair>,
    pub(crate) line: Line,
}

impl<'a> Seen<'a> {
    pub(crate) fn new(key: &'a str, line: Line) -> Self {
        Self { key, pair: None, line }
    }

    pub(crate) fn add(&mut self, pair: Pair) {
        if pair.key == self.key {
            // That of the operation itself comes without value.
            if pair.value.is_some() {
                self.pair = Some(pair);
            }
        } else {
            self.line.add(pair);
        }
    }
}

/// Which operations were refused, or why none of them was looked at. A refusal that names nothing
/// of what was asked is somebody else's.
pub(crate) fn refused(head: &Head, ops: &[Op<'_>]) -> Result<BTreeSet<usize>, StoreError> {
    let Refusals { errors } =
        serde_json::from_str(&head.text).unwrap_or(Refusals { errors: Vec::new() });
    let denied = || errors.iter().filter(|refusal| error::is_denial(&refusal.what));
    if let Some(first) = denied().next() {
        let ops = || denied().filter_map(|refusal| ops.get(refusal.operation));
        // Who may write may read: that is the one to ask for.
        let what = match (ops().find(|op| op.writes()), ops().next()) {
            (Some(op), _) => lacking("write", op.key),
            (None, Some(op)) => lacking("read", op.key),
            (None, None) => "key:write".to_owned(),
        };
        return Err(head.denied(&first.what, &what));
    }
    let names = |what: &str| {
        ops.iter().any(|op| {
            what.contains(op.key) || op.session.is_some_and(|session| what.contains(session))
        })
    };
    if !errors.iter().all(|refusal| names(&refusal.what)) || errors.is_empty() {
        return Err(off_by_one());
    }
    Ok(errors.iter().map(|refusal| refusal.operation).collect())
}

/// The permission that a token lacks on a key. Nonces, and the ids of sessions, stay out of texts.
pub(crate) fn lacking(what: &str, key: &str) -> String {
    let has_nonce = |segment: &str| {
        segment.rsplit_once('-').is_some_and(|(_, nonce)| Nonce::from_hex(nonce).is_some())
    };
    match key.rsplit_once('/') {
        Some((path, last)) if has_nonce(last) => format!("key:{what} on {path:?}"),
        _ => format!("key:{what} on {key:?}"),
    }
}

pub(crate) fn body(ops: &[Op<'_>]) -> Result<Vec<u8>, StoreError> {
    let wrapped: Vec<Wrapped<'_>> = ops.iter().map(|kv| Wrapped { kv }).collect();
    serde_json::to_vec(&wrapped).map_err(no_json)
}

/// Whether an answer is to these operations: it shows all that must be shown, in their order.
#[derive(Debug)]
pub(crate) struct Echo<'a> {
    awaited: &'a [Op<'a>],
}

impl<'a> Echo<'a> {
    pub(crate) fn new(ops: &'a [Op<'a>]) -> Self {
        let mut echo = Self { awaited: ops };
        echo.skip();
        echo
    }

    pub(crate) fn heard(&mut self, pair: &Pair) {
        if let Some((first, rest)) = self.awaited.split_first()
            && first.echoed(pair) == Some(true)
        {
            self.awaited = rest;
            self.skip();
        }
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.awaited.is_empty()
    }

    /// Passes over what shows nothing.
    fn skip(&mut self) {
        let shows = |op: &Op<'_>| op.echoed(&Pair::default()).is_some();
        let next = self.awaited.iter().position(shows).unwrap_or(self.awaited.len());
        self.awaited = &self.awaited[next..];
    }
}

/// An answer to somebody else's question, of which there is none to this one.
pub(crate) fn off_by_one() -> StoreError {
    StoreError::unknown("the answer does not belong to the request")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &str = "0947cabe-552d-1df2-fbd7-a55a46299340";

    fn head(text: &str) -> Head {
        Head { status: 409, text: text.to_owned(), ..Head::default() }
    }

    #[test]
    fn operations_are_written_as_the_api_wants_them() {
        let ops = [
            Op::absent("v"),
            Op::unchanged("k", 7),
            Op::delete("k"),
            Op::lock("k", SESSION, b"hi"),
            Op::get_tree("l/"),
        ];
        let json = String::from_utf8(body(&ops).unwrap()).unwrap();
        assert_eq!(
            json,
            format!(
                r#"[{{"KV":{{"Verb":"check-not-exists","Key":"v"}}}},{{"KV":{{"Verb":"check-index","Key":"k","Index":7}}}},{{"KV":{{"Verb":"delete","Key":"k"}}}},{{"KV":{{"Verb":"lock","Key":"k","Value":"aGk=","Flags":3304740253564472344,"Session":"{SESSION}"}}}},{{"KV":{{"Verb":"get-tree","Key":"l/"}}}}]"#
            )
        );
    }

    #[test]
    fn an_answer_that_shows_something_else_is_not_believed() {
        let pair =
            |key: &str, modify_index| Pair { key: key.to_owned(), modify_index, ..Pair::default() };
        let ops = [Op::unchanged("k", 7), Op::delete("k"), Op::lock("t", SESSION, b"")];
        let complete = |pairs: &[Pair]| {
            let mut echo = Echo::new(&ops);
            pairs.iter().for_each(|pair| echo.heard(pair));
            echo.is_complete()
        };
        assert!(complete(&[pair("k", 7), pair("t", 9), pair("other", 1)]));
        assert!(!complete(&[]) && !complete(&[pair("k", 7)]) && !complete(&[pair("t", 9)]));
        assert!(!complete(&[pair("k", 8), pair("t", 9)]), "another change of the same key");
        assert!(!complete(&[pair("t", 9), pair("k", 7)]));
        assert!(Echo::new(&[Op::delete("k")]).is_complete());
    }

    #[test]
    fn a_refusal_names_what_was_asked_or_is_somebody_elses() {
        let ops = [Op::absent("ns/void"), Op::lock("ns/k", SESSION, b"")];
        let what = |index: usize, what: &str| {
            head(&serde_json::json!({ "Errors": [{ "OpIndex": index, "What": what }] }).to_string())
        };
        for said in [
            what(1, "failed to lock key \"ns/k\", lock is already held"),
            what(1, &format!("invalid session {SESSION:?}")),
        ] {
            assert_eq!(refused(&said, &ops).unwrap(), BTreeSet::from([1]));
        }
        for said in [what(1, "key \"ns/other\" exists"), head("{}"), head("nonsense"), head("")] {
            assert!(!refused(&said, &ops).unwrap_err().settled(), "{said:?}");
        }
        let error = refused(&what(1, "Permission denied"), &ops).unwrap_err();
        assert!(error.settled());
        let text = error.to_string();
        assert!(text.contains("the token lacks key:write on \"ns/k\""), "{text}");
    }
}
