//! This hospital's parts in attempts of the aggregation protocol, and what it remembers between them.
//!
//! A step reads and changes the client, the history and the ledger in one transaction, and what is to be sent leaves
//! it only then. So an agent that is killed anywhere says the same again, and two loops can never say two things.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use consilium_federation::Digest;
use consilium_secagg::client::Client;
use consilium_secagg::history::{History, Released};
use consilium_secagg::ids::Digest as ChunkDigest;
use jiff::Timestamp;
use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::assignment::{burn_in, split_key};
use super::ledger;
use super::uploads::{self, UploadProgress, UploadRecord};
use super::{Entry, META, State, StateError, to_json};

/// `<round uid>/<attempt>` to this hospital's part in it. Holds secrets.
const CLIENTS: TableDefinition<&str, &[u8]> = TableDefinition::new("clients");
/// Those whose secrets are still there, so that a look for them reads none.
const OPEN: TableDefinition<&str, ()> = TableDefinition::new("clients-open");
/// Session to the attempt in which its shares were released. Kept for ever, like the history.
const RELEASED: TableDefinition<&str, &str> = TableDefinition::new("released");
const HISTORY: &str = "secagg-history";

/// One attempt of one round.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptKey {
    /// UID of the TrainingRound.
    pub round_uid: String,
    /// Its number, from 1.
    pub attempt: u32,
}

impl AttemptKey {
    pub(super) fn row(&self) -> String {
        format!("{}/{}", self.round_uid, self.attempt)
    }
}

#[derive(Serialize, Deserialize)]
struct Row {
    client: Client,
    /// Head of the ledger with each step's entry, for the RoundTask.
    heads: BTreeMap<String, Digest>,
    /// The masked chunks as they lie beside the update, once all of them do.
    masked: Vec<ChunkDigest>,
}

/// What a step works on: read before it, written after it, as one.
pub struct Memory {
    /// This hospital's part, from its first step on.
    pub client: Option<Client>,
    /// What was signed and released before, in all studies.
    pub history: History,
    /// Digests of the masked chunks on the volume; empty until all of them are there.
    pub masked: Vec<ChunkDigest>,
    /// The step has its entry in the ledger.
    done: bool,
    act: Option<Entry>,
    notes: Vec<Entry>,
    outdated: Option<String>,
}

impl Memory {
    /// What the step does: goes into the ledger, and the head with it into the RoundTask. Done again, it changes
    /// nothing.
    pub fn act(&mut self, entry: Entry) {
        self.act = (!self.done).then_some(entry);
    }

    /// An entry beside the step's own.
    pub fn note(&mut self, entry: Entry) {
        self.notes.push(entry);
    }

    /// Burns the round's other attempts that have released nothing: no hospital is in two.
    pub fn burn_others(&mut self, why: impl Into<String>) {
        self.outdated = Some(why.into());
    }
}

/// What a step left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done<T> {
    /// What is to be sent.
    pub said: T,
    /// Head of the ledger with the step's entry.
    pub head: Digest,
}

/// A step that this hospital refuses, for this attempt and for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Of which stored vector.
    pub vector: String,
    /// Which step.
    pub step: String,
    /// Why.
    pub why: String,
}

/// Bytes that hold secrets: wiped when dropped and when they move to a larger place.
#[derive(Default)]
struct Wiping(Zeroizing<Vec<u8>>);

impl Write for Wiping {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let needed = self.0.len() + bytes.len();
        if needed > self.0.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(needed.next_power_of_two().max(1 << 16)));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn prepare(write: &WriteTransaction) -> Result<(), StateError> {
    write.open_table(CLIENTS)?;
    write.open_table(OPEN)?;
    write.open_table(RELEASED)?;
    Ok(())
}

fn read_row(write: &WriteTransaction, key: &str) -> Result<Option<Row>, StateError> {
    let table = write.open_table(CLIENTS)?;
    let Some(found) = table.get(key)? else { return Ok(None) };
    let mut bytes = Zeroizing::new(found.value().to_vec());
    let row = serde_json::from_slice(&bytes).map_err(StateError::damaged(format!("attempt {key}")))?;
    bytes.zeroize();
    Ok(Some(row))
}

