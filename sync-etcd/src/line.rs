//! Reading a line: who stands before a key, and who holds the name.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use etcd_client::proto::PbTxnOpResponse;
use etcd_client::{GetOptions, KeyValue, SortOrder, SortTarget, TxnOp, TxnResponse};
use sync_core::{ErrorKind, StoreError};

use crate::keys::{Line, read_lease};

/// How many keys are looked at where the first are no claims.
pub(crate) const SCAN: i64 = 1000;

/// How many keys that are no claims are warned of.
const WARNINGS: usize = 100;

/// Reads one key, without its value.
pub(crate) fn key_only(key: &str) -> TxnOp {
    TxnOp::get(key, Some(GetOptions::new().with_keys_only()))
}

/// Reads the newest of a line that are older than `before`, newest first.
pub(crate) fn newest(line: &Line, before: Option<i64>, limit: i64) -> TxnOp {
    let options = GetOptions::new()
        .with_prefix()
        .with_sort(SortTarget::Create, SortOrder::Descend)
        .with_keys_only()
        .with_limit(limit);
    let options = match before {
        Some(before) => options.with_max_create_revision(before - 1),
        None => options,
    };
    TxnOp::get(line.prefix(), Some(options))
}

/// Reads the oldest of a line, oldest first.
pub(crate) fn oldest(limit: i64) -> GetOptions {
    GetOptions::new()
        .with_prefix()
        .with_sort(SortTarget::Create, SortOrder::Ascend)
        .with_limit(limit)
}

/// What each of a transaction's reads found; of writes, nothing. Not by the library's own means:
/// that panics on an answer without one.
pub(crate) fn found(answer: TxnResponse) -> impl Iterator<Item = Vec<KeyValue>> {
    answer.0.responses.into_iter().map(|response| match response.response {
        Some(PbTxnOpResponse::ResponseRange(range)) => {
            range.kvs.into_iter().map(KeyValue).collect()
        }
        _ => Vec::new(),
    })
}

/// Whether a transaction has deleted anything.
pub(crate) fn has_deleted(answer: &TxnResponse) -> bool {
    answer.0.responses.iter().any(|response| match &response.response {
        Some(PbTxnOpResponse::ResponseDeleteRange(deleted)) => deleted.deleted > 0,
        _ => false,
    })
}

/// A key as a log may show it: the lease that a claim's key names can be ended by whoever knows it.
fn shown(line: &Line, key: &[u8]) -> String {
    let rest = key.strip_prefix(line.prefix().as_bytes()).unwrap_or(key);
    let rest = String::from_utf8_lossy(rest);
    let lease = rest.split(['-', '/']).next().unwrap_or_default();
    let is_lease = lease.len() > 6 && read_lease(lease).is_some();
    let longest = if is_lease { 6 } else { 100 };
    let mut text = line.prefix().to_owned();
    text.extend(rest.chars().take(longest).flat_map(char::escape_debug));
    if rest.chars().nth(longest).is_some() {
        text.push('…');
    }
    text
}

/// Keys under a name's prefix by which nobody can hold: each is warned of once.
#[derive(Debug, Default)]
pub(crate) struct Strangers(Mutex<BTreeSet<Vec<u8>>>);

impl Strangers {
    /// The first claim among what was found, as many as `limit` keys at most. An error if there may
    /// be more to look at.
    pub(crate) fn pass<'a>(
        &self,
        line: &Line,
        found: &'a [KeyValue],
        limit: i64,
    ) -> Result<Option<&'a KeyValue>, StoreError> {
        for key in found {
            if line.is_claim(key) {
                return Ok(Some(key));
            }
            self.warn(line, key);
        }
        if i64::try_from(found.len()).is_ok_and(|found| found < limit) {
            return Ok(None);
        }
        let reason =
            format!("the first {limit} keys under {} are no claims of anybody's", line.prefix());
        Err(StoreError::refused(ErrorKind::Foreign, reason)
            .advise("remove what another program has put there: they were left alone"))
    }

    fn warn(&self, line: &Line, key: &KeyValue) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < WARNINGS && known.insert(key.key().to_vec()) {
            tracing::warn!(
                key = shown(line, key.key()),
                "a key that is no claim stands under a name's prefix: it is passed over here, but \
                 blocks etcdctl and Go's clients for as long as it stands"
            );
        }
    }
}
