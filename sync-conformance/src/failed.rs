//! Why a case did not pass, and where.

use std::fmt;
use std::panic::Location;

/// Why a case did not pass. Anything with a text turns into one by `?`, which notes the place.
///
/// ```
/// use sync_conformance::Failed;
///
/// fn case() -> Result<(), Failed> {
///     "12x".parse::<u8>()?;
///     Ok(())
/// }
/// assert!(case().unwrap_err().to_text().contains("invalid digit"));
/// ```
#[derive(Clone)]
pub struct Failed {
    text: String,
    at: &'static Location<'static>,
    skipped: bool,
}

impl Failed {
    /// The case does not apply here: it is listed with this reason and counted as skipped.
    ///
    /// For facts that only show while it runs. What is known before belongs into
    /// [`Case::needs`](crate::suite::Case::needs); and safety is never skipped.
    #[track_caller]
    #[must_use]
    pub fn skipped(reason: impl fmt::Display) -> Self {
        Self { text: reason.to_string(), at: Location::caller(), skipped: true }
    }

    /// Whether the case does not apply, rather than failed.
    #[must_use]
    pub fn is_skipped(&self) -> bool {
        self.skipped
    }

    /// What happened, without the place.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.text
    }

    /// What happened, and where.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!("{} (at {}:{})", self.text, self.at.file(), self.at.line())
    }

    /// The same failure with more said about it.
    #[must_use]
    pub(crate) fn and(mut self, more: impl fmt::Display) -> Self {
        self.text = format!("{}\n{more}", self.text);
        self
    }
}

// No `Display`: it would meet the conversion below.
impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

impl<T: fmt::Display> From<T> for Failed {
    #[track_caller]
    fn from(text: T) -> Self {
        Self { text: text.to_string(), at: Location::caller(), skipped: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_line_of_its_question_mark() {
        fn fails() -> Result<(), Failed> {
            Err("no")?;
            Ok(())
        }
        let text = fails().unwrap_err().to_text();
        assert!(text.starts_with(&format!("no (at {}:", file!())), "{text}");
    }
}
