//! The suite against the store inside the process.

use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use sync_conformance::{Failed, Server, Store, Tamper};
use sync_core::{Backend, Error, Options, memory};

pub(crate) struct Memory(pub(crate) memory::Store);

#[async_trait]
impl Store for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    async fn start(&self) -> Result<Server, Failed> {
        Ok(Server::in_process("memory"))
    }

    async fn connect(&self, _: &str, options: &Options) -> Result<Arc<dyn Backend>, Error> {
        Ok(Arc::new(self.0.backend(&options.parsed_namespace()?)))
    }

    async fn leftovers(&self, _: &str, namespace: &str) -> Result<Vec<String>, Failed> {
        let ours = |key: &String| key.starts_with(&format!("{namespace}/"));
        Ok(self.0.keys().into_iter().filter(ours).collect())
    }

    fn tampers(&self) -> &[Tamper] {
        &[Tamper::Delete, Tamper::EndSession]
    }

    async fn tamper(&self, _: &str, key: &str, how: Tamper) -> Result<(), Failed> {
        let found = match how {
            Tamper::Delete => self.0.remove_key(key),
            Tamper::EndSession => self.0.end_session_of(key),
            _ => return Err(format!("not possible here: {how:?}"))?,
        };
        Ok(found.then_some(()).ok_or("nobody holds the key")?)
    }
}

fn main() -> ExitCode {
    sync_conformance::main(Memory(memory::Store::new()))
}
