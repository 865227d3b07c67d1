//! Randomness as the core sees it: from the operating system, or from a seed that replays a run.

use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Where the core and the backends get randomness from: nonces, identifiers and jitter.
///
/// ```
/// use sync_core::Rng;
///
/// /// Always the same: for a test that needs one certain nonce.
/// #[derive(Debug)]
/// struct Sevens;
///
/// impl Rng for Sevens {
///     fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
///         bytes.fill(7);
///         Ok(())
///     }
/// }
/// ```
pub trait Rng: fmt::Debug + Send + Sync + 'static {
    /// Fills `bytes` with unpredictable bytes.
    ///
    /// # Errors
    /// The operating system's own error where it has no randomness to give.
    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()>;
}

/// The operating system's randomness.
///
/// ```
/// use sync_core::{OsRng, Rng};
///
/// let mut nonce = [0; 16];
/// OsRng::new().fill(&mut nonce)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct OsRng;

impl OsRng {
    /// The operating system's randomness.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

impl Rng for OsRng {
    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        getrandom::fill(bytes).map_err(std::io::Error::other)
    }
}

/// A predictable sequence (SplitMix64), for tests, examples and simulations only: its nonces can
/// be guessed.
///
/// ```
/// use sync_core::{Rng, SeededRng};
///
/// let (mut a, mut b) = ([0; 8], [0; 8]);
/// SeededRng::new(7).fill(&mut a)?;
/// SeededRng::new(7).fill(&mut b)?;
/// assert_eq!(a, b);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct SeededRng(Mutex<u64>);

impl SeededRng {
    /// The sequence that belongs to `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }
}

impl Rng for SeededRng {
    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in bytes.chunks_mut(8) {
            *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = *state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            let word = (z ^ (z >> 31)).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        Ok(())
    }
}
