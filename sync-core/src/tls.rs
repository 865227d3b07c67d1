//! What the stores' crates have in common where they speak TLS.

use std::fmt;
use std::path::PathBuf;

use crate::error::{Error, ErrorKind};

/// PEM text, or the file in which it stands.
///
/// ```
/// use sync_core::tls::Pem;
///
/// let ca = Pem::Text(b"-----BEGIN CERTIFICATE-----\n...".to_vec());
/// assert!(ca.certificates().is_ok());
/// assert!(ca.private_key().unwrap_err().to_string().contains("there is no private key"));
/// assert!(Pem::File("/no/such/file".into()).certificates().is_err());
/// ```
#[derive(Clone)]
pub enum Pem {
    /// The text itself.
    Text(Vec<u8>),
    /// A file, read each time it is asked for.
    File(PathBuf),
}

impl Pem {
    /// The text, in which there is a certificate: without one a library may trust nobody, or show
    /// nothing, and say neither.
    ///
    /// # Errors
    /// `Invalid`, when the file cannot be read or there is no certificate in it.
    pub fn certificates(&self) -> Result<Vec<u8>, Error> {
        self.read("certificate", "BEGIN CERTIFICATE-----")
    }

    /// The text, in which there is a private key.
    ///
    /// # Errors
    /// `Invalid`, when the file cannot be read or there is no private key in it.
    pub fn private_key(&self) -> Result<Vec<u8>, Error> {
        self.read("private key", "PRIVATE KEY-----")
    }

    fn read(&self, what: &str, label: &str) -> Result<Vec<u8>, Error> {
        let (pem, place) = match self {
            Self::Text(text) => (text.clone(), "what was given".to_owned()),
            Self::File(path) => {
                let place = path.display().to_string();
                let read = std::fs::read(path);
                (read.map_err(|error| invalid(format!("cannot read {place}: {error}")))?, place)
            }
        };
        match pem.windows(label.len()).any(|found| found == label.as_bytes()) {
            true => Ok(pem),
            false => Err(invalid(format!("there is no {what} in {place}"))
                .advise("give it as PEM, which begins with -----BEGIN")),
        }
    }
}

/// Without the text, which may be a key.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// Sees to it that the process has a provider of cryptography: without one rustls panics as soon
/// as it is used, and likewise if it finds two of them compiled in and none chosen.
///
/// One that the program has installed is left as it is.
///
/// ```no_run
/// sync_core::tls::provide_crypto()?;
/// # Ok::<(), sync_core::Error>(())
/// ```
///
/// # Errors
/// `Invalid`, when the program has installed none and neither `rustls-ring` nor `rustls-aws-lc` is
/// enabled.
#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub fn provide_crypto() -> Result<(), Error> {
    use rustls::crypto::CryptoProvider;

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
        None => Err(invalid("this process has chosen no cryptography").advise(
            "enable one of the features rustls-ring and rustls-aws-lc, or install a provider \
             with rustls::crypto::CryptoProvider::install_default",
        )),
    }
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, "use TLS", reason)
}

/// The error of a build without TLS that is given a URL with it.
///
/// ```
/// use sync_core::ErrorKind;
///
/// assert_eq!(sync_core::tls::unavailable().kind(), ErrorKind::Unsupported);
/// ```
#[must_use]
pub fn unavailable() -> Error {
    Error::new(ErrorKind::Unsupported, "use TLS", "this build has no TLS")
        .advise("enable one of the features rustls-ring and rustls-aws-lc")
}

/// The error of certificates and keys that a library does not take, by its words for it.
///
/// ```
/// let error = sync_core::tls::unusable("keys may not be consistent: KeyMismatch");
/// assert!(error.to_string().contains("does not belong to the certificate"));
/// ```
#[must_use]
pub fn unusable(text: &str) -> Error {
    let error = invalid(text);
    match advice(text, "") {
        Some(advice) => error.advise(advice),
        None => error,
    }
}

/// What to do about an error of TLS, by rustls's words for it; `plain` is how a URL without TLS
/// begins.
///
/// ```
/// let advice = sync_core::tls::advice("invalid peer certificate: UnknownIssuer", "redis://");
/// assert!(advice.unwrap().contains("Config::ca"));
/// assert_eq!(sync_core::tls::advice("connection refused", "redis://"), None);
/// ```
#[must_use]
pub fn advice(text: &str, plain: &str) -> Option<String> {
    let no_tls = format!("the server does not speak TLS on this port: use {plain}");
    let known = [
        (
            "keymismatch",
            "the private key does not belong to the certificate: Config::identity wants one pair",
        ),
        ("unknownissuer", "give the CA that signed the server's certificate to Config::ca"),
        ("not valid for name", "the certificate is for another host name than the URL's"),
        ("notvalidforname", "the certificate is for another host name than the URL's"),
        ("expired", "the server's certificate has expired"),
        ("certificaterequired", "give a client certificate to Config::identity"),
        (
            "unknownca",
            "the server does not trust who signed the client certificate: Config::identity",
        ),
        ("badcertificate", "the server may want a client certificate: Config::identity"),
        ("handshakefailure", "the server may want a client certificate: Config::identity"),
        ("invalidcontenttype", &no_tls),
        ("tls handshake eof", &no_tls),
    ];
    let text = text.to_lowercase();
    known.into_iter().find(|(word, _)| text.contains(word)).map(|(_, advice)| advice.to_owned())
}
