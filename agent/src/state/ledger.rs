//! The hospital's own account: append-only, each entry holding the hash of the one before.
//!
//! It holds every decision that changed and every byte that left, so that an
//! administrator can show afterwards what this hospital agreed to and sent. The
//! chain makes a change or a gap visible; it does not keep an attacker with the
//! volume from writing a new chain, which is why heads also go into RoundTasks.

use consilium_federation::report::LedgerEnd;
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, StudyKey};
use jiff::Timestamp;
use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{META, State, StateError, to_json};
use crate::policy::Barrier;

const LEDGER: TableDefinition<u64, &[u8]> = TableDefinition::new("ledger");
/// Hash of an entry to its number.
const HEADS: TableDefinition<&str, u64> = TableDefinition::new("ledger-heads");
const HEAD: &str = "ledger-head";
/// The hub's last signature over an end of the ledger.
const COUNTERSIGNED: &str = "ledger-countersigned";

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all_fields = "camelCase")]
pub enum Entry {
    /// The veto ladder came to another decision on a part in a round.
    Decision {
        /// UID of the TrainingRound.
        subject: String,
        /// The study.
        study: StudyKey,
        /// Its round.
        round: u32,
        /// Which part.
        kind: TaskKind,
        /// Where the ladder was asked.
        barrier: Barrier,
        /// Yes or no.
        allowed: bool,
        /// The reason that the hub is told.
        reason: String,
        /// Which rung, and what it saw.
        message: String,
    },
    /// The release ladder came to another decision on a model.
    ReleaseDecision {
        /// UID of the ModelPromotion.
        subject: String,
        /// The release.
        release: String,
        /// The stage asked for.
        stage: String,
        /// Yes or no.
        allowed: bool,
        /// Which rung, and what it saw.
        message: String,
    },
    /// A task pod was given the base model.
    BaseHandedOut {
        /// UID of the RoundTask.
        task_uid: String,
        /// Its try.
        r#try: u32,
        /// The model.
        model: Digest,
    },
    /// A task delivered a result, and it is durable here.
    Delivered {
        /// UID of the RoundTask.
        task_uid: String,
        /// Its try.
        r#try: u32,
        /// Digest of what was stored.
        result: Digest,
    },
    /// The point of no return: these bytes are about to leave. Written before the first of them does.
    UploadBegins {
        /// UID of the TrainingRound.
        round_uid: String,
        /// The attempt.
        attempt: u32,
        /// Digest of the whole update.
        update: Digest,
        /// Its chunks; a resumed upload sends fewer.
        chunks: u32,
        /// Their bytes.
        bytes: u64,
    },
    /// What did leave since the last `UploadBegins` of this attempt.
    UploadEnded {
        /// UID of the TrainingRound.
        round_uid: String,
        /// The attempt.
        attempt: u32,
        /// Chunks sent.
        chunks: u32,
        /// Their bytes.
        bytes: u64,
        /// The hub holds all of it.
        complete: bool,
    },
    /// A vote, and numbers if the policy allows them, were reported.
    EvaluationSent {
        /// UID of the TrainingRound.
        round_uid: String,
        /// `Pass`, `Fail` or `Abstain`.
        vote: String,
        /// Sums over the cases were sent.
        sums: bool,
        /// The hospital's own numbers were published.
        published: bool,
    },
    /// This hospital takes part in an attempt of the aggregation protocol.
    AttemptOpened {
        /// UID of the TrainingRound.
        round_uid: String,
        /// The attempt.
        attempt: u32,
        /// What is summed: `Train` or `Evaluate`.
        kind: TaskKind,
        /// The base model, or the model evaluated.
        model: Digest,
        /// Whose keys hold.
        roster: Digest,
        /// Digest of the message that leaves: two copies of a volume that say two things have two heads.
        message: Digest,
    },
    /// Its shares of the masks' seeds are about to leave, for the other hospitals alone.
    SharesSent {
        /// UID of the TrainingRound.
        round_uid: String,
        /// The attempt.
        attempt: u32,
        /// The protocol's session.
        session: String,
        /// Who takes part.
        hospitals: Vec<String>,
        /// Digest of the message that leaves.
        message: Digest,
    },
    /// It signed whose updates are in the sum, the only time in this session.
    SurvivorsSigned {
        /// UID of the TrainingRound.
        round_uid: String,
        /// The attempt.
        attempt: u32,
        /// The protocol's session.
        session: String,
        /// Whose updates are in the sum.
        hospitals: Vec<String>,
        /// Digest of the message that leaves.
        message: Digest,
    },
    /// The point of no return of the sum: the shares that take its masks off are about to leave.
    SharesReleased {
        /// UID of the TrainingRound.
        round_uid: String,
        /// The attempt.
        attempt: u32,
        /// The protocol's session.
        session: String,
        /// Digest of the message that leaves.
        message: Digest,
    },
    /// The hub asked for something that this hospital must not answer.
    AttemptRefused {
        /// UID of the TrainingRound.
        round_uid: String,
        /// The attempt.
        attempt: u32,
        /// Which step.
        step: String,
        /// Why.
        why: String,
    },
    /// An attempt was given up and its secrets wiped.
    AttemptBurned {
        /// UID of the TrainingRound.
        round_uid: String,
        /// The attempt.
        attempt: u32,
        /// Why.
        why: String,
    },
    /// A roster of hospital keys that governance signed holds from here on.
    RosterAccepted {
        /// Its version.
        version: u64,
        /// Its digest, without signatures.
        roster: Digest,
        /// Hospitals on it.
        hospitals: u32,
    },
    /// The volume is older than what was seen of it: it was restored from a backup, or copied.
    StateRolledBack {
        /// What was seen.
        why: String,
    },
    /// Something that ran here was stopped by the hospital's own word, whatever the hub said.
    Stopped {
        /// What it is: `Job`, `Pod`, `ModelDeployment`, `Deployment`.
        kind: String,
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
        /// Which word, and what it saw.
        why: String,
    },
    /// Something that could not be written down when it happened, since the volume took nothing.
    Late {
        /// When it happened.
        happened: Timestamp,
        /// What.
        what: Box<Entry>,
    },
    /// So many things were refused one after the other that these have no entries of their own.
    Refusals {
        /// How many, since the last one that has.
        entries: u64,
    },
    /// So many things happened while the volume took nothing that these were forgotten.
    Lost {
        /// How many.
        entries: u64,
    },
    /// The hub has another store: its open attempts were burned.
    NewEpoch {
        /// The store known so far.
        old: String,
        /// The new one.
        new: String,
    },
}

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
    /// What.
    pub entry: Entry,
}

