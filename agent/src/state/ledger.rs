//! The hospital's own account: append-only, each entry holding the hash of the one before.
//!
//! It holds every decision that changed and every byte that left, so that an
//! administrator can show afterwards what this hospital agreed to and sent. The
//! chain makes a change or a gap visible; it does not keep an attacker with the
//! volume from writing a new chain, which is why heads also go into RoundTasks.

use std::sync::PoisonError;

use consilium_federation::Digest;
use consilium_federation::ledger::{Break, Chain, genesis};
use consilium_federation::report::LedgerEnd;
use jiff::Timestamp;
use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Entry, META, State, StateError, to_json};

const LEDGER: TableDefinition<u64, &[u8]> = TableDefinition::new("ledger");
/// Hash of an entry to its number.
const HEADS: TableDefinition<&str, u64> = TableDefinition::new("ledger-heads");
const HEAD: &str = "ledger-head";
/// What is in force from here on: written on each entry.
const POLICY: &str = "ledger-policy";
const POLICY_UID: &str = "policy-uid";
const HUB: &str = "ledger-hub";
/// Hub and certificate of the last entry that names them.
const IDENTITY: &str = "ledger-identity";

/// One entry with its place in the chain. Its hash is the SHA-256 of its bytes as stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// From 1.
    pub seq: u64,
    /// When.
    pub time: Timestamp,
    /// Hash of the entry before; that of nothing for the first.
    pub prev: Digest,
    /// Not to be guessed outside, and open to whoever is shown the record: heads leave the hospital, and without it the
    /// digest of a short vector in an entry could be found by trying out all vectors.
    #[serde(default)]
    pub salt: String,
    /// Generation of the SitePolicy in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<i64>,
    /// Where it went, if it left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// What.
    pub entry: Entry,
}

pub(super) fn prepare(write: &WriteTransaction) -> Result<(), StateError> {
    write.open_table(LEDGER)?;
    write.open_table(HEADS)?;
    Ok(())
}

