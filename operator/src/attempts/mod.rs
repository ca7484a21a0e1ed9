//! The hub's side of the masking protocol: one `secagg` machine for each open attempt.
//!
//! The machine is never written down. What is durable are the hospitals' messages (the journal) and the round's state,
//! which says who was in at each step; the machine is replayed from both when a step begins and when the hub has
//! restarted, by the same code. So a hub that is killed anywhere goes on with the same words.

mod replay;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use consilium_crds::roster::site_id;
use consilium_federation::round::ProtocolStep;
use consilium_federation::{Digest, SiteName};
use consilium_secagg::hub::{Hub as Machine, HubError};
use consilium_secagg::ids::Digest as ChunkDigest;
use consilium_secagg::roster::VerifiedRoster;
use consilium_secagg::spec::AttemptSpec;
use consilium_secagg::wire::{Message, WireError};
use tokio::sync::Mutex as AsyncMutex;

use crate::aggregation::Masks;
use crate::store::{BlobStore, StoreError, UploadKey};

/// An attempt at one of its steps, as the round's state has it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// UID of the TrainingRound.
    pub round_uid: String,
    /// What is summed, and which attempt it is.
    pub attempt: AttemptSpec,
    /// Whose keys hold.
    pub roster: VerifiedRoster,
    /// The open step.
    pub step: ProtocolStep,
    /// U1: who advertised; counts from `Share` on.
    pub advertised: Vec<SiteName>,
    /// U2: who dealt shares; counts from `Upload` on.
    pub dealt: Vec<SiteName>,
    /// U3: whose uploads are complete; counts from `Agree` on.
    pub survivors: Vec<SiteName>,
}

impl Plan {
    fn key(&self, site: &SiteName) -> UploadKey {
        UploadKey { round_uid: self.round_uid.clone(), attempt: self.attempt.attempt, site: site.clone() }
    }
}

/// What a step starts from: the digest of an object for each hospital.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Inputs {
    /// The step starts from nothing.
    #[default]
    Nothing,
    /// All hospitals get the same object, and must.
    Same(Digest),
    /// Each gets its own.
    Each(BTreeMap<SiteName, Digest>),
}

impl Inputs {
    /// What this hospital starts from, if the step has something for it.
    pub fn of(&self, site: &SiteName) -> Option<Digest> {
        match self {
            Self::Nothing => None,
            Self::Same(digest) => Some(*digest),
            Self::Each(each) => each.get(site).copied(),
        }
    }
}

/// An attempt cannot go on at the hub.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A message that the round's state counts is not in the journal.
    #[error("the {step:?} message of {site} is not in the journal; restore the store's volume")]
    Lost {
        /// Whose.
        site: SiteName,
        /// Of which step.
        step: ProtocolStep,
    },
    /// A message in the journal cannot be read.
    #[error("the {step:?} message of {site} in the journal cannot be read: {source}; restore the store's volume")]
    Unreadable {
        /// Whose.
        site: SiteName,
        /// Of which step.
        step: ProtocolStep,
        /// Why.
        source: WireError,
    },
    /// The protocol's own refusal.
    #[error(transparent)]
    Protocol(#[from] HubError),
    /// The process is shutting down.
    #[error("the work was stopped because the hub is shutting down")]
    Stopped,
}

