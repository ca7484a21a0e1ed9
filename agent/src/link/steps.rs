//! The hospital's side of each step: from what the hub sent to what is sent back. No sockets, no clock.
//!
//! Runs within the one transaction that stores what it changes. Everything that the hub sent is hostile: it was fetched
//! by digest, is parsed strictly, and what the protocol refuses is refused here in its words.

use consilium_federation::Digest;
use consilium_federation::round::ProtocolStep;
use consilium_federation::task::TaskKind;
use consilium_secagg::client::{Client, ClientError, Floors, Guard};
use consilium_secagg::history::DifferenceRule;
use consilium_secagg::identity::SiteKey;
use consilium_secagg::ids::{Digest as ChunkDigest, SiteId};
use consilium_secagg::roster::VerifiedRoster;
use consilium_secagg::session::Session;
use consilium_secagg::spec::AttemptSpec;
use consilium_secagg::survivors::SurvivorStatement;
use consilium_secagg::upload::Masker;
use consilium_secagg::wire::Message;

use super::plan::TurnKey;
use crate::Entropy;
use crate::state::{Entry, Memory, Refused, hub_digest};

/// A step that is asked for, with all that it is checked against. None of it but `inputs` is the hub's.
#[derive(Clone)]
pub(super) struct Ask {
    pub key: TurnKey,
    /// Name of the stored vector.
    pub vector: String,
    pub attempt: AttemptSpec,
    pub model: Digest,
    pub roster: VerifiedRoster,
    pub site: SiteId,
    pub site_key: SiteKey,
    pub floors: Floors,
    pub rule: Option<DifferenceRule>,
    /// Hospitals of the study, by the spec that this hospital approved: how many open an attempt is the hub's choice.
    pub hospitals: usize,
    pub entropy: Entropy,
    /// What the step starts from, as the hub holds it; empty for the first.
    pub inputs: bytes::Bytes,
    /// Digests of the stored vector's chunks.
    pub plain: Vec<ChunkDigest>,
    /// The entry before the first byte of the upload leaves.
    pub upload_begins: Entry,
}

/// What is left to do before the upload.
pub(super) enum Masking {
    /// Mask the chunks.
    Due(Box<Masker>),
    /// They lie on the volume.
    Done,
}

type Step<T> = Result<T, Refused>;

impl Ask {
    pub fn refused(&self, why: impl std::fmt::Display) -> Refused {
        Refused { vector: self.vector.clone(), step: self.key.step_name(), why: why.to_string() }
    }

    fn parse<T: Message>(&self) -> Step<T> {
        T::from_bytes(&self.inputs).map_err(|error| self.refused(error))
    }

    /// This hospital's part, which must be about what it now knows the attempt to be about.
    fn client<'a>(&self, client: &'a mut Option<Client>) -> Step<&'a mut Client> {
        let missing = || {
            self.refused(
                "this hospital has not opened this attempt, or its volume has forgotten it; it cannot join later",
            )
        };
        let client = client.as_mut().ok_or_else(missing)?;
        if *client.attempt() == self.attempt {
            return Ok(client);
        }
        let (before, now) = (client.attempt().digest(), self.attempt.digest());
        Err(self.refused(format!(
            "the attempt was opened as {before} and is now asked for as {now}: its model, round, roster or bounds changed in between"
        )))
    }

    fn names(&self, session: &Session) -> Vec<String> {
        session.parties().filter_map(|party| session.site(party)).map(ToString::to_string).collect()
    }

    fn place(&self) -> (String, u32) {
        (self.key.attempt.round_uid.clone(), self.key.attempt.attempt)
    }
}

/// A step that answers with one message.
pub(super) fn message(ask: &Ask, memory: &mut Memory) -> Step<Vec<u8>> {
    match ask.key.step {
        ProtocolStep::Advertise => advertise(ask, memory),
        ProtocolStep::Share => share(ask, memory),
        ProtocolStep::Agree => agree(ask, memory),
        ProtocolStep::Unmask => unmask(ask, memory),
        ProtocolStep::Upload | ProtocolStep::Sum => Err(ask.refused("the step has no message")),
    }
}

fn advertise(ask: &Ask, memory: &mut Memory) -> Step<Vec<u8>> {
    if memory.client.is_none() {
        let guard = Guard { roster: &ask.roster, floors: &ask.floors, history: &memory.history };
        let opened =
            Client::open(ask.attempt.clone(), ask.site.clone(), &ask.site_key, guard, &mut ask.entropy.clone());
        memory.client = Some(opened.map_err(|error| ask.refused(error))?);
        memory.burn_others("the hub opened another attempt");
    }
    let client = ask.client(&mut memory.client)?;
    if client.phase() == "Burned" {
        return Err(ask.refused("the attempt was given up"));
    }
    let advert = client.advert().to_bytes();
    let (round_uid, attempt) = ask.place();
    let kind = match ask.key.kind {
        TaskKind::Evaluate => TaskKind::Evaluate,
        TaskKind::Train | TaskKind::Init => TaskKind::Train,
    };
    let roster = hub_digest(ask.roster.digest());
    memory.act(Entry::AttemptOpened {
        round_uid,
        attempt,
        kind,
        model: ask.model,
        roster,
        message: Digest::of(&advert),
    });
    Ok(advert)
}

