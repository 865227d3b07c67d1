//! The toy store: keys that belong to sessions and are numbered as they are made.
//!
//! A request is a line, an answer some lines and a `.`. All changes are written to a file first, so
//! that it comes back with its data after it was killed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Serves for ever.
pub(crate) fn serve(port: u16, folder: &Path) -> io::Result<()> {
    let store = Arc::new(Mutex::new(Store::load(&folder.join("log"))?));
    for client in TcpListener::bind((Ipv4Addr::LOCALHOST, port))?.incoming() {
        let (client, store) = (client?, Arc::clone(&store));
        // Who goes away does not get an answer.
        std::thread::spawn(move || answer(&client, &store).ok());
    }
    Ok(())
}

fn answer(mut client: &TcpStream, store: &Mutex<Store>) -> io::Result<()> {
    let mut requests = BufReader::new(client);
    loop {
        let mut request = String::new();
        requests.read_line(&mut request)?;
        // What was cut off is no request.
        let Some(request) = request.strip_suffix('\n') else { return Ok(()) };
        let Some((number, request)) = request.split_once(' ') else { return Ok(()) };
        let answer = store.lock().unwrap_or_else(PoisonError::into_inner).serve(request)?;
        client.write_all(format!("{number} {answer}\n.\n").as_bytes())?;
    }
}

struct Store {
    log: File,
    data: Data,
    /// When each session ends unless it is renewed.
    ends: BTreeMap<String, Instant>,
}

/// What comes of the changes alone, in their order.
#[derive(Default)]
struct Data {
    /// Counts all keys and sessions that were ever made.
    made: u64,
    /// TTLs in milliseconds.
    sessions: BTreeMap<String, u64>,
    keys: BTreeMap<String, Key>,
}

struct Key {
    number: u64,
    session: String,
    changes: u64,
    value: String,
}

impl Key {
    fn version(&self) -> String {
        format!("{}.{}", self.number, self.changes)
    }
}

impl Store {
    fn load(path: &Path) -> io::Result<Self> {
        let mut data = Data::default();
        let known = fs::read_to_string(path).unwrap_or_default();
        // A last line without its end was never answered.
        let whole = known.rfind('\n').map_or("", |end| &known[..end]);
        whole.lines().for_each(|line| drop(data.change(line)));
        let log = File::options().create(true).truncate(false).write(true).open(path)?;
        log.set_len(if whole.is_empty() { 0 } else { whole.len() as u64 + 1 })?;
        io::Seek::seek(&mut &log, io::SeekFrom::End(0))?;
        let mut store = Self { log, data, ends: BTreeMap::new() };
        // Nobody knows how much of it they had left: all of it.
        let ids: Vec<String> = store.data.sessions.keys().cloned().collect();
        ids.iter().for_each(|id| store.extend(id));
        Ok(store)
    }

    fn serve(&mut self, request: &str) -> io::Result<String> {
        let now = Instant::now();
        let over = self.ends.iter().filter(|(_, end)| **end <= now).map(|(id, _)| id.clone());
        for id in over.collect::<Vec<_>>() {
            self.ends.remove(&id);
            self.change(&format!("close {id}"))?;
        }
        Ok(match request.split_once(' ') {
            Some(("renew", id)) => self.renew(id),
            Some(("list", folder)) => self.data.list(folder),
            Some(("open", _)) => {
                let id = self.change(request)?;
                self.extend(&id);
                id
            }
            Some(_) => self.change(request)?,
            None => "toy".to_owned(),
        })
    }

    fn change(&mut self, request: &str) -> io::Result<String> {
        self.log.write_all(format!("{request}\n").as_bytes())?;
        Ok(self.data.change(request))
    }

    fn extend(&mut self, id: &str) {
        if let Some(ttl) = self.data.sessions.get(id) {
            self.ends.insert(id.to_owned(), Instant::now() + Duration::from_millis(*ttl));
        }
    }

    /// Extends a session, and names its keys.
    fn renew(&mut self, id: &str) -> String {
        if !self.data.sessions.contains_key(id) {
            return "gone".to_owned();
        }
        self.extend(id);
        let ours = self.data.keys.iter().filter(|(_, key)| key.session == id);
        ours.fold("alive".to_owned(), |text, (name, _)| text + "\n" + name)
    }
}

impl Data {
    fn change(&mut self, request: &str) -> String {
        let Self { made, sessions, keys } = self;
        match request.split(' ').collect::<Vec<_>>()[..] {
            // A session with this TTL.
            ["open", ttl] => {
                *made += 1;
                sessions.insert(format!("s{made}"), ttl.parse().unwrap_or(0));
                format!("s{made}")
            }
            ["close", id] => {
                sessions.remove(id);
                keys.retain(|_, key| key.session != id);
                "closed".to_owned()
            }
            // A key, unless another is there; and with `first`, only into an empty folder. The
            // answer is what stands in the folder then.
            ["add" | "first", id, _, _, _] if !sessions.contains_key(id) => "gone".to_owned(),
            ["add" | "first", _, _, _, unless] if keys.contains_key(unless) => "refused".to_owned(),
            [verb, id, name, value, _] => {
                let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                if verb == "add" || self.entries(folder).is_empty() {
                    self.made += 1;
                    let (number, session, value) = (self.made, id.to_owned(), value.to_owned());
                    let key = Key { number, session, changes: 0, value };
                    self.keys.entry(name.to_owned()).or_insert(key);
                }
                self.list(folder)
            }
            // Another value, if its version is still this one.
            ["set", name, version, value] => match keys.get_mut(name) {
                Some(key) if key.value == value => key.version(),
                Some(key) if key.version() == version => {
                    (key.changes, key.value) = (key.changes + 1, value.to_owned());
                    key.version()
                }
                _ => "other".to_owned(),
            },
            ["delete", name] if keys.remove(name).is_some() => "deleted".to_owned(),
            _ => "nothing".to_owned(),
        }
    }

    /// The keys in a folder and below, in the order in which they were made.
    fn entries(&self, folder: &str) -> Vec<(&String, &Key)> {
        let inside =
            |name: &str| name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
        let mut found: Vec<_> = self.keys.iter().filter(|(name, _)| inside(name)).collect();
        found.sort_by_key(|(_, key)| key.number);
        found
    }

    fn list(&self, folder: &str) -> String {
        self.entries(folder).iter().fold("keys".to_owned(), |text, (name, key)| {
            format!("{text}\n{name} {} {} {}", key.number, key.version(), key.value)
        })
    }
}
