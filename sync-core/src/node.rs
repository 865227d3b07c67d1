//! Who a candidate is, and the record that tells other programs so.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::backend::Nonce;
use crate::token::FencingToken;

/// Longest record in bytes that is written, and that is read as a record at all.
pub const LONGEST_RECORD: usize = 64 * 1024;

/// How much of a value that is no record of ours is kept as a node's id.
const LONGEST_FOREIGN_ID: usize = 4 * 1024;

/// Who holds a lock or leads an election, as others read it.
///
/// ```
/// use sync_core::Node;
///
/// let node = Node::new("web-1").address("10.0.0.7:8080").metadata("zone", "b");
/// assert_eq!(node.address, "10.0.0.7:8080");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[non_exhaustive]
pub struct Node {
    /// Unique among those that take part, and not empty; `host-pid-random` when no node was given.
    /// A foreign client's may be empty.
    pub id: String,
    /// Where the node can be reached, in whatever form its users agree on.
    #[serde(default)]
    pub address: String,
    /// Anything else that others may want to know.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

impl Node {
    /// A node with this id.
    #[must_use]
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), ..Self::default() }
    }

    /// Sets where the node can be reached.
    #[must_use]
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = address.into();
        self
    }

    /// Adds a piece of metadata.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }
}

/// Who holds a name now, as far as the store tells.
///
/// ```no_run
/// # async fn example(sync: sync_core::Coordinator) -> Result<(), sync_core::Error> {
/// if let Some(holder) = sync.lock("nightly-report").holder().await? {
///     println!("{} since {:?}", holder.node.id, holder.since);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// The holder. A foreign client's plain text reads as a node whose id is that text.
    pub node: Node,
    /// The holder's fencing token; foreign clients may have none.
    pub token: Option<FencingToken>,
    /// The holder's own wall clock when it asked for the name; foreign clients may not tell.
    pub since: Option<SystemTime>,
}

/// The record as it stands in the store. Its JSON is pinned: other programs read it.
#[derive(Serialize, Deserialize)]
struct Record<'a> {
    id: Cow<'a, str>,
    #[serde(default)]
    address: Cow<'a, str>,
    #[serde(default)]
    metadata: Cow<'a, BTreeMap<String, String>>,
    /// Milliseconds since 1970.
    #[serde(default)]
    since: Option<u64>,
    #[serde(default)]
    nonce: Option<String>,
    /// How often the holder has changed it. No two records of a claim are alike, so that where a
    /// store compares bytes a late change cannot undo a later one that brought the old ones back.
    #[serde(default, skip_serializing_if = "is_unchanged")]
    change: u64,
}

fn is_unchanged(change: &u64) -> bool {
    *change == 0
}

/// What is wrong with a node without an id.
pub(crate) const NO_ID: &str = "the node's id is empty: others could not tell who it is";

/// Refuses what [`encode`] would refuse.
pub(crate) fn check(node: &Node) -> Result<(), String> {
    // A byte takes six at most, and all else fits into the rest.
    let texts = node.metadata.iter().map(|(key, value)| key.len() + value.len() + 2);
    let length = node.id.len() + node.address.len() + texts.sum::<usize>();
    if !node.id.is_empty() && length <= LONGEST_RECORD / 8 {
        return Ok(());
    }
    encode(node, SystemTime::now(), &Nonce::from_bytes([0; 16]), 0).map(drop)
}

/// The bytes that stand in the store for as long as this claim is held; `change` is 0 at first.
///
/// # Errors
/// When the node has no id; when they would be longer than [`LONGEST_RECORD`]: the length they would
/// have.
pub(crate) fn encode(
    node: &Node,
    since: SystemTime,
    nonce: &Nonce,
    change: u64,
) -> Result<Vec<u8>, String> {
    if node.id.is_empty() {
        return Err(NO_ID.to_owned());
    }
    let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let record = Record {
        id: Cow::Borrowed(&node.id),
        address: Cow::Borrowed(&node.address),
        metadata: Cow::Borrowed(&node.metadata),
        since: u64::try_from(since.as_millis()).ok(),
        nonce: Some(nonce.to_hex()),
        change,
    };
    let bytes = serde_json::to_vec(&record).map_err(|e| format!("the node has no JSON: {e}"))?;
    if bytes.len() > LONGEST_RECORD {
        return Err(format!(
            "the node's record has {} bytes, at most {LONGEST_RECORD} are allowed",
            bytes.len()
        ));
    }
    Ok(bytes)
}