fn write_row(write: &WriteTransaction, key: &str, row: &Row) -> Result<(), StateError> {
    let mut bytes = Wiping::default();
    serde_json::to_writer(&mut bytes, row).map_err(StateError::damaged(format!("attempt {key}")))?;
    write.open_table(CLIENTS)?.insert(key, bytes.0.as_slice())?;
    let mut open = write.open_table(OPEN)?;
    match row.client.phase() {
        "Released" | "Burned" => open.remove(key)?,
        _ => open.insert(key, ())?,
    };
    Ok(())
}

fn read_history(write: &WriteTransaction) -> Result<History, StateError> {
    let meta = write.open_table(META)?;
    let Some(bytes) = meta.get(HISTORY)? else { return Ok(History::default()) };
    serde_json::from_slice(bytes.value()).map_err(StateError::damaged("the history of released sums"))
}

/// Writes a history that only ever grows, and in which attempt each new release happened.
fn write_history(write: &WriteTransaction, before: &History, after: &History, key: &str) -> Result<(), StateError> {
    write.open_table(META)?.insert(HISTORY, to_json("the history", after)?.as_slice())?;
    let mut released = write.open_table(RELEASED)?;
    for new in after.released.iter().filter(|new| !before.released.contains(new)) {
        released.insert(new.sid.to_string().as_str(), key)?;
    }
    Ok(())
}

/// Burns the client of a row, wiping its secrets; after a release there is nothing left to burn.
fn burn_row(write: &WriteTransaction, key: &str, why: &str, now: Timestamp) -> Result<bool, StateError> {
    let Some(mut row) = read_row(write, key)? else { return Ok(false) };
    if row.client.phase() == "Burned" || row.client.burn(why).is_err() {
        return Ok(false);
    }
    write_row(write, key, &row)?;
    burn_in(write, key)?;
    let (round_uid, attempt) = split_key(key);
    ledger::append_in(write, &Entry::AttemptBurned { round_uid, attempt, why: why.to_owned() }, now)?;
    Ok(true)
}

fn open_keys(write: &WriteTransaction) -> Result<Vec<String>, StateError> {
    let table = write.open_table(OPEN)?;
    table.iter()?.map(|row| Ok(row?.0.value().to_owned())).collect()
}

/// Burns every attempt that has released nothing; returns how many.
pub(super) fn burn_all_in(write: &WriteTransaction, why: &str, now: Timestamp) -> Result<usize, StateError> {
    let mut burned = 0;
    for key in open_keys(write)? {
        burned += usize::from(burn_row(write, &key, why, now)?);
    }
    Ok(burned)
}

impl State {
    /// Runs a step of an attempt and stores all of what it changed, durably, before it returns what is to be sent.
    ///
    /// A refusal changes nothing but this: it is in the ledger, the attempt is burned where it can be, and the
    /// vector's upload counts as rejected.
    pub fn in_attempt<T>(
        &self,
        key: &AttemptKey,
        step: &str,
        now: Timestamp,
        act: impl FnOnce(&mut Memory) -> Result<T, Refused>,
    ) -> Result<Result<Done<T>, Refused>, StateError> {
        let write = self.0.db.begin_write()?;
        let row_key = key.row();
        let before = read_row(&write, &row_key)?;
        let history = read_history(&write)?;
        let mut memory = Memory {
            client: before.as_ref().map(|row| row.client.clone()),
            masked: before.as_ref().map(|row| row.masked.clone()).unwrap_or_default(),
            done: before.as_ref().is_some_and(|row| row.heads.contains_key(step)),
            history: history.clone(),
            act: None,
            notes: Vec::new(),
            outdated: None,
        };
        let said = match act(&mut memory) {
            Ok(said) => said,
            Err(refused) => {
                refuse_in(&write, key, &refused, now)?;
                write.commit()?;
                return Ok(Err(refused));
            }
        };
        let head = keep(&write, (&row_key, step), before, &history, memory, now)?;
        write.commit()?;
        Ok(Ok(Done { said, head }))
    }

    /// Writes a refusal down without a step.
    pub fn refuse(&self, key: &AttemptKey, refused: &Refused, now: Timestamp) -> Result<(), StateError> {
        let write = self.0.db.begin_write()?;
        refuse_in(&write, key, refused, now)?;
        Ok(write.commit()?)
    }

    /// Attempts whose secrets are still here.
    pub fn open_attempts(&self) -> Result<Vec<AttemptKey>, StateError> {
        let read = self.0.db.begin_read()?;
        let table = read.open_table(OPEN)?;
        let mut keys = Vec::new();
        for row in table.iter()? {
            let (round_uid, attempt) = split_key(row?.0.value());
            keys.push(AttemptKey { round_uid, attempt });
        }
        Ok(keys)
    }

