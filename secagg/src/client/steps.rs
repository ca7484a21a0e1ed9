//! The steps, in the order in which they happen.
use super::{Answer, Client, ClientError, Guard, Held, Phase, Step, earlier};
use crate::advert::{AdvertList, Seeds};
use crate::deal;
use crate::history::{DifferenceRule, History};
use crate::identity::{Signed, SiteKey};
use crate::ids::{Digest, Party};
use crate::keys;
use crate::mask::{MaskSet, Sign};
use crate::secret::Secret;
use crate::session::{Session, SessionError};
use crate::shares::{SeedKind, ShareBundle, SharesMessage, view_digest};
use crate::spec::SpecError;
use crate::survivors::{SurvivorProof, SurvivorStatement};
use crate::unmask::{ReleasedShare, UnmaskReply, due, pair_sign};
use crate::upload::{Masker, UploadManifest};
use crate::wire::{Message, Writer};
use rand_core::CryptoRng;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

impl Client {
    /// Step 2: the adverts of U1 arrived; deals shares of both seeds.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn adverts(
        &mut self,
        list: &AdvertList,
        key: &SiteKey,
        guard: Guard<'_>,
        rng: &mut impl CryptoRng,
    ) -> Result<SharesMessage, ClientError> {
        self.check_not_burned()?;
        let input = list.digest();
        if let Some(same) = earlier(self.said.shares.as_ref(), Step::Share, input)? {
            return Ok(same.clone());
        }
        let Phase::Advertised { seeds } = &self.phase else { return Err(self.out_of_order(Step::Share)) };
        guard.history.may_take_part(&self.attempt.round, None)?;
        let session = Session::open(&self.attempt, list, guard.roster)?;
        let me = session.party(&self.site).filter(|me| list.adverts[me.index()] == self.advert);
        let me = me.ok_or(ClientError::OwnAdvert)?;
        let (message, own) = deal::deal(&session, me, seeds, key, rng)?;
        self.phase = Phase::Shared { session, me, seeds: seeds.clone(), own };
        self.said.shares = Some(Answer { input, output: message.clone() });
        Ok(message)
    }

    /// Step 3a: the shares of U2 arrived; checks and keeps them, fixes U2 and makes the mask keys.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn bundle(&mut self, bundle: &ShareBundle) -> Result<(), ClientError> {
        self.check_not_burned()?;
        let input = bundle.digest();
        if earlier(self.said.bundle.as_ref(), Step::Bundle, input)?.is_some() {
            return Ok(());
        }
        let Phase::Shared { session, me, seeds, own } = &self.phase else {
            return Err(self.out_of_order(Step::Bundle));
        };
        let (session, me) = (session.clone(), *me);
        check_bundle(&session, me, bundle, self.said.shares.as_ref().map(|a| &a.output))?;
        let mut shares = BTreeMap::new();
        for delivered in &bundle.shares {
            let from = delivered.header.body.from;
            let pair = if from == me { own.clone() } else { deal::open(&session, me, &seeds.enc_scalar, delivered)? };
            shares.insert(from, pair);
        }
        let keys = mask_keys(&session, me, seeds, shares.keys().copied())?;
        let view = view_digest(&session.sid(), bundle.shares.iter().map(|s| &s.header.body));
        self.phase = Phase::Ready { held: Held { session, me, view, shares }, keys };
        self.said.bundle = Some(Answer { input, output: () });
        Ok(())
    }

    /// Step 3b: binds the update, by the digests of its encoded chunks. Store the client before masking anything:
    /// from here on this session masks these chunks and no others.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn bind_update(&mut self, plain: Vec<Digest>) -> Result<(), ClientError> {
        self.check_not_burned()?;
        let input = digest_of(&plain);
        if earlier(self.said.update.as_ref(), Step::Update, input)?.is_some() {
            return Ok(());
        }
        self.check_chunks(plain.len())?;
        let Phase::Ready { held, keys } = &self.phase else { return Err(self.out_of_order(Step::Update)) };
        self.phase = Phase::Masking { held: held.clone(), keys: keys.clone(), plain };
        self.said.update = Some(Answer { input, output: () });
        Ok(())
    }

    /// Step 3c: masks chunks of the bound update, any of them, in any order, on any thread, again after a restart.
    ///
    /// # Errors
    /// [`ClientError::OutOfOrder`] before an update is bound and after the manifest is signed.
    pub fn masker(&self) -> Result<Masker, ClientError> {
        let Phase::Masking { keys, plain, .. } = &self.phase else { return Err(self.out_of_order(Step::Upload)) };
        let mut masks = MaskSet::new();
        keys.iter().for_each(|(sign, key)| masks.push(*sign, key));
        let layout = self.attempt.round.layout().map_err(|e| SessionError::Spec(SpecError::Layout(e)))?;
        Ok(Masker { layout, masks, plain: plain.clone() })
    }

    /// Step 3d: all chunks are masked and stored; signs their digests and forgets the mask keys.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn finish_upload(&mut self, chunks: Vec<Digest>, key: &SiteKey) -> Result<Signed<UploadManifest>, ClientError> {
        self.check_not_burned()?;
        let input = digest_of(&chunks);
        if let Some(same) = earlier(self.said.manifest.as_ref(), Step::Upload, input)? {
            return Ok(same.clone());
        }
        self.check_chunks(chunks.len())?;
        let Phase::Masking { held, .. } = &self.phase else { return Err(self.out_of_order(Step::Upload)) };
        let held = held.clone();
        let manifest = key.sign(UploadManifest { sid: held.session.sid(), from: held.me, view: held.view, chunks });
        self.phase = Phase::Uploaded { held };
        self.said.manifest = Some(Answer { input, output: manifest.clone() });
        Ok(manifest)
    }

    /// Step 4: signs who survived, once. Record it in the history (and store both) before sending the signature.
    /// `rule` is the SitePolicy's word, or [`History::default_rule`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn survivors(
        &mut self,
        statement: &SurvivorStatement,
        key: &SiteKey,
        history: &History,
        rule: DifferenceRule,
    ) -> Result<Signed<SurvivorStatement>, ClientError> {
        self.check_not_burned()?;
        let input = statement.digest();
        if let Some(same) = earlier(self.said.statement.as_ref(), Step::Agree, input)? {
            return Ok(same.clone());
        }
        let Phase::Uploaded { held } = &self.phase else { return Err(self.out_of_order(Step::Agree)) };
        let dealers: Vec<Party> = held.shares.keys().copied().collect();
        statement.check(&held.session, &held.view, &dealers)?;
        if !statement.survivors.contains(&held.me) {
            return Err(crate::survivors::SurvivorError::SelfMissing.into());
        }
        let sites = statement.sites(&held.session);
        history.may_sign(&self.attempt.round, &held.session.sid(), &sites, rule)?;
        let signed = key.sign(statement.clone());
        self.phase = Phase::Signed { held: held.clone() };
        self.said.statement = Some(Answer { input, output: signed.clone() });
        Ok(signed)
    }

    /// Step 5: at least t survivors signed the same set; releases one share per hospital and forgets all others.
    /// Record it in the history (and store both) before sending the reply.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn proof(
        &mut self,
        proof: &SurvivorProof,
        key: &SiteKey,
        history: &History,
    ) -> Result<Signed<UnmaskReply>, ClientError> {
        self.check_not_burned()?;
        // The same set with other signatures on it is the same question.
        let input = proof.statement.digest();
        if let Some(same) = earlier(self.said.reply.as_ref(), Step::Unmask, input)? {
            return Ok(same.clone());
        }
        let Phase::Signed { held } = &self.phase else { return Err(self.out_of_order(Step::Unmask)) };
        let signed = self.said.statement.as_ref().map_or(input, |a| a.input);
        if input != signed {
            return Err(ClientError::OtherSurvivors { got: input, signed });
        }
        proof.check(&held.session)?;
        history.may_take_part(&self.attempt.round, Some(&held.session.sid()))?;
        let shares = held.shares.iter().map(|(of, [mask, own])| {
            let kind = due(&proof.statement, *of);
            let share = if kind == SeedKind::Own { own } else { mask };
            ReleasedShare { of: *of, kind, share: share.clone() }
        });
        let reply = UnmaskReply { sid: held.session.sid(), from: held.me, statement: input, shares: shares.collect() };
        let reply = key.sign(reply);
        self.phase = Phase::Released { session: held.session.clone() };
        self.said.reply = Some(Answer { input, output: reply.clone() });
        Ok(reply)
    }

    fn check_chunks(&self, got: usize) -> Result<(), ClientError> {
        let layout = self.attempt.round.layout().map_err(|e| SessionError::Spec(SpecError::Layout(e)))?;
        let expected = layout.chunks() as usize;
        if got == expected { Ok(()) } else { Err(ClientError::Chunks { got, expected }) }
    }
}

