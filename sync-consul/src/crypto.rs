//! Which implementation of cryptography rustls uses.

use rustls::crypto::CryptoProvider;
use sync_core::{Error, ErrorKind};

/// Sees to it that the process has a provider: without one rustls panics as soon as it is used,
/// and likewise if it finds two of them compiled in and none chosen.
pub(crate) fn provide_crypto() -> Result<(), Error> {
    if CryptoProvider::get_default().is_some() {
        return Ok(());
    }
    #[cfg(feature = "rustls-aws-lc")]
    let provider = Some(rustls::crypto::aws_lc_rs::default_provider());
    #[cfg(all(feature = "rustls-ring", not(feature = "rustls-aws-lc")))]
    let provider = Some(rustls::crypto::ring::default_provider());
    #[cfg(not(any(feature = "rustls-ring", feature = "rustls-aws-lc")))]
    let provider: Option<CryptoProvider> = None;
    match provider {
        Some(provider) => {
            // Refused only if another thread was quicker, and then there is one.
            drop(provider.install_default());
            Ok(())
        }
        None => Err(Error::new(
            ErrorKind::Invalid,
            "use TLS",
            "this process has chosen no cryptography",
        )
        .advise(
            "enable one of the features rustls-ring and rustls-aws-lc, or install a provider \
             with rustls::crypto::CryptoProvider::install_default",
        )),
    }
}