/// A hospital's message is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The hub has not opened this attempt (again) yet.
    #[error("attempt {attempt} of round {round_uid} is not open at the hub (yet); try again soon")]
    NotOpen {
        /// Which round.
        round_uid: String,
        /// Which attempt.
        attempt: u32,
    },
    /// For another step than the open one.
    #[error("step {open:?} is open, the message is for {got:?}; look at the assignment again")]
    OutOfStep {
        /// The open step.
        open: ProtocolStep,
        /// The message's.
        got: ProtocolStep,
    },
    /// Not a message.
    #[error("field content: {0}")]
    Wire(#[from] WireError),
    /// The protocol's refusal.
    #[error(transparent)]
    Protocol(#[from] HubError),
    /// The journal.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One attempt in memory.
struct Entry {
    machine: Machine,
    step: ProtocolStep,
    inputs: Inputs,
    /// Bytes of what is made for each hospital when it asks; not stored, for together they grow with the cube of their
    /// number.
    made: BTreeMap<SiteName, usize>,
    /// Whose message for the open step is durable.
    heard: BTreeSet<SiteName>,
}

type Slot = Arc<AsyncMutex<Option<Entry>>>;

/// The open attempts.
#[derive(Default)]
pub struct Attempts(Mutex<HashMap<(String, u32), Slot>>);

impl Attempts {
    fn slot(&self, round_uid: &str, attempt: u32) -> Slot {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry((round_uid.to_owned(), attempt)).or_default().clone()
    }

    fn known(&self, round_uid: &str, attempt: u32) -> Option<Slot> {
        let slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.get(&(round_uid.to_owned(), attempt)).cloned()
    }

    /// Brings an attempt to its open step and answers what the hospitals start from; those objects are in the store, or
    /// can be [`Self::made`], when this returns. Doing it again is cheap and gives the same.
    ///
    /// # Errors
    /// [`AttemptError`].
    pub async fn follow(&self, store: &BlobStore, plan: &Plan) -> Result<Inputs, AttemptError> {
        let slot = self.slot(&plan.round_uid, plan.attempt.attempt);
        let mut slot = slot.lock().await;
        if let Some(entry) = slot.as_ref().filter(|entry| entry.step == plan.step) {
            return Ok(entry.inputs.clone());
        }
        let entry = replay::replay(store, plan).await?;
        let inputs = entry.inputs.clone();
        *slot = Some(entry);
        Ok(inputs)
    }

    /// Takes a hospital's message for the open step; returns when it is durable.
    ///
    /// # Errors
    /// [`Refused`]; the attempt is as before.
    pub async fn receive(
        &self,
        store: &BlobStore,
        key: &UploadKey,
        step: ProtocolStep,
        content: &[u8],
    ) -> Result<(), Refused> {
        let not_open = || Refused::NotOpen { round_uid: key.round_uid.clone(), attempt: key.attempt };
        let slot = self.known(&key.round_uid, key.attempt).ok_or_else(not_open)?;
        {
            let mut slot = slot.lock().await;
            let entry = slot.as_mut().ok_or_else(not_open)?;
            if entry.step != step {
                return Err(Refused::OutOfStep { open: entry.step, got: step });
            }
            take(&mut entry.machine, step, &key.site, content)?;
        }
        // The machine has it; the journal must too before anyone is told. A crash in between costs a repetition. The
        // others' messages do not wait for the volume meanwhile.
        store.put_message(key, step, content).await?;
        if let Some(entry) = slot.lock().await.as_mut().filter(|entry| entry.step == step) {
            entry.heard.insert(key.site.clone());
        }
        Ok(())
    }

    /// Bytes of what is made for this hospital at the open step, if that is what it starts from.
    pub async fn made_bytes(&self, key: &UploadKey, digest: Digest) -> Option<usize> {
        let slot = self.known(&key.round_uid, key.attempt)?;
        let slot = slot.lock().await;
        let entry = slot.as_ref()?;
        (entry.inputs.of(&key.site) == Some(digest)).then(|| entry.made.get(&key.site).copied()).flatten()
    }

    /// What is made for this hospital at the open step: the shares that the others dealt it.
    pub async fn made(&self, key: &UploadKey, digest: Digest) -> Option<Bytes> {
        self.made_bytes(key, digest).await?;
        let slot = self.known(&key.round_uid, key.attempt)?;
        let slot = slot.lock().await;
        let bundle = slot.as_ref()?.machine.bundle_for(&site_id(&key.site)).ok()?;
        Some(bundle.to_bytes().into())
    }

    /// Whose message for this step is durable.
    pub async fn heard(&self, round_uid: &str, attempt: u32, step: ProtocolStep) -> BTreeSet<SiteName> {
        let Some(slot) = self.known(round_uid, attempt) else { return BTreeSet::new() };
        let slot = slot.lock().await;
        slot.as_ref().filter(|entry| entry.step == step).map(|entry| entry.heard.clone()).unwrap_or_default()
    }

    /// The chunk digests that a hospital has signed for the open attempt.
    pub async fn signed_chunks(&self, key: &UploadKey) -> Option<Vec<ChunkDigest>> {
        let slot = self.known(&key.round_uid, key.attempt)?;
        let slot = slot.lock().await;
        slot.as_ref()?.machine.chunk_digests(&site_id(&key.site)).map(<[_]>::to_vec)
    }

    /// What takes the masks off the sum; at the step `Sum`.
    ///
    /// # Errors
    /// [`AttemptError`].
    pub async fn masks(&self, store: &BlobStore, plan: &Plan) -> Result<Masks, AttemptError> {
        self.follow(store, plan).await?;
        let slot = self.slot(&plan.round_uid, plan.attempt.attempt);
        let slot = slot.lock().await;
        let machine = &slot.as_ref().ok_or(AttemptError::Stopped)?.machine;
        let unmasking = Arc::new(machine.unmasking()?);
        let signed = |site: &SiteName| Some((site.clone(), machine.chunk_digests(&site_id(site))?.to_vec()));
        Ok(Masks { unmasking, chunks: plan.survivors.iter().filter_map(signed).collect() })
    }

    /// Forgets all attempts of a round; what lies in the journal stays.
    pub fn forget(&self, round_uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(uid, _), _| uid != round_uid);
    }
}

/// Gives a message to the machine. Who sends it is known from the connection, and compared with what it says.
fn take(machine: &mut Machine, step: ProtocolStep, site: &SiteName, content: &[u8]) -> Result<(), Refused> {
    let sender = site_id(site);
    match step {
        ProtocolStep::Advertise => machine.advert(&sender, Message::from_bytes(content)?),
        ProtocolStep::Share => machine.shares(&sender, Message::from_bytes(content)?),
        ProtocolStep::Upload => machine.manifest(&sender, Message::from_bytes(content)?),
        ProtocolStep::Agree => machine.agreement(&sender, Message::from_bytes(content)?),
        ProtocolStep::Unmask => machine.unmask(&sender, Message::from_bytes(content)?),
        ProtocolStep::Sum => return Err(Refused::OutOfStep { open: ProtocolStep::Sum, got: step }),
    }?;
    Ok(())
}

#[cfg(test)]
mod scale_tests;