/// Head of an empty ledger.
fn genesis() -> Digest {
    Digest::of(b"consilium/ledger/v1")
}

pub(super) fn prepare(write: &WriteTransaction) -> Result<(), StateError> {
    write.open_table(LEDGER)?;
    write.open_table(HEADS)?;
    Ok(())
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
    let bytes = to_json("a ledger entry", &Record { seq, time: now, prev, salt, entry: entry.clone() })?;
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
    pub fn ledger_end(&self) -> Result<(u64, Digest), StateError> {
        let entries = self.0.db.begin_read()?.open_table(LEDGER)?.len()?;
        Ok((entries, self.head()?))
    }

    /// Keeps the hub's signature over an end of the ledger, in place of an earlier one.
    pub fn put_countersigned(&self, end: LedgerEnd, signature: &[u8]) -> Result<(), StateError> {
        let record = to_json(COUNTERSIGNED, &(end, hex::encode(signature)))?;
        if self.blob(COUNTERSIGNED)?.as_deref() == Some(&record[..]) {
            return Ok(());
        }
        self.put_blob(COUNTERSIGNED, &record)
    }

    /// The hub's signature over this end of the ledger, hexadecimal, if it is the one that it signed last.
    pub fn countersigned(&self, end: LedgerEnd) -> Result<Option<String>, StateError> {
        let Some(record) = self.blob(COUNTERSIGNED)? else { return Ok(None) };
        let (signed, signature): (LedgerEnd, String) =
            serde_json::from_slice(&record).map_err(StateError::damaged(COUNTERSIGNED))?;
        Ok((signed == end).then_some(signature))
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

    /// Walks the whole chain; returns how many entries it holds.
    pub fn verify(&self) -> Result<u64, StateError> {
        #[derive(Deserialize)]
        struct Link {
            seq: u64,
            prev: Digest,
        }
        let read = self.0.db.begin_read()?;
        let table = read.open_table(LEDGER)?;
        let (mut seq, mut head) = (0, genesis());
        for row in table.iter()? {
            let (number, bytes) = row?;
            seq += 1;
            let broken = |why: &str| StateError::Ledger { seq, why: why.to_owned() };
            let link: Link = serde_json::from_slice(bytes.value()).map_err(|e| broken(&e.to_string()))?;
            if number.value() != seq || link.seq != seq {
                return Err(broken("its number is not one more than that of the entry before"));
            }
            if link.prev != head {
                return Err(broken("it does not hold the hash of the entry before"));
            }
            head = Digest::of(bytes.value());
        }
        let stored = self.head()?;
        if stored == head {
            Ok(seq)
        } else {
            Err(StateError::Ledger { seq: seq + 1, why: "entries at the end are missing".into() })
        }
    }
}

#[cfg(test)]
impl State {
    /// Overwrites an entry, as someone with the volume could.
    pub(super) fn tamper(&self, seq: u64, bytes: Option<&[u8]>) {
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