fn check_bundle(
    session: &Session,
    me: Party,
    bundle: &ShareBundle,
    own: Option<&SharesMessage>,
) -> Result<(), ClientError> {
    if bundle.sid != session.sid() {
        return Err(ClientError::WrongSession { got: bundle.sid, expected: session.sid() });
    }
    if bundle.to != me {
        return Err(ClientError::Bundle { problem: "is for another hospital" });
    }
    if bundle.shares.windows(2).any(|w| w[0].header.body.from >= w[1].header.body.from) {
        return Err(ClientError::Bundle { problem: "is not strictly ascending by dealer" });
    }
    let mine = bundle.shares.iter().find(|s| s.header.body.from == me);
    if mine.map(|s| &s.header) != own.map(|o| &o.header) {
        return Err(ClientError::Bundle { problem: "does not hold this hospital's own shares as it dealt them" });
    }
    let (got, needed) = (bundle.shares.len(), session.thresholds().contributors());
    if got < needed { Err(ClientError::TooFewDealers { got, needed }) } else { Ok(()) }
}

/// The keys of every mask in `y = q + PRG(b) ± Σ PRG(k)` over the dealers of U2.
fn mask_keys(
    session: &Session,
    me: Party,
    seeds: &Seeds,
    dealers: impl Iterator<Item = Party>,
) -> Result<Vec<(Sign, Secret)>, ClientError> {
    let sid = session.sid();
    let scalar = keys::mask_scalar(&seeds.mask_seed, &session.attempt().digest());
    let mut out = vec![(Sign::Plus, keys::self_mask_key(&seeds.self_seed, &sid, me))];
    for peer in dealers.filter(|peer| *peer != me) {
        let advert = session.advert(peer).ok_or(ClientError::Bundle { problem: "names a hospital outside it" })?;
        out.push((pair_sign(me, peer), keys::pair_mask_key(&scalar, &advert.mask_key, &sid, me, peer)?));
    }
    Ok(out)
}

fn digest_of(digests: &[Digest]) -> Digest {
    let mut w = Writer::new();
    w.count(digests.len());
    digests.iter().for_each(|d| {
        w.fixed(&d.0);
    });
    Digest(Sha256::digest(w.finish()).into())
}
