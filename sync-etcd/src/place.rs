//! One claim with its keys, and what an answer says of it.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp};
use sync_core::backend::{Attempt, Claim, Grant, Ticket, Version};
use sync_core::reuse::Slot;
use sync_core::{FencingToken, StoreError};

use crate::keys::{Keys, Line};
use crate::mutant;
use crate::session::Lease;

/// One claim with its keys.
pub(crate) struct Place<'a> {
    pub(crate) claim: &'a Claim,
    pub(crate) lease: &'a Arc<Lease>,
    pub(crate) line: Line,
    pub(crate) slot: Slot,
    pub(crate) key: String,
    pub(crate) keys: &'a Keys,
}

impl Place<'_> {
    /// Where the marker stands once the claim is abandoned.
    pub(crate) fn void(&self) -> String {
        self.keys.void(self.lease.id, self.claim.nonce)
    }

    pub(crate) fn put(&self) -> TxnOp {
        let attached = PutOptions::new().with_lease(self.lease.id);
        TxnOp::put(self.key.as_str(), &*self.claim.record, Some(attached))
    }

    pub(crate) fn delete(&self) -> TxnOp {
        TxnOp::delete(self.key.as_str(), None)
    }

    /// Keeps what arrives late out, for as long as the lease lives.
    pub(crate) fn abandon(&self) -> Txn {
        let attached = PutOptions::new().with_lease(self.lease.id);
        if mutant::on(mutant::NO_MARKER) {
            return Txn::new().and_then([self.delete()]);
        }
        let mark = TxnOp::put(self.void(), "", Some(attached));
        Txn::new().and_then([mark, self.delete()])
    }

    pub(crate) fn is_not_void(&self) -> Compare {
        if mutant::on(mutant::NO_COMPARE) {
            return Compare::create_revision(self.void(), CompareOp::Greater, -1);
        }
        absent(&self.void())
    }

    /// Whether this key, as an answer shows it, is the claim's and can be held by.
    pub(crate) fn is(&self, found: &KeyValue) -> bool {
        found.key() == self.key.as_bytes()
            && found.lease() == self.lease.id
            && u64::try_from(found.create_revision()).is_ok_and(|made| made > self.slot.after)
    }
}

/// What a ticket says of a place: when the key was put there, and what the key before it is called
/// under the same prefix.
pub(crate) struct Note<'a> {
    pub(crate) created: i64,
    pub(crate) before: &'a str,
}

impl<'a> Note<'a> {
    pub(crate) fn read(place: &'a str) -> Option<Self> {
        let (created, before) = place.split_once(' ')?;
        Some(Self { created: created.parse().ok()?, before })
    }
}

pub(crate) fn blocked(place: &Place<'_>, own: &KeyValue, before: &KeyValue) -> Attempt {
    let before = String::from_utf8_lossy(before.key());
    let before = before.strip_prefix(place.line.prefix()).unwrap_or_default();
    Attempt::Blocked(Ticket {
        // A watch can die unnoticed.
        look_after: Some(place.lease.ttl()),
        place: format!("{} {before}", own.create_revision()).into(),
        ..Ticket::default()
    })
}

pub(crate) fn held(place: &Place<'_>, own: &KeyValue) -> Attempt {
    debug_assert!(place.is(own), "a grant is by the key that was asked for");
    Attempt::Held(Grant { token: token(own), version: version_of(own.mod_revision()), ttl: None })
}

pub(crate) fn token(found: &KeyValue) -> FencingToken {
    token_of(match mutant::on(mutant::TOKEN_OF_RECORD) {
        true => found.mod_revision(),
        false => found.create_revision(),
    })
}

pub(crate) fn token_of(revision: i64) -> FencingToken {
    FencingToken::new(u64::try_from(revision).unwrap_or(0))
}

pub(crate) fn version_of(revision: i64) -> Version {
    Version::new(revision.to_be_bytes())
}

pub(crate) fn revision(version: &Version) -> Option<i64> {
    Some(i64::from_be_bytes(version.as_bytes().try_into().ok()?))
}

pub(crate) fn absent(key: &str) -> Compare {
    Compare::create_revision(key, CompareOp::Equal, 0)
}

pub(crate) fn created(key: &str, token: &FencingToken) -> Compare {
    let created = i64::try_from(token.get()).unwrap_or(i64::MAX);
    Compare::create_revision(key, CompareOp::Equal, created)
}

pub(crate) fn not_asked_for() -> StoreError {
    StoreError::unknown("the answer does not belong to the request")
}