/// A word about what is in force, if there is one.
fn in_force<T: serde::de::DeserializeOwned>(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<T>, StateError> {
    let Some(bytes) = meta.get(key)? else { return Ok(None) };
    serde_json::from_slice(bytes.value()).map_err(StateError::damaged(key))
}

fn parse_head(bytes: &[u8]) -> Result<Digest, StateError> {
    let text = String::from_utf8_lossy(bytes);
    text.parse().map_err(|e: consilium_federation::digest::DigestError| StateError::Damaged {
        what: "the head of the ledger".into(),
        why: e.to_string(),
    })
}

/// 128 bits that only the hospital's secret gives; the same for the same place in the same chain.
fn salt(secret: &[u8], seq: u64, prev: Digest) -> String {
    let parts = [b"consilium/ledger-salt/v1\0".as_slice(), secret, &seq.to_be_bytes(), prev.as_bytes()];
    Digest::of_parts(parts).hex().chars().take(32).collect()
}

/// Appends within a transaction, so that an act and its entry are one.
pub(super) fn append_in(write: &WriteTransaction, entry: &Entry, now: Timestamp) -> Result<Digest, StateError> {
    let mut ledger = write.open_table(LEDGER)?;
    let mut meta = write.open_table(META)?;
    let seq = ledger.len()? + 1;
    let prev = match meta.get(HEAD)? {
        Some(bytes) => parse_head(bytes.value())?,
        None => genesis(),
    };
    let salt = {
        let secret = meta.get("secret")?.map(|secret| Zeroizing::new(secret.value().to_vec())).unwrap_or_default();
        salt(&secret, seq, prev)
    };
    // From this entry on.
    match entry.innermost() {
        Entry::PolicyInForce { generation, uid, .. } => {
            meta.insert(POLICY, to_json(POLICY, generation)?.as_slice())?;
            meta.insert(POLICY_UID, to_json(POLICY_UID, uid)?.as_slice())?;
        }
        Entry::HubDialed { hub, .. } => drop(meta.insert(HUB, to_json(HUB, hub)?.as_slice())?),
        _ => {}
    }
    let policy = in_force::<i64>(&meta, POLICY)?;
    let to = if entry.leaves() { in_force::<String>(&meta, HUB)? } else { None };
    let record = Record { seq, time: now, prev, salt, policy, to, entry: entry.clone() };
    let bytes = to_json("a ledger entry", &record)?;
    let head = Digest::of(&bytes);
    ledger.insert(seq, bytes.as_slice())?;
    meta.insert(HEAD, head.to_string().as_bytes())?;
    write.open_table(HEADS)?.insert(head.to_string().as_str(), seq)?;
    Ok(head)
}

/// The head as a transaction sees it.
pub(super) fn head_in(write: &WriteTransaction) -> Result<Digest, StateError> {
    match write.open_table(META)?.get(HEAD)? {
        Some(bytes) => parse_head(bytes.value()),
        None => Ok(genesis()),
    }
}

impl State {
    /// Entries so far and the hash of the last one.
    pub fn ledger_end(&self) -> Result<LedgerEnd, StateError> {
        // One look: an entry may be written in between.
        let read = self.0.db.begin_read()?;
        let entries = read.open_table(LEDGER)?.len()?;
        let head = match read.open_table(META)?.get(HEAD)? {
            Some(bytes) => parse_head(bytes.value())?,
            None => genesis(),
        };
        Ok(LedgerEnd { entries, head })
    }

    /// Whether this policy is another than the last one that was asked about, here or before a restart. One that was deleted
    /// and made again has another UID, and may have the same generation.
    pub fn is_news(&self, uid: Option<String>, generation: Option<i64>) -> Result<bool, StateError> {
        let mut known = self.0.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            let generation: Option<Option<i64>> = self.read_json(META, POLICY)?;
            let uid: Option<Option<String>> = self.read_json(META, POLICY_UID)?;
            *known = generation.map(|generation| (uid.flatten(), generation));
        }
        let asked = (uid, generation);
        Ok(known.replace(asked.clone()) != Some(asked))
    }

    /// Writes down with which hub the agent speaks from here on, if that is news.
    pub fn dialed(&self, hub: &str, identity: Digest, now: Timestamp) -> Result<(), StateError> {
        let known: Option<(String, Digest)> = self.read_json(META, IDENTITY)?;
        if known.is_some_and(|known| known == (hub.to_owned(), identity)) {
            return Ok(());
        }
        let write = self.0.db.begin_write()?;
        append_in(&write, &Entry::HubDialed { hub: hub.to_owned(), identity }, now)?;
        write.open_table(META)?.insert(IDENTITY, to_json(IDENTITY, &(hub, identity))?.as_slice())?;
        Ok(write.commit()?)
    }

    /// Appends an entry, durably; returns the new head.
    pub fn append(&self, entry: Entry, now: Timestamp) -> Result<Digest, StateError> {
        let write = self.0.db.begin_write()?;
        let head = append_in(&write, &entry, now)?;
        write.commit()?;
        Ok(head)
    }

    /// Hash of the last entry.
    pub fn head(&self) -> Result<Digest, StateError> {
        match self.read(META, HEAD)? {
            Some(bytes) => parse_head(&bytes),
            None => Ok(genesis()),
        }
    }

    /// Whether this ledger ever had this head. If not, the volume was restored from before it.
    pub fn had_head(&self, head: Digest) -> Result<bool, StateError> {
        Ok(self.head_number(head)?.is_some())
    }

    /// How many entries this ledger had when this was its head; none if it never was.
    pub fn head_number(&self, head: Digest) -> Result<Option<u64>, StateError> {
        if head == genesis() {
            return Ok(Some(0));
        }
        let read = self.0.db.begin_read()?;
        Ok(read.open_table(HEADS)?.get(head.to_string().as_str())?.map(|number| number.value()))
    }

    /// Entries from number `from` on, at most `limit`.
    pub fn ledger(&self, from: u64, limit: usize) -> Result<Vec<Record>, StateError> {
        let read = self.0.db.begin_read()?;
        let table = read.open_table(LEDGER)?;
        let mut records = Vec::new();
        for row in table.range(from..)?.take(limit) {
            let (seq, bytes) = row?;
            let record = serde_json::from_slice(bytes.value());
            records.push(record.map_err(StateError::damaged(format!("ledger entry {}", seq.value())))?);
        }
        Ok(records)
    }

    /// Entries from number `from` on as they are stored, at most `limit`.
    pub fn ledger_lines(&self, from: u64, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, StateError> {
        let read = self.0.db.begin_read()?;
        let table = read.open_table(LEDGER)?;
        let rows = table.range(from..)?.take(limit);
        rows.map(|row| row.map(|(seq, bytes)| (seq.value(), bytes.value().to_vec())).map_err(StateError::from))
            .collect()
    }

    /// Walks the whole chain; returns how many entries it holds.
    pub fn verify(&self) -> Result<u64, StateError> {
        let read = self.0.db.begin_read()?;
        let table = read.open_table(LEDGER)?;
        let mut chain = Chain::whole();
        for row in table.iter()? {
            let (_, bytes) = row?;
            let seq = chain.end().entries + 1;
            chain.follow(bytes.value()).map_err(|why| StateError::Ledger { seq, why: why.to_string() })?;
        }
        let (stored, LedgerEnd { entries, head }) = (self.head()?, chain.end());
        if stored == head {
            Ok(entries)
        } else {
            let why = Break::End { said: entries + 1, found: entries }.to_string();
            Err(StateError::Ledger { seq: entries + 1, why })
        }
    }
}

#[cfg(test)]
impl State {
    /// Overwrites an entry, as someone with the volume could.
    pub(crate) fn tamper(&self, seq: u64, bytes: Option<&[u8]>) {
        let write = self.0.db.begin_write().unwrap();
        {
            let mut table = write.open_table(LEDGER).unwrap();
            match bytes {
                Some(bytes) => drop(table.insert(seq, bytes).unwrap()),
                None => drop(table.remove(seq).unwrap()),
            }
        }
        write.commit().unwrap();
    }
}
