//! What happens to claims, told before anybody can act on it.

use std::fmt;

use crate::clock::Moment;
use crate::name::{Kind, Name};
use crate::revocation::Cause;
use crate::token::FencingToken;

/// Is told of every grant, extension, loss and release *before* it becomes visible to the program.
///
/// A history that an observer writes down is therefore complete as far as anyone could act on it,
/// also when the process is killed the next moment. It is called with a lock held: it must be
/// quick and must not call back.
///
/// ```
/// use std::sync::Mutex;
/// use sync_core::{Event, Observer};
///
/// #[derive(Debug, Default)]
/// struct History(Mutex<Vec<Event>>);
///
/// impl Observer for History {
///     fn observe(&self, event: &Event) {
///         self.0.lock().unwrap().push(event.clone());
///     }
/// }
/// ```
pub trait Observer: fmt::Debug + Send + Sync + 'static {
    /// Takes note of `event`.
    fn observe(&self, event: &Event);
}

/// Something that happened to a claim.
///
/// ```
/// use sync_core::Event;
///
/// fn line(event: &Event) -> String {
///     format!("{:?} {} {} {:?}", event.at, event.name, event.token, event.what)
/// }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Event {
    /// Lock or leadership.
    pub kind: Kind,
    /// Which one.
    pub name: Name,
    /// The acquisition's token.
    pub token: FencingToken,
    /// When, on the coordinator's clock.
    pub at: Moment,
    /// What.
    pub what: What,
}

/// What happened to a claim.
///
/// ```
/// use sync_core::{Moment, What};
///
/// /// Until when nobody else can be granted what this happened to.
/// fn safe_until(what: What) -> Option<Moment> {
///     match what {
///         What::Granted { deadline } | What::Extended { deadline } => Some(deadline),
///         _ => None,
///     }
/// }
/// # let deadline = Moment::from_nanos(1);
/// # assert_eq!(safe_until(What::Granted { deadline }), Some(deadline));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// It was granted, and is valid until the deadline.
    Granted {
        /// Until when.
        deadline: Moment,
    },
    /// It was extended, and is valid until the deadline.
    Extended {
        /// Until when.
        deadline: Moment,
    },
    /// It ended; [`Cause::Released`] is the normal way.
    Revoked {
        /// Why.
        cause: Cause,
    },
}

/// Takes no note.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct NoObserver;

impl Observer for NoObserver {
    fn observe(&self, _: &Event) {}
}
