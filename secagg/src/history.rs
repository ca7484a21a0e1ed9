//! What a hospital remembers between sessions, and what that forbids.
//!
//! One session reveals one sum. Two sums over almost the same hospitals reveal their difference, so a hospital keeps
//! what it released and what it signed, and refuses what would give a difference of one.
use crate::ids::{Digest, Sid, SiteId};
use crate::spec::{Purpose, RoundSpec};
use crate::thresholds::threshold;
use std::collections::BTreeSet;

/// A session whose unmasking shares left this hospital.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Released {
    /// The study.
    pub study: String,
    /// What was summed.
    pub purpose: Purpose,
    /// The base model, evaluated model or roster.
    pub subject: Digest,
    /// The session.
    pub sid: Sid,
}

/// A survivor set that this hospital signed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SignedSet {
    /// The study.
    pub study: String,
    /// What was summed.
    pub purpose: Purpose,
    /// The session.
    pub sid: Sid,
    /// The survivors.
    pub sites: BTreeSet<SiteId>,
}

/// Whether a survivor set may differ from an earlier one by a single hospital.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum DifferenceRule {
    /// Refuse it: privacy before progress.
    Refuse,
    /// Allow it: the two sums are over different models, and a small federation would stall at every drop-out.
    Allow,
}

impl DifferenceRule {
    /// The default among so many hospitals: refuse wherever the hub could leave one more of them out and still reach
    /// t. Among fewer, refusing would mean that one drop-out ends the study (ADR 3).
    #[must_use]
    pub fn default_for(hospitals: usize) -> Self {
        if hospitals.saturating_sub(threshold(hospitals)) >= 2 { Self::Refuse } else { Self::Allow }
    }
}

/// Why the past forbids it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// Shares were already released for this study, purpose and subject.
    #[error(
        "shares were released for {purpose:?} of study {study} on {subject} in session {sid}: \
         a second sum on it would give differences; finish that session from what is stored"
    )]
    AlreadyReleased {
        /// The study.
        study: String,
        /// What was summed.
        purpose: Purpose,
        /// The base model, evaluated model or roster.
        subject: Digest,
        /// The session in which they were.
        sid: Sid,
    },
    /// A survivor set one hospital away from an earlier one.
    #[error(
        "survivor set differs from the one signed in session {sid} by {site} alone: the difference of the sums would \
         be about that hospital; leave another hospital out, or allow it in the SitePolicy"
    )]
    DiffersByOne {
        /// The session of the earlier set.
        sid: Sid,
        /// The hospital that would be exposed.
        site: SiteId,
    },
}

/// The hospital's memory; the agent stores it and passes it in.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct History {
    /// Sessions whose shares were released.
    pub released: Vec<Released>,
    /// Survivor sets that were signed.
    pub signed: Vec<SignedSet>,
}

impl History {
    /// Whether a session on this round may be opened, joined or released under `sid` (`None`: not known yet).
    ///
    /// # Errors
    /// [`HistoryError::AlreadyReleased`] by another session.
    pub fn may_take_part(&self, round: &RoundSpec, sid: Option<&Sid>) -> Result<(), HistoryError> {
        let same = |r: &&Released| r.study == round.study && r.purpose == round.purpose && r.subject == round.subject;
        match self.released.iter().filter(same).find(|r| Some(&r.sid) != sid) {
            Some(r) => Err(HistoryError::AlreadyReleased {
                study: r.study.clone(),
                purpose: r.purpose,
                subject: r.subject,
                sid: r.sid,
            }),
            None => Ok(()),
        }
    }

    /// Whether this survivor set may be signed.
    ///
    /// # Errors
    /// [`HistoryError`].
    pub fn may_sign(
        &self,
        round: &RoundSpec,
        sid: &Sid,
        sites: &BTreeSet<SiteId>,
        rule: DifferenceRule,
    ) -> Result<(), HistoryError> {
        self.may_take_part(round, Some(sid))?;
        if rule == DifferenceRule::Allow {
            return Ok(());
        }
        let earlier = self.signed.iter().filter(|s| s.study == round.study && s.purpose == round.purpose);
        for set in earlier.filter(|s| s.sid != *sid) {
            let mut difference = set.sites.symmetric_difference(sites);
            if let (Some(site), None) = (difference.next(), difference.next()) {
                return Err(HistoryError::DiffersByOne { sid: set.sid, site: site.clone() });
            }
        }
        Ok(())
    }

    /// The default for a study of so many hospitals, which is not the hub's to say. Nor may it become laxer when the
    /// study is made smaller: who was in an earlier sum is protected by it as before.
    #[must_use]
    pub fn default_rule(&self, round: &RoundSpec, hospitals: usize) -> DifferenceRule {
        let earlier = self.signed.iter().filter(|s| s.study == round.study && s.purpose == round.purpose);
        DifferenceRule::default_for(earlier.map(|s| s.sites.len()).max().unwrap_or(0).max(hospitals))
    }

    /// Remembers a signature; the same one again changes nothing.
    pub fn record_signed(&mut self, round: &RoundSpec, sid: Sid, sites: BTreeSet<SiteId>) {
        if !self.signed.iter().any(|s| s.sid == sid) {
            self.signed.push(SignedSet { study: round.study.clone(), purpose: round.purpose, sid, sites });
        }
    }

    /// Remembers a release; the same one again changes nothing.
    pub fn record_released(&mut self, round: &RoundSpec, sid: Sid) {
        if !self.released.iter().any(|r| r.sid == sid) {
            let (study, purpose, subject) = (round.study.clone(), round.purpose, round.subject);
            self.released.push(Released { study, purpose, subject, sid });
        }
    }
}

/// For the hub: the largest survivor set within `complete` that no hospital must refuse, leaving at most one more
/// out and keeping at least `needed`. `None` when there is none.
#[must_use]
pub fn admissible_survivors(
    complete: &BTreeSet<SiteId>,
    earlier: &[BTreeSet<SiteId>],
    needed: usize,
) -> Option<BTreeSet<SiteId>> {
    let fits = |set: &BTreeSet<SiteId>| {
        set.len() >= needed && earlier.iter().all(|e| e.symmetric_difference(set).take(2).count() != 1)
    };
    let without = |site: &SiteId| complete.iter().filter(|s| *s != site).cloned().collect::<BTreeSet<_>>();
    let candidates = std::iter::once(complete.clone()).chain(complete.iter().map(without));
    candidates.into_iter().find(fits)
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
