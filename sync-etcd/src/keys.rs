//! Which keys there are. Other programs and other versions rely on them.

use etcd_client::KeyValue;
use sync_core::backend::Nonce;
use sync_core::{Kind, Name, Namespace};

use crate::mutant;

/// The keys of one namespace.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    namespace: String,
}

impl Keys {
    pub(crate) fn new(namespace: &Namespace) -> Self {
        Self { namespace: namespace.joined('/') }
    }

    /// What `etcdctl lock` and `etcdctl elect` are given: the claims stand under it.
    pub(crate) fn name(&self, kind: Kind, name: &Name) -> String {
        let kind = match kind {
            Kind::Lock => "/lock/",
            Kind::Leader => "/leader/",
        };
        [&self.namespace, kind, &name.encoded()].concat()
    }

    pub(crate) fn line(&self, kind: Kind, name: &Name) -> Line {
        let mut prefix = self.name(kind, name);
        prefix.push('/');
        Line { prefix }
    }

    /// The marker that keeps late attempts of a nonce out. Not beside the claims: there it would
    /// block `etcdctl lock` for as long as it stands.
    pub(crate) fn void(&self, lease: i64, nonce: Nonce) -> String {
        format!("{}/void/{lease:x}-{}", self.namespace, nonce.to_hex())
    }

    /// The range that holds all of them: what a role must be allowed to read and write.
    pub(crate) fn range(&self) -> (String, String) {
        // '0' comes right after '/'.
        ([&self.namespace, "/"].concat(), [&self.namespace, "0"].concat())
    }
}

/// The claims of one name, oldest first by create revision.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    prefix: String,
}

impl Line {
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The key of a claim by a lease.
    pub(crate) fn place(&self, lease: i64, nonce: Nonce) -> String {
        if mutant::on(mutant::SHARED_KEY) {
            return format!("{}{lease:x}", self.prefix);
        }
        format!("{}{lease:x}-{}", self.prefix, nonce.to_hex())
    }

    /// Whether somebody can hold by this key: it names the lease that it is attached to, and maybe
    /// a nonce. Of any other, nobody says that it ever goes away.
    pub(crate) fn is_claim(&self, found: &KeyValue) -> bool {
        if mutant::on(mutant::STRANGERS_HOLD) {
            return true;
        }
        let Some(segment) = found.key().strip_prefix(self.prefix.as_bytes()) else { return false };
        let Ok(segment) = str::from_utf8(segment) else { return false };
        let (lease, nonce) = match segment.split_once('-') {
            Some((lease, nonce)) => (lease, Some(nonce)),
            None => (segment, None),
        };
        found.lease() != 0
            && read_lease(lease) == Some(found.lease())
            && nonce.is_none_or(|nonce| Nonce::from_hex(nonce).is_some())
    }
}

/// Reads a lease's id as keys and sessions carry it.
pub(crate) fn read_lease(hex: &str) -> Option<i64> {
    let lower = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if hex.is_empty() || !hex.bytes().all(lower) {
        return None;
    }
    i64::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_where_other_programs_look_for_them() {
        let keys = Keys::new(&Namespace::parse("a/b").unwrap());
        let name = Name::parse("x/y").unwrap();
        assert_eq!(keys.name(Kind::Lock, &name), "a/b/lock/x=2Fy");
        let nonce = Nonce::from_bytes([0xab; 16]);
        assert_eq!(keys.void(0x1f, nonce), format!("a/b/void/1f-{}", "ab".repeat(16)));
        assert_eq!(keys.range(), ("a/b/".into(), "a/b0".into()));
        let line = keys.line(Kind::Leader, &name);
        let place = format!("a/b/leader/x=2Fy/1f-{}", "ab".repeat(16));
        assert_eq!(line.place(0x1f, nonce), place);
    }

    #[test]
    fn leases_are_read_in_one_form_only() {
        assert_eq!(read_lease("694d9a1c"), Some(0x694d_9a1c));
        assert_eq!(read_lease("7fffffffffffffff"), Some(i64::MAX));
        for other in ["", "+1", "-1", "1F", "0x1", "8000000000000000", "1/2"] {
            assert_eq!(read_lease(other), None, "{other}");
        }
    }
}
