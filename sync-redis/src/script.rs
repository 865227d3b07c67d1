//! The scripts, and what they answer.

use std::sync::LazyLock;

use redis::{Cmd, Script, Value};
use sync_core::StoreError;

use crate::connection::Link;
use crate::error;
#[cfg(sync_mutants)]
use crate::mutant::served;

/// Without deliberate faults.
#[cfg(not(sync_mutants))]
const fn served(code: &'static str) -> &'static str {
    code
}

macro_rules! scripts {
    ($($name:ident = $file:literal;)*) => {
        $(pub(crate) static $name: Source = Source {
            code: LazyLock::new(|| served(concat!(
                include_str!("scripts/head.lua"),
                include_str!(concat!("scripts/", $file, ".lua")),
                include_str!("scripts/tail.lua"),
            ))),
            compiled: LazyLock::new(|| Script::new(*$name.code)),
        };)*

        /// All that run while a coordinator works.
        pub(crate) static ALL: &[&Source] = &[$(&$name),*];
    };
}

scripts! {
    ACQUIRE = "acquire";
    END = "end";
    RENEW = "renew";
    UPDATE = "update";
    HOLDER = "holder";
    CHECK = "check";
}

/// A script as the server gets it.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) code: LazyLock<&'static str>,
    compiled: LazyLock<Script>,
}

impl Source {
    pub(crate) fn hash(&self) -> &str {
        self.compiled.get_hash()
    }

    /// The beginning of a call, by hash. Keys and arguments follow.
    pub(crate) fn call(&self, keys: usize, arguments: usize, bytes: usize) -> Cmd {
        let mut command = Cmd::with_capacity(3 + keys + arguments, 64 + bytes);
        command.arg("EVALSHA").arg(self.hash()).arg(keys);
        command
    }

    /// The command that makes the script known to the server.
    pub(crate) fn load(&self) -> Cmd {
        let mut command = Cmd::new();
        command.arg("SCRIPT").arg("LOAD").arg(*self.code);
        command
    }

    /// Runs a call that was begun with [`call`](Source::call); a server that has forgotten the
    /// script (a restart, SCRIPT FLUSH) gets it again with the same arguments.
    pub(crate) async fn run(
        &self,
        link: &mut Link,
        call: &Cmd,
        echo: &str,
    ) -> Result<Reply, StoreError> {
        match link.send(call).await? {
            Value::ServerError(error) if error::is_no_script(&error) => {
                Reply::read(link.send(&self.in_full(call)).await?, echo, link)
            }
            value => Reply::read(value, echo, link),
        }
    }

    /// [`run`](Source::run) for callers that may go away at any time.
    pub(crate) async fn look(
        &self,
        link: &mut Link,
        call: &Cmd,
        echo: &str,
    ) -> Result<Reply, StoreError> {
        match link.look(call).await? {
            Value::ServerError(error) if error::is_no_script(&error) => {
                Reply::read(link.look(&self.in_full(call)).await?, echo, link)
            }
            value => Reply::read(value, echo, link),
        }
    }

    /// The same call with the code instead of its hash.
    fn in_full(&self, call: &Cmd) -> Cmd {
        let mut command = Cmd::new();
        command.arg("EVAL").arg(*self.code);
        for argument in call.args_iter().skip(2) {
            if let redis::Arg::Simple(argument) = argument {
                command.arg(argument);
            }
        }
        command
    }
}

/// What a script answered: a status, words that belong to it, and what may hold any bytes.
#[derive(Debug)]
pub(crate) struct Reply {
    status: String,
    words: String,
    values: std::vec::IntoIter<Value>,
}

impl Reply {
    /// Reads an answer that must name `echo`: an answer to somebody else's question must not
    /// grant anything.
    pub(crate) fn read(value: Value, echo: &str, link: &Link) -> Result<Self, StoreError> {
        let mut values = match value {
            Value::BulkString(line) => return Self::of(&line, Vec::new(), echo, link),
            Value::Array(values) => values.into_iter(),
            Value::ServerError(error) => return Err(link.replied(&error::text(&error))),
            _ => return Err(link.off_by_one()),
        };
        match values.next() {
            Some(Value::BulkString(line)) => Self::of(&line, values.collect(), echo, link),
            _ => Err(link.off_by_one()),
        }
    }

    fn of(line: &[u8], values: Vec<Value>, echo: &str, link: &Link) -> Result<Self, StoreError> {
        let line = String::from_utf8_lossy(line);
        let Some(rest) = line.strip_prefix(echo).and_then(|rest| rest.strip_prefix(' ')) else {
            return Err(link.off_by_one());
        };
        let (status, words) = rest.split_once(' ').unwrap_or((rest, ""));
        if status == "refused" {
            return Err(link.refused(words));
        }
        let (status, words) = (status.to_owned(), words.to_owned());
        Ok(Self { status, words, values: values.into_iter() })
    }

    pub(crate) fn status(&self) -> &str {
        &self.status
    }

    /// The words after the status.
    pub(crate) fn words(&self) -> impl Iterator<Item = &str> {
        self.words.split_ascii_whitespace()
    }

    /// The next of what may hold any bytes.
    pub(crate) fn bytes(&mut self) -> Option<Vec<u8>> {
        match self.values.next() {
            Some(Value::BulkString(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// An answer that fits none of those that the script gives.
    pub(crate) fn unexpected(&self) -> StoreError {
        StoreError::unknown(format!("{:?} is no answer that was expected", self.status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_record_is_what_the_core_says() {
        let line = format!("local LONGEST_RECORD = {} --", sync_core::LONGEST_RECORD);
        assert!(ACQUIRE.code.contains(&line));
    }
}