/// Reads what stands in a store, whoever wrote it.
pub(crate) fn decode(bytes: &[u8], token: Option<FencingToken>) -> Holder {
    if bytes.len() <= LONGEST_RECORD
        && let Ok(record) = serde_json::from_slice::<Record<'_>>(bytes)
    {
        let since = record
            .since
            .and_then(|millis| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)));
        let node = Node {
            id: record.id.into_owned(),
            address: record.address.into_owned(),
            metadata: record.metadata.into_owned(),
        };
        return Holder { node, token, since };
    }
    let text = &bytes[..bytes.len().min(LONGEST_FOREIGN_ID)];
    Holder { node: Node::new(String::from_utf8_lossy(text)), token, since: None }
}

/// The nonce that a record names: what a backend compares where a store's own answer does not
/// say whose value stands there.
///
/// ```
/// use sync_core::record_nonce;
///
/// let record = br#"{"id":"a","nonce":"abababababababababababababababab"}"#;
/// assert_eq!(record_nonce(record).unwrap().to_hex(), "ab".repeat(16));
/// assert_eq!(record_nonce(b"host-a"), None);
/// ```
#[must_use]
pub fn record_nonce(bytes: &[u8]) -> Option<Nonce> {
    if bytes.len() > LONGEST_RECORD {
        return None;
    }
    let record: Record<'_> = serde_json::from_slice(bytes).ok()?;
    Nonce::from_hex(&record.nonce?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_its_json_is_pinned() {
        let node = Node::new("a").address("h:1").metadata("k", "v");
        let nonce = Nonce::from_bytes([0xab; 16]);
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        let bytes = encode(&node, since, &nonce, 0).unwrap();
        assert_eq!(
            String::from_utf8(bytes.clone()).unwrap(),
            r#"{"id":"a","address":"h:1","metadata":{"k":"v"},"since":1500,"nonce":"abababababababababababababababab"}"#
        );
        let holder = decode(&bytes, Some(FencingToken::new(3)));
        assert_eq!(holder, Holder { node, token: Some(FencingToken::new(3)), since: Some(since) });
        assert_eq!(record_nonce(&bytes), Some(nonce));

        let changed = encode(&holder.node, since, &nonce, 2).unwrap();
        assert_eq!(
            String::from_utf8(changed.clone()).unwrap().matches(r#","change":2}"#).count(),
            1
        );
        assert_eq!(decode(&changed, holder.token), holder);
        assert_eq!(record_nonce(&changed), Some(nonce));
    }

    #[test]
    fn foreign_values_read_as_a_node() {
        assert_eq!(decode(b"host-a", None).node.id, "host-a");
        assert_eq!(decode(b"\xff", None).node.id, "\u{fffd}");
        assert_eq!(decode(br#"{"id":"a","more":[1]}"#, None).node, Node::new("a"));
        assert_eq!(decode(&vec![b'x'; 1 << 20], None).node.id.len(), LONGEST_FOREIGN_ID);
        let deep = "[".repeat(100_000);
        assert_eq!(decode(&deep.as_bytes()[..60_000], None).node.id.len(), LONGEST_FOREIGN_ID);
        assert_eq!(record_nonce(b"host-a"), None);
    }

    #[test]
    fn a_node_without_an_id_is_refused() {
        let node = Node::default().address("h:1");
        let refused = encode(&node, SystemTime::UNIX_EPOCH, &Nonce::from_bytes([0; 16]), 0);
        assert!(refused.unwrap_err().contains("id is empty"));
    }

    #[test]
    fn a_record_without_bounds_is_refused() {
        let node = Node::new("a").metadata("k", "v".repeat(LONGEST_RECORD));
        let refused = encode(&node, SystemTime::UNIX_EPOCH, &Nonce::from_bytes([0; 16]), 0);
        assert!(refused.unwrap_err().contains("at most 65536"));
    }
}
