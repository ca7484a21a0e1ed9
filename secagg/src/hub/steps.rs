//! The steps, in the order in which they happen. `sender` is whom the connection's certificate names; identity never
//! comes from a message alone.
use super::{Dealt, Hub, HubError, Phase, Receipt, Survived, admit};
use crate::advert::{Advert, AdvertList};
use crate::identity::Signed;
use crate::ids::{Digest, Party, Sid, SiteId};
use crate::session::{Session, check_keys};
use crate::shares::{DeliveredShare, ShareBundle, SharesMessage, view_digest};
use crate::survivors::{SurvivorProof, SurvivorStatement};
use crate::unmask::{self, RevealedSeeds, UnmaskReply};
use crate::unmasking::Unmasking;
use crate::upload::UploadManifest;
use crate::wire::Message;
use std::collections::{BTreeMap, BTreeSet};

impl Hub {
    /// Step 1: a hospital's advert.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn advert(&mut self, sender: &SiteId, advert: Signed<Advert>) -> Result<Receipt, HubError> {
        let expected = self.attempt.digest();
        let key = *self.roster.key(sender).ok_or_else(|| HubError::UnknownSite { site: sender.clone() })?;
        if advert.body.site != *sender {
            return Err(HubError::Sender { sender: sender.clone(), claimed: advert.body.site });
        }
        advert.verify(&key).map_err(|source| HubError::Signature { site: sender.clone(), source })?;
        if advert.body.attempt != expected {
            return Err(HubError::OtherAttempt { site: sender.clone() });
        }
        match &mut self.phase {
            Phase::Advertise { adverts } => {
                // Here, where only its sender hears of it, and not in the close of all.
                let others = adverts.iter().filter(|(site, _)| *site != sender).map(|(_, signed)| &signed.body);
                check_keys(&advert.body, others)?;
                admit(adverts, sender.clone(), advert, sender, "Advertise")
            }
            _ => match self.advert_list()?.adverts.contains(&advert) {
                true => Ok(Receipt::Repeated),
                false => Err(self.out_of_order("advert")),
            },
        }
    }

    /// Ends step 1 with those who advertised (U1).
    ///
    /// # Errors
    /// [`HubError`].
    pub fn close_adverts(&mut self) -> Result<AdvertList, HubError> {
        let Phase::Advertise { adverts } = &self.phase else { return Err(self.out_of_order("close_adverts")) };
        let list = AdvertList { adverts: adverts.values().cloned().collect() };
        let session = Session::open(&self.attempt, &list, &self.roster)?;
        self.phase = Phase::Share { list: list.clone(), session, dealt: BTreeMap::new() };
        Ok(list)
    }

    /// The list of adverts, from step 2 on.
    ///
    /// # Errors
    /// [`HubError::OutOfOrder`].
    pub fn advert_list(&self) -> Result<&AdvertList, HubError> {
        match &self.phase {
            Phase::Advertise { .. } => Err(self.out_of_order("advert_list")),
            Phase::Share { list, .. } => Ok(list),
            _ => Ok(&self.dealt()?.list),
        }
    }

    /// Step 2: a hospital's shares.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn shares(&mut self, sender: &SiteId, message: SharesMessage) -> Result<Receipt, HubError> {
        let from = self.speaker(sender, message.header.body.from, message.header.body.sid)?;
        match &mut self.phase {
            Phase::Share { session, dealt, .. } => {
                message.check(session)?;
                admit(dealt, from, message, sender, "Share")
            }
            _ => match self.dealt()?.shares.get(&from) {
                Some(known) if *known == message => Ok(Receipt::Repeated),
                _ => Err(self.out_of_order("shares")),
            },
        }
    }

    /// Ends step 2 with those who dealt (U2).
    ///
    /// # Errors
    /// [`HubError`].
    pub fn close_shares(&mut self) -> Result<(), HubError> {
        let Phase::Share { list, session, dealt } = &self.phase else {
            return Err(self.out_of_order("close_shares"));
        };
        enough("Share", dealt.len(), session.thresholds().contributors())?;
        let view = view_digest(&session.sid(), dealt.values().map(|m| &m.header.body));
        let (list, session) = (list.clone(), session.clone());
        if let Phase::Share { dealt, .. } = self.end_phase() {
            let dealt = Dealt { list, session, shares: dealt, view };
            self.phase = Phase::Upload { dealt, manifests: BTreeMap::new() };
        }
        Ok(())
    }

    /// What a hospital of U2 gets of the others' shares.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn bundle_for(&self, site: &SiteId) -> Result<ShareBundle, HubError> {
        let dealt = self.dealt()?;
        let unknown = || HubError::UnknownSite { site: site.clone() };
        let to = dealt.session.party(site).filter(|p| dealt.shares.contains_key(p)).ok_or_else(unknown)?;
        let delivered = |m: &SharesMessage| {
            let entry = m.entries.get(to.index())?.clone();
            Some(DeliveredShare { header: m.header.clone(), entry })
        };
        Ok(ShareBundle { sid: dealt.session.sid(), to, shares: dealt.shares.values().filter_map(delivered).collect() })
    }

    /// Step 3: a hospital's manifest.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn manifest(&mut self, sender: &SiteId, manifest: Signed<UploadManifest>) -> Result<Receipt, HubError> {
        let from = self.speaker(sender, manifest.body.from, manifest.body.sid)?;
        let expected = self.attempt.round.layout()?.chunks() as usize;
        let dealt = self.dealt()?;
        verify(&dealt.session, sender, from, &manifest)?;
        if manifest.body.view != dealt.view {
            return Err(HubError::OtherView { site: sender.clone(), got: manifest.body.view, expected: dealt.view });
        }
        if manifest.body.chunks.len() != expected {
            return Err(HubError::Chunks { site: sender.clone(), got: manifest.body.chunks.len(), expected });
        }
        match &mut self.phase {
            Phase::Upload { dealt, manifests } if dealt.shares.contains_key(&from) => {
                admit(manifests, from, manifest, sender, "Upload")
            }
            Phase::Upload { .. } => Err(HubError::UnknownParty { party: from }),
            Phase::Agree { survived, .. } | Phase::Unmask { survived, .. } | Phase::Sum { survived, .. }
                if survived.manifests.get(&from) == Some(&manifest) =>
            {
                Ok(Receipt::Repeated)
            }
            _ => Err(self.out_of_order("manifest")),
        }
    }

    /// The digests of a hospital's masked chunks, to check and complete its upload by.
    #[must_use]
    pub fn chunk_digests(&self, site: &SiteId) -> Option<&[Digest]> {
        let party = self.session()?.party(site)?;
        let manifests = match &self.phase {
            Phase::Upload { manifests, .. } => manifests,
            Phase::Agree { survived, .. } | Phase::Unmask { survived, .. } | Phase::Sum { survived, .. } => {
                &survived.manifests
            }
            Phase::Advertise { .. } | Phase::Share { .. } => return None,
        };
        manifests.get(&party).map(|m| m.body.chunks.as_slice())
    }

    /// Ends step 3: proposes as survivors (U3) those of `complete` whose manifest is here. The driver names whose
    /// chunks have all arrived and may leave hospitals out ([`crate::history::admissible_survivors`]).
    ///
    /// # Errors
    /// [`HubError`].
    pub fn close_uploads(&mut self, complete: &BTreeSet<SiteId>) -> Result<SurvivorStatement, HubError> {
        let Phase::Upload { dealt, manifests } = &self.phase else { return Err(self.out_of_order("close_uploads")) };
        let session = &dealt.session;
        let complete: BTreeSet<Party> = complete.iter().filter_map(|s| session.party(s)).collect();
        let manifests: BTreeMap<_, _> =
            manifests.iter().filter(|(p, _)| complete.contains(p)).map(|(p, m)| (*p, m.clone())).collect();
        enough("Upload", manifests.len(), session.thresholds().contributors())?;
        let survivors = manifests.keys().copied().collect();
        let statement = SurvivorStatement { sid: session.sid(), view: dealt.view, survivors };
        let survived = Survived { statement: statement.clone(), manifests };
        if let Phase::Upload { dealt, .. } = self.end_phase() {
            self.phase = Phase::Agree { dealt, survived, signatures: BTreeMap::new() };
        }
        Ok(statement)
    }

    /// The proposed survivor set, from step 4 on.
    ///
    /// # Errors
    /// [`HubError::OutOfOrder`].
    pub fn statement(&self) -> Result<&SurvivorStatement, HubError> {
        match &self.phase {
            Phase::Agree { survived, .. } | Phase::Unmask { survived, .. } | Phase::Sum { survived, .. } => {
                Ok(&survived.statement)
            }
            _ => Err(self.out_of_order("statement")),
        }
    }

    /// Step 4: a survivor's signature.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn agreement(&mut self, sender: &SiteId, signed: Signed<SurvivorStatement>) -> Result<Receipt, HubError> {
        let statement = self.statement()?;
        if signed.body != *statement {
            return Err(HubError::OtherSurvivors { site: sender.clone() });
        }
        let session = &self.dealt()?.session;
        let from = session.party(sender).filter(|p| statement.survivors.contains(p));
        let from = from.ok_or_else(|| HubError::UnknownSite { site: sender.clone() })?;
        verify(session, sender, from, &signed)?;
        match &mut self.phase {
            Phase::Agree { signatures, .. } => admit(signatures, from, signed.signature, sender, "Agree"),
            // A late signature on the very set is harmless.
            _ => Ok(Receipt::Repeated),
        }
    }

    /// Ends step 4: at least t signatures make the proof. **From here on the attempt can only be finished.**
    ///
    /// # Errors
    /// [`HubError`].
    pub fn close_agreement(&mut self) -> Result<SurvivorProof, HubError> {
        let Phase::Agree { dealt, survived, signatures } = &self.phase else {
            return Err(self.out_of_order("close_agreement"));
        };
        enough("Agree", signatures.len(), dealt.session.thresholds().t())?;
        let signatures = signatures.iter().map(|(p, s)| (*p, *s)).collect();
        let proof = SurvivorProof { statement: survived.statement.clone(), signatures };
        if let Phase::Agree { dealt, survived, .. } = self.end_phase() {
            self.phase = Phase::Unmask { dealt, survived, proof: proof.clone(), replies: BTreeMap::new() };
        }
        Ok(proof)
    }

    /// The proof of survivors, from step 5 on.
    ///
    /// # Errors
    /// [`HubError::OutOfOrder`].
    pub fn survivor_proof(&self) -> Result<&SurvivorProof, HubError> {
        match &self.phase {
            Phase::Unmask { proof, .. } | Phase::Sum { proof, .. } => Ok(proof),
            _ => Err(self.out_of_order("survivor_proof")),
        }
    }

    /// Step 5: a survivor's shares.
    ///
    /// # Errors
    /// [`HubError`], naming who is at fault.
    pub fn unmask(&mut self, sender: &SiteId, reply: Signed<UnmaskReply>) -> Result<Receipt, HubError> {
        let from = self.speaker(sender, reply.body.from, reply.body.sid)?;
        match &mut self.phase {
            Phase::Unmask { dealt, survived, replies, .. } => {
                unmask::check_reply(&dealt.session, &dealt.shares, &survived.statement, &reply)?;
                admit(replies, from, reply, sender, "Unmask")
            }
            // The seeds are known already; a late reply changes nothing.
            Phase::Sum { dealt, survived, .. } => {
                unmask::check_reply(&dealt.session, &dealt.shares, &survived.statement, &reply)?;
                Ok(Receipt::Repeated)
            }
            _ => Err(self.out_of_order("unmask")),
        }
    }

    /// Ends step 5: reconstructs the seeds from at least t replies and checks them.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn close_unmasking(&mut self) -> Result<RevealedSeeds, HubError> {
        let Phase::Unmask { dealt, survived, replies, .. } = &self.phase else {
            return Err(self.out_of_order("close_unmasking"));
        };
        enough("Unmask", replies.len(), dealt.session.thresholds().t())?;
        let seeds = unmask::reconstruct(&dealt.session, &dealt.shares, &survived.statement, replies)?;
        let headers: Vec<_> = dealt.shares.values().map(|m| &m.header.body).collect();
        unmask::check_seeds(&dealt.session, &headers, &seeds)?;
        if let Phase::Unmask { dealt, survived, proof, .. } = self.end_phase() {
            self.phase = Phase::Sum { dealt, survived, proof, seeds: seeds.clone() };
        }
        Ok(seeds)
    }

    /// Step 6: what takes the masks off, chunk by chunk.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn unmasking(&self) -> Result<Unmasking, HubError> {
        let Phase::Sum { dealt, survived, seeds, .. } = &self.phase else {
            return Err(self.out_of_order("unmasking"));
        };
        Unmasking::new(&dealt.session, &survived.statement, survived.manifests.values().map(|m| &m.body), seeds)
    }

    /// Everything an auditor needs beside the uploads.
    ///
    /// # Errors
    /// [`HubError::OutOfOrder`] before the seeds are known.
    pub fn transcript(&self) -> Result<crate::audit::Transcript, HubError> {
        let Phase::Sum { dealt, survived, proof, seeds } = &self.phase else {
            return Err(self.out_of_order("transcript"));
        };
        Ok(crate::audit::Transcript {
            attempt: self.attempt.clone(),
            adverts: dealt.list.clone(),
            headers: dealt.shares.values().map(|m| m.header.clone()).collect(),
            manifests: survived.manifests.values().cloned().collect(),
            proof: proof.clone(),
            seeds: seeds.clone(),
        })
    }

    /// Takes what the ending phase holds over to the next one, which follows at once: the shares of a large roster are
    /// megabytes, and are held once.
    fn end_phase(&mut self) -> Phase {
        std::mem::replace(&mut self.phase, Phase::Advertise { adverts: BTreeMap::new() })
    }

    fn dealt(&self) -> Result<&Dealt, HubError> {
        match &self.phase {
            Phase::Upload { dealt, .. }
            | Phase::Agree { dealt, .. }
            | Phase::Unmask { dealt, .. }
            | Phase::Sum { dealt, .. } => Ok(dealt),
            Phase::Advertise { .. } | Phase::Share { .. } => Err(self.out_of_order("this message")),
        }
    }

    /// The party that `sender` is, if the message claims to be from it and for this session.
    fn speaker(&self, sender: &SiteId, claimed: Party, sid: Sid) -> Result<Party, HubError> {
        let session = self.session().ok_or_else(|| self.out_of_order("this message"))?;
        if sid != session.sid() {
            return Err(HubError::WrongSession { got: sid, expected: session.sid() });
        }
        let party = session.party(sender).ok_or_else(|| HubError::UnknownSite { site: sender.clone() })?;
        if party == claimed {
            return Ok(party);
        }
        match session.site(claimed) {
            Some(claimed) => Err(HubError::Sender { sender: sender.clone(), claimed: claimed.clone() }),
            None => Err(HubError::UnknownParty { party: claimed }),
        }
    }
}

