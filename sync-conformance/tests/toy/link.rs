//! Connections to the toy server, one for each request under way, and what its lines say.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sync_core::backend::Version;
use sync_core::{LONGEST_RECORD, StoreError};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

/// The longest answer that is read.
const LONGEST_ANSWER: usize = 16 << 20;

#[derive(Debug)]
pub(crate) struct Link {
    address: String,
    idle: Mutex<Vec<BufStream<TcpStream>>>,
    asked: AtomicU64,
}

impl Link {
    pub(crate) fn new(address: &str) -> Self {
        Self { address: address.to_owned(), idle: Mutex::default(), asked: AtomicU64::new(0) }
    }

    /// Sends a line and reads the whole answer.
    pub(crate) async fn ask(&self, request: &str) -> Result<String, StoreError> {
        // The answer begins with the number of its request: no other is believed.
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        // While it is in use it is not among the idle: one whose call was dropped is closed, and
        // nobody takes the answer to another's question for the answer to his own.
        let idle = self.idle().pop();
        let mut stream = match idle {
            Some(stream) => stream,
            None => {
                let made = TcpStream::connect(&self.address).await;
                BufStream::new(made.map_err(|e| StoreError::unsent(format!("no connection: {e}")))?)
            }
        };
        let answer = exchange(&mut stream, number, request).await.map_err(|e| {
            self.idle().clear();
            // It may have been carried out all the same.
            StoreError::unknown(format!("the connection was lost: {e}"))
        })?;
        self.idle().push(stream);
        Ok(answer)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<BufStream<TcpStream>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn exchange(
    stream: &mut BufStream<TcpStream>,
    number: u64,
    request: &str,
) -> io::Result<String> {
    stream.write_all(format!("{number} {request}\n").as_bytes()).await?;
    stream.flush().await?;
    let mut answer = String::new();
    while !answer.ends_with("\n.\n") {
        // What has no end is no answer.
        if answer.len() > LONGEST_ANSWER || stream.read_line(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    answer.truncate(answer.len() - 3);
    let answer = answer.strip_prefix(&format!("{number} "));
    Ok(answer.ok_or(io::ErrorKind::InvalidData)?.to_owned())
}

/// A claim as it stands in the store.
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) number: u64,
    pub(crate) version: Version,
    pub(crate) record: Vec<u8>,
}

/// The first claim in the answer, which holds.
pub(crate) fn first(answer: &str) -> Option<Entry> {
    let columns: Vec<&str> = answer.lines().nth(1)?.split(' ').collect();
    let [key, number, version, record] = columns[..] else { return None };
    let (number, version) = (number.parse().ok()?, Version::new(version.as_bytes()));
    let byte = |at| u8::from_str_radix(record.get(at..at + 2)?, 16).ok();
    let bytes = (0..record.len().min(2 * LONGEST_RECORD)).step_by(2).map(byte);
    Some(Entry { key: key.to_owned(), number, version, record: bytes.collect::<Option<_>>()? })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