    /// Gives an attempt up and wipes its secrets; one that has released its shares stays as it is.
    pub fn burn_attempt(&self, key: &AttemptKey, why: &str, now: Timestamp) -> Result<bool, StateError> {
        let write = self.0.db.begin_write()?;
        let burned = burn_row(&write, &key.row(), why, now)?;
        write.commit()?;
        Ok(burned)
    }

    /// The phase that an attempt is in, for statuses and tests.
    pub fn phase(&self, key: &AttemptKey) -> Result<Option<&'static str>, StateError> {
        let Some(bytes) = self.read(CLIENTS, &key.row())?.map(Zeroizing::new) else { return Ok(None) };
        let row: Row = serde_json::from_slice(&bytes).map_err(StateError::damaged(key.row()))?;
        Ok(Some(row.client.phase()))
    }

    /// What was signed and released so far.
    pub fn history(&self) -> Result<History, StateError> {
        Ok(self.read_json(META, HISTORY)?.unwrap_or_default())
    }

    /// The attempt in which a session's shares were released.
    pub fn released_in(&self, released: &Released) -> Result<Option<AttemptKey>, StateError> {
        let read = self.0.db.begin_read()?;
        let table = read.open_table(RELEASED)?;
        let found = table.get(released.sid.to_string().as_str())?;
        Ok(found.map(|row| {
            let (round_uid, attempt) = split_key(row.value());
            AttemptKey { round_uid, attempt }
        }))
    }

    /// Removes a round's parts in attempts; none of them is opened again. What was released stays known.
    pub(super) fn forget_attempts(&self, round_uid: &str) -> Result<(), StateError> {
        let write = self.0.db.begin_write()?;
        let first = format!("{round_uid}/");
        let keys: BTreeSet<String> = {
            let table = write.open_table(CLIENTS)?;
            let mut keys = BTreeSet::new();
            for row in table.range(first.as_str()..)? {
                let key = row?.0.value().to_owned();
                if !key.starts_with(&first) {
                    break;
                }
                keys.insert(key);
            }
            keys
        };
        for key in keys {
            write.open_table(CLIENTS)?.remove(key.as_str())?;
            write.open_table(OPEN)?.remove(key.as_str())?;
            burn_in(&write, &key)?;
        }
        Ok(write.commit()?)
    }
}

fn keep(
    write: &WriteTransaction,
    (key, step): (&str, &str),
    before: Option<Row>,
    history: &History,
    memory: Memory,
    now: Timestamp,
) -> Result<Digest, StateError> {
    let Memory { client, history: after, masked, done: _, act, notes, outdated } = memory;
    let mut heads = before.as_ref().map(|row| row.heads.clone()).unwrap_or_default();
    if let Some(why) = outdated {
        let (round_uid, _) = split_key(key);
        for other in open_keys(write)?.iter().filter(|other| *other != key && split_key(other).0 == round_uid) {
            burn_row(write, other, &why, now)?;
        }
    }
    for entry in notes {
        ledger::append_in(write, &entry, now)?;
    }
    if let Some(entry) = act {
        heads.insert(step.to_owned(), ledger::append_in(write, &entry, now)?);
    }
    if *history != after {
        write_history(write, history, &after, key)?;
    }
    let head = heads.get(step).copied();
    let unchanged = match (&before, &client) {
        (Some(row), Some(client)) => row.client == *client && row.heads == heads && row.masked == masked,
        (_, client) => client.is_none(),
    };
    if let (false, Some(client)) = (unchanged, client) {
        write_row(write, key, &Row { client, heads, masked })?;
    }
    head.map_or_else(|| ledger::head_in(write), Ok)
}

fn refuse_in(write: &WriteTransaction, key: &AttemptKey, refused: &Refused, now: Timestamp) -> Result<(), StateError> {
    let row_key = key.row();
    let (round_uid, attempt) = (key.round_uid.clone(), key.attempt);
    let entry = Entry::AttemptRefused { round_uid, attempt, step: refused.step.clone(), why: refused.why.clone() };
    ledger::append_in(write, &entry, now)?;
    burn_row(write, &row_key, &refused.why, now)?;
    let record = UploadRecord { attempt: key.attempt, progress: UploadProgress::Rejected(refused.why.clone()) };
    uploads::put_in(write, &refused.vector, &record)
}
