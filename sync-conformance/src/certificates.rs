//! Certificates of one's own, for tests of TLS.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::failed::Failed;

/// A folder of certificates, made by `openssl` and signed by authorities of its own. It is removed
/// with the value.
///
/// ```
/// use sync_conformance::certificates::Certificates;
///
/// let made = Certificates::new()?;
/// made.authority("ca")?;
/// made.signed("server", "DNS:localhost", 2, "ca")?;
/// assert!(made.pem("server")?.starts_with(b"-----BEGIN CERTIFICATE-----"));
/// assert!(made.key_path("server").is_file());
/// # Ok::<(), sync_conformance::Failed>(())
/// ```
#[derive(Debug)]
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    /// None yet.
    ///
    /// # Errors
    /// When there can be no folder for them.
    pub fn new() -> Result<Self, Failed> {
        Ok(Self { dir: tempfile::Builder::new().prefix("sync-certificates-").tempdir()? })
    }

    /// An authority, valid for two days.
    ///
    /// # Errors
    /// When there is no `openssl`.
    pub fn authority(&self, name: &str) -> Result<(), Failed> {
        self.openssl(&format!(
            "openssl req -x509 $new -keyout {name}.key -out {name}.pem -subj /CN={name} -days 2"
        ))
    }

    /// A certificate for `host` (`DNS:localhost`, `IP:127.0.0.1`, several joined by commas), signed
    /// by an authority of this folder. With -1 `days` it has expired.
    ///
    /// # Errors
    /// When there is no `openssl`, or no such authority.
    pub fn signed(&self, name: &str, host: &str, days: i32, by: &str) -> Result<(), Failed> {
        self.openssl(&format!(
            "openssl req $new -keyout {name}.key -out {name}.csr -subj /CN={name} \
                -addext subjectAltName={host}
            openssl x509 -req -in {name}.csr -CA {by}.pem -CAkey {by}.key -copy_extensions copy \
                -days {days} -out {name}.pem"
        ))
    }

    /// A certificate, as PEM.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn pem(&self, name: &str) -> Result<Vec<u8>, Failed> {
        Ok(std::fs::read(self.path(name))?)
    }

    /// Its key, as PEM.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn key(&self, name: &str) -> Result<Vec<u8>, Failed> {
        Ok(std::fs::read(self.key_path(name))?)
    }

    /// Where a certificate lies.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(format!("{name}.pem"))
    }

    /// Where its key lies.
    #[must_use]
    pub fn key_path(&self, name: &str) -> PathBuf {
        self.dir().join(format!("{name}.key"))
    }

    /// Where they all are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn openssl(&self, script: &str) -> Result<(), Failed> {
        let new = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        let script = format!("set -e; new='{new}'\n{script}");
        let made = Command::new("sh").args(["-c", &script]).current_dir(self.dir()).output()?;
        if made.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&made.stderr);
        Err(format!("no certificates (apt-get install openssl): {why}"))?
    }
}