fn enough(step: &'static str, got: usize, needed: usize) -> Result<(), HubError> {
    if got < needed { Err(HubError::TooFew { step, got, needed }) } else { Ok(()) }
}

fn verify<T: Message>(session: &Session, sender: &SiteId, from: Party, signed: &Signed<T>) -> Result<(), HubError> {
    let key = session.identity(from).ok_or(HubError::UnknownParty { party: from })?;
    signed.verify(key).map(|_| ()).map_err(|source| HubError::Signature { site: sender.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PublicKey;
    use crate::session::SessionError;
    use crate::testing::Federation;

    /// An advert that no session can be made of must be refused to its sender: once it is in the journal, every replay of
    /// it would fail, and the round of all with it.
    #[test]
    fn an_advert_with_keys_that_are_none_is_not_taken() {
        let f = Federation::new(3, 10);
        let (list, _) = f.adverts(&f.attempt);
        let mut hub = Hub::open(f.attempt.clone(), f.roster.clone()).unwrap();
        hub.advert(&f.sites[0], list.adverts[0].clone()).unwrap();
        let mut spoilt = |enc_key: PublicKey, mask_key: PublicKey| {
            let body = Advert { enc_key, mask_key, ..list.adverts[1].body.clone() };
            hub.advert(&f.sites[1], f.keys[1].sign(body)).unwrap_err()
        };
        let (own, other) = (list.adverts[1].body.clone(), list.adverts[0].body.clone());
        for (enc, mask) in [(own.enc_key, own.enc_key), (other.mask_key, own.mask_key)] {
            assert!(matches!(spoilt(enc, mask), HubError::Session(SessionError::RepeatedKey { .. })));
        }
        let low = spoilt(PublicKey([0; 32]), own.mask_key);
        assert!(matches!(low, HubError::Session(SessionError::LowOrder { .. })));
        for (site, advert) in f.sites.iter().zip(&list.adverts) {
            hub.advert(site, advert.clone()).unwrap();
        }
        hub.close_adverts().unwrap();
    }
}