fn share(ask: &Ask, memory: &mut Memory) -> Step<Vec<u8>> {
    let list = ask.parse()?;
    let guard = Guard { roster: &ask.roster, floors: &ask.floors, history: &memory.history };
    let client = ask.client(&mut memory.client)?;
    let shares = client.adverts(&list, &ask.site_key, guard, &mut ask.entropy.clone());
    let shares = shares.map_err(|error| ask.refused(error))?.to_bytes();
    if let Some(session) = client.session() {
        let ((round_uid, attempt), hospitals) = (ask.place(), ask.names(session));
        let session = session.sid().to_string();
        let message = Digest::of(&shares);
        memory.act(Entry::SharesSent { round_uid, attempt, session, hospitals, message });
    }
    Ok(shares)
}

/// The others' shares arrived: from here on this session masks the stored vector and no other.
pub(super) fn bind(ask: &Ask, memory: &mut Memory) -> Step<Masking> {
    let bundle = ask.parse()?;
    let client = ask.client(&mut memory.client)?;
    client.bundle(&bundle).map_err(|error| ask.refused(error))?;
    client.bind_update(ask.plain.clone()).map_err(|error| match error {
        // Without the digests: the hub is told, and could try out which small vector has them.
        ClientError::Conflict { .. } => ask.refused("another vector is stored now than the one bound to this session"),
        other => ask.refused(other),
    })?;
    if !memory.masked.is_empty() {
        return Ok(Masking::Done);
    }
    let masker = client.masker().map_err(|error| ask.refused(error))?;
    Ok(Masking::Due(Box::new(masker)))
}

/// All masked chunks are on the volume: signs their digests and forgets the masks.
pub(super) fn finish(ask: &Ask, memory: &mut Memory, masked: &[ChunkDigest]) -> Step<Vec<u8>> {
    let client = ask.client(&mut memory.client)?;
    let manifest = client.finish_upload(masked.to_vec(), &ask.site_key).map_err(|error| ask.refused(error))?;
    let (manifest, mut begins) = (manifest.to_bytes(), ask.upload_begins.clone());
    if let Entry::UploadBegins { manifest: left, .. } = &mut begins {
        *left = Some(Digest::of(&manifest));
    }
    memory.masked = masked.to_vec();
    memory.act(begins);
    Ok(manifest)
}

/// Signs a survivor set, in the client and in the history; returns the entry for the ledger.
fn sign(ask: &Ask, memory: &mut Memory, statement: &SurvivorStatement) -> Step<(Vec<u8>, Entry)> {
    let rule = ask.rule.unwrap_or_else(|| memory.history.default_rule(&ask.attempt.round, ask.hospitals));
    let client = ask.client(&mut memory.client)?;
    let signed = client.survivors(statement, &ask.site_key, &memory.history, rule);
    let signed = signed.map_err(|error| ask.refused(error))?;
    let session = client.session().ok_or_else(|| ask.refused("the session is not known any more"))?;
    let (sid, sites) = (session.sid(), statement.sites(session));
    let hospitals = sites.iter().map(ToString::to_string).collect();
    memory.history.record_signed(&ask.attempt.round, sid, sites);
    let (round_uid, attempt) = ask.place();
    let (signed, session) = (signed.to_bytes(), sid.to_string());
    let message = Digest::of(&signed);
    Ok((signed, Entry::SurvivorsSigned { round_uid, attempt, session, hospitals, message }))
}

fn agree(ask: &Ask, memory: &mut Memory) -> Step<Vec<u8>> {
    let statement = ask.parse()?;
    let (signed, entry) = sign(ask, memory, &statement)?;
    memory.act(entry);
    Ok(signed)
}

fn unmask(ask: &Ask, memory: &mut Memory) -> Step<Vec<u8>> {
    let proof: consilium_secagg::survivors::SurvivorProof = ask.parse()?;
    if ask.client(&mut memory.client)?.signed_survivors().is_none() {
        // This hospital missed the step before: it signs now what it would have signed then, after the same checks.
        let (_, entry) = sign(ask, memory, &proof.statement)?;
        memory.note(entry);
    }
    let client = ask.client(&mut memory.client)?;
    let reply = client.proof(&proof, &ask.site_key, &memory.history).map_err(|error| ask.refused(error))?;
    let session = client.session().ok_or_else(|| ask.refused("the session is not known any more"))?.sid();
    memory.history.record_released(&ask.attempt.round, session);
    let (round_uid, attempt) = ask.place();
    let (reply, session) = (reply.to_bytes(), session.to_string());
    memory.act(Entry::SharesReleased { round_uid, attempt, session, message: Digest::of(&reply) });
    Ok(reply)
}
