//! How a promotion stands, and what hospitals are asked to serve. Pure.

use std::collections::{BTreeMap, BTreeSet};

use consilium_crds::conditions::{ACCEPTED, Conditions, READY, RECONCILING, STALLED, status_of};
use consilium_crds::model_promotion::{Offered, RolloutReason, SiteRollout};
use consilium_crds::{ClinicalPlan, ModelPromotion, ModelPromotionStatus, ModelRelease};
use consilium_federation::SiteName;
use consilium_federation::approval::Approval;
use consilium_federation::assignment::{DeployWork, Item, ItemState, Work};
use consilium_federation::ladder::Stage;
use consilium_federation::report::DeployReport;
use consilium_federation::stage_approval::StageApproval;
use jiff::Timestamp;
use kube::ResourceExt;

use crate::controllers::release::decide::ATTESTED;
use crate::controllers::study::accept::{self, Sites};
use crate::controllers::write::Note;

/// The condition that says whether every hospital serves the model.
pub const ROLLED_OUT: &str = "RolledOut";

/// Everything that was read for one turn.
pub struct Facts<'a> {
    /// The promotion.
    pub promotion: &'a ModelPromotion,
    /// The release that it names, if there is one.
    pub release: Option<&'a ModelRelease>,
    /// The plan that it names, if it names one and there is one.
    pub plan: Option<&'a ClinicalPlan>,
    /// The hospitals that there are.
    pub sites: &'a Sites,
    /// What hospitals last said of this promotion.
    pub reports: &'a BTreeMap<SiteName, DeployReport>,
    /// Hospitals that acknowledged that they need no longer serve it.
    pub acknowledged: &'a BTreeSet<SiteName>,
}

/// Most hospitals that a status lists.
const LISTED: usize = 200;

/// The items for the hospitals, the status, and what people should hear.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What only takes back, for hospitals that were asked before: goes out before anything is written, whether or not
    /// the promotion makes sense.
    pub lowered: BTreeMap<SiteName, Item>,
    /// Tombstones that the status has no room to remember: kept in the store before it is written.
    pub buried: BTreeMap<SiteName, Item>,
    /// Everything; goes out when the status names whom it goes to. `None`: the promotion is not accepted, and nobody is
    /// asked for more than before.
    pub items: Option<BTreeMap<SiteName, Item>>,
    /// The status.
    pub status: ModelPromotionStatus,
    /// Recorded after the status.
    pub notes: Vec<Note>,
}

/// Whether the promotion makes sense.
///
/// # Errors
/// Reason and text of the condition: field, value, rule and way out.
pub fn accept(facts: &Facts<'_>) -> Result<(), (&'static str, String)> {
    let spec = &facts.promotion.spec;
    let (name, digest) = (&spec.release.name, spec.release.digest);
    let release = facts.release.ok_or_else(|| {
        let message = format!(
            "spec.release.name is \"{name}\": there is no ModelRelease of that name in this namespace; correct the name, \
             or wait until the release is cut"
        );
        ("InvalidReference", message)
    })?;
    if release.spec.model != digest {
        let message = format!(
            "spec.release.digest is {digest}, but the model of ModelRelease \"{name}\" is {}: promote the digest that was \
             reviewed, or review and write this one",
            release.spec.model
        );
        return Err(("DigestMismatch", message));
    }
    let attested = release.status.as_ref().and_then(|s| status_of(&s.conditions, ATTESTED));
    if attested != Some("True") {
        let message = format!("ModelRelease \"{name}\" is not attested by this hub; see its condition {ATTESTED}");
        return Err(("ReleaseNotAttested", message));
    }
    plan(facts, release)?;
    let namespace = facts.promotion.namespace().unwrap_or_default();
    for (index, site) in spec.sites.iter().enumerate() {
        accept::reference(&format!("spec.sites[{index}]"), site, &namespace, facts.sites)
            .map_err(|message| ("InvalidReference", message))?;
    }
    Ok(())
}

/// Whether the plan that the promotion names can be climbed by.
fn plan(facts: &Facts<'_>, release: &ModelRelease) -> Result<(), (&'static str, String)> {
    let Some(named) = &facts.promotion.spec.plan else { return Ok(()) };
    let (name, digest) = (&named.name, named.digest);
    let plan = facts.plan.ok_or_else(|| {
        let message = format!(
            "spec.plan.name is \"{name}\": there is no ClinicalPlan of that name in this namespace; correct the name, apply \
             the plan, or leave spec.plan out to ask for Shadow"
        );
        ("InvalidReference", message)
    })?;
    let found = plan.spec.digest();
    if found != digest {
        let message = format!(
            "spec.plan.digest is {digest}, but that of ClinicalPlan \"{name}\" is {found}: name the plan that was signed, or \
             review and sign this one"
        );
        return Err(("DigestMismatch", message));
    }
    if let Err(error) = plan.spec.plan() {
        let message = format!("spec.plan.name is \"{name}\", which cannot be used: spec.{error}; name another plan");
        return Err(("InvalidPlan", message));
    }
    if plan.spec.line != release.spec.study {
        let message = format!(
            "spec.plan.name is \"{name}\", which is for the models of {}, and ModelRelease \"{}\" is one of {}: name a plan \
             of that study",
            plan.spec.line, facts.promotion.spec.release.name, release.spec.study
        );
        return Err(("InvalidPlan", message));
    }
    Ok(())
}

fn known<'a>(facts: &Facts<'a>) -> impl Iterator<Item = &'a SiteName> {
    facts.promotion.status.iter().flat_map(|status| status.sites.iter().map(|s| &s.site))
}

fn is_named(facts: &Facts<'_>, site: &SiteName) -> bool {
    facts.promotion.metadata.deletion_timestamp.is_none() && facts.promotion.spec.sites.contains(site)
}

/// Hospitals that were asked before and are no longer named: they get a tombstone until they acknowledge it.
fn dropped(facts: &Facts<'_>) -> BTreeSet<SiteName> {
    known(facts).filter(|site| !is_named(facts, site) && !facts.acknowledged.contains(*site)).cloned().collect()
}

/// What the spec asks for; for a tombstone, whose UID is all that counts in it, also without the release.
fn asked(facts: &Facts<'_>) -> Offered {
    let spec = &facts.promotion.spec;
    Offered {
        release: spec.release.name.clone(),
        release_digest: facts.release.map_or(spec.release.digest, |r| r.spec.digest()),
        model: facts.release.map_or(spec.release.digest, |r| r.spec.model),
        stage: spec.stage,
        approvals: spec.approvals.clone(),
        plan: spec.plan.as_ref().map(|plan| plan.digest),
        stage_approvals: spec.stage_approvals.clone(),
    }
}

/// What was offered, or less of it: never a higher stage, nor another model.
fn less(offered: &Offered, facts: &Facts<'_>) -> Offered {
    let spec = &facts.promotion.spec;
    let mut less = offered.clone();
    less.stage = less.stage.min(spec.stage);
    // Approvals of another model say nothing of this one.
    if (&spec.release.name, spec.release.digest) == (&offered.release, offered.model) {
        if less.stage < offered.stage {
            // A lower stage has approvals of its own.
            less.approvals = spec.approvals.clone();
        } else {
            // One that was taken back no longer counts, one that was renewed goes on counting, and one by somebody new
            // counts when the promotion is accepted.
            let by = |approval: &Approval| (approval.key_id.clone(), approval.role.clone());
            let before: BTreeSet<_> = less.approvals.iter().map(by).collect();
            less.approvals = spec.approvals.iter().filter(|approval| before.contains(&by(approval))).cloned().collect();
        }
        // Those of the second kind say for which stage and hospital they are: one that was taken back no longer counts, and
        // no other comes to count meanwhile, nor another plan.
        let by = |a: &StageApproval| (a.key_id.clone(), a.role.clone(), a.terms.stage, a.terms.hospital.to_string());
        let before: BTreeSet<_> = less.stage_approvals.iter().map(by).collect();
        let kept = spec.stage_approvals.iter().filter(|approval| before.contains(&by(approval)));
        less.stage_approvals = kept.cloned().collect();
        less.plan = less.plan.filter(|plan| spec.plan.as_ref().is_some_and(|named| named.digest == *plan));
    }
    less
}

fn item(uid: &str, state: ItemState, offer: &Offered) -> Item {
    let active = state == ItemState::Active;
    let work = DeployWork {
        release: offer.release.clone(),
        release_digest: offer.release_digest,
        model: offer.model,
        stage: offer.stage,
        // What counts in a tombstone is its UID.
        approvals: if active { offer.approvals.clone() } else { Vec::new() },
        plan: offer.plan.filter(|_| active),
        stage_approvals: if active { offer.stage_approvals.clone() } else { Vec::new() },
    };
    Item { uid: uid.to_owned(), state, work: Work::Deploy(work) }
}

/// What hospitals that were asked before are asked for at most: a tombstone if they are no longer named, and otherwise
/// what they were offered or less. It needs nothing but the promotion: no reference, however broken, keeps a hospital
/// from hearing that a model is taken back.
pub fn lowered(facts: &Facts<'_>) -> BTreeMap<SiteName, Item> {
    let Some(uid) = &facts.promotion.metadata.uid else { return BTreeMap::new() };
    let offered = facts.promotion.status.as_ref().and_then(|status| status.offered.as_ref());
    let named = asked(facts);
    let tombstone = offered.unwrap_or(&named);
    let mut items: BTreeMap<SiteName, Item> =
        dropped(facts).into_iter().map(|site| (site, item(uid, ItemState::Cancelled, tombstone))).collect();
    let less = match offered {
        Some(offered) => Some(less(offered, facts)),
        // Written by a version that did not note what it offered.
        None => accept(facts).is_ok().then_some(named),
    };
    if let Some(less) = less {
        let asked = known(facts).filter(|site| is_named(facts, site));
        items.extend(asked.map(|site| (site.clone(), item(uid, ItemState::Active, &less))));
    }
    items
}

/// What hospitals are asked for by a promotion that is accepted.
fn items(facts: &Facts<'_>) -> BTreeMap<SiteName, Item> {
    let Some(uid) = &facts.promotion.metadata.uid else { return BTreeMap::new() };
    let mut items = lowered(facts);
    let asked = asked(facts);
    let named = facts.promotion.spec.sites.iter().filter(|site| is_named(facts, site));
    items.extend(named.map(|site| (site.clone(), item(uid, ItemState::Active, &asked))));
    items
}

/// Decides one turn of a promotion that is not being deleted.
pub fn decide(facts: &Facts<'_>, now: Timestamp) -> Plan {
    let promotion = facts.promotion;
    let known = promotion.status.as_ref().map_or(&[][..], |s| &s.conditions);
    let mut conditions = Conditions::from_status(known, promotion.metadata.generation, now);
    let mut notes = Vec::new();
    let verdict = accept(facts);
    let lowered = lowered(facts);
    let (sites, buried) = listed(facts, verdict.is_ok(), &lowered);
    match &verdict {
        Ok(()) => {
            conditions.set(ACCEPTED, true, "Accepted", "the release and the hospitals exist");
            fold(&mut conditions, &mut notes, facts, &sites);
        }
        Err((reason, message)) => {
            if status_of(known, ACCEPTED) != Some("False") {
                notes.push(Note::warning(reason, message.clone()));
            }
            conditions
                .set(ACCEPTED, false, reason, message)
                .set(READY, false, reason, message)
                .set(STALLED, true, reason, message)
                .unknown(ROLLED_OUT, reason, "hospitals are asked for nothing more than before, and for less at once")
                .clear(RECONCILING);
        }
    }
    let before = promotion.status.as_ref().and_then(|status| status.offered.as_ref());
    let offered = match &verdict {
        Ok(()) => Some(asked(facts)),
        // Lowered once is lowered: what the spec says next must not bring it back before it is accepted.
        Err(_) => before.map(|offered| less(offered, facts)),
    };
    let status = ModelPromotionStatus {
        observed_generation: promotion.metadata.generation,
        offered,
        sites,
        conditions: conditions.into_list(),
    };
    let items = verdict.is_ok().then(|| {
        let mut items = items(facts);
        // Theirs are kept, and heard, beside the promotion.
        items.retain(|site, _| !buried.contains_key(site));
        items
    });
    Plan { lowered, buried, items, status, notes }
}

/// The hospitals that the status lists, and the tombstones for which it has no room.
fn listed(
    facts: &Facts<'_>,
    accepted: bool,
    lowered: &BTreeMap<SiteName, Item>,
) -> (Vec<SiteRollout>, BTreeMap<SiteName, Item>) {
    let asked: BTreeSet<SiteName> = match accepted {
        true => facts.promotion.spec.sites.iter().cloned().collect(),
        // Nobody new is asked.
        false => known(facts).filter(|site| is_named(facts, site)).cloned().collect(),
    };
    let mut dropped = dropped(facts);
    let room = LISTED.saturating_sub(asked.len());
    let beyond = dropped.iter().nth(room).cloned();
    let without_room = beyond.map(|first| dropped.split_off(&first)).unwrap_or_default();
    let all = asked.into_iter().chain(dropped).collect();
    let tombstone = |site: SiteName| Some((site.clone(), lowered.get(&site)?.clone()));
    (rollouts(facts, all), without_room.into_iter().filter_map(tombstone).collect())
}

fn rollouts(facts: &Facts<'_>, all: BTreeSet<SiteName>) -> Vec<SiteRollout> {
    let one = |site: SiteName| {
        let report = facts.reports.get(&site);
        SiteRollout {
            reason: report.map_or(RolloutReason::Offered, |r| r.reason),
            digest: report.and_then(|r| r.serving),
            stage: report.and_then(|r| r.stage),
            message: report.and_then(|r| r.message.as_ref()).map(|m| m.chars().take(200).collect()),
            site,
        }
    };
    all.into_iter().map(one).collect()
}

/// Where the model stands lower than is asked. Why stays in the hospital.
fn lower<'a>(asked: Stage, sites: impl Iterator<Item = &'a SiteRollout>) -> String {
    let below = |s: &SiteRollout| s.stage.filter(|stage| *stage < asked).map(|stage| format!("{} ({stage})", s.site));
    let names: Vec<String> = sites.filter_map(below).collect();
    if names.is_empty() { String::new() } else { format!("; it stands lower than asked in {}", names.join(", ")) }
}

/// Folds the hospitals' states into conditions. `Ready` means accepted and offered: a hospital that takes its time,
/// or says no, must not hang a pipeline that waits for `Ready`. A refusal is an end once nobody else is under way; a model
/// that cannot be verified is one that people have to look at.
fn fold(conditions: &mut Conditions, notes: &mut Vec<Note>, facts: &Facts<'_>, sites: &[SiteRollout]) {
    let spec = &facts.promotion.spec;
    let serves = |s: &&SiteRollout| s.reason == RolloutReason::Serving && s.digest == Some(spec.release.digest);
    let named: Vec<&SiteRollout> = sites.iter().filter(|s| spec.sites.contains(&s.site)).collect();
    let serving = named.iter().copied().filter(serves).count();
    let with = |reason: RolloutReason, words: &str| {
        let said = |s: &&SiteRollout| s.message.as_ref().map_or_else(String::new, |said| format!(" ({said})"));
        let names = named.iter().filter(|s| s.reason == reason).map(|s| format!("{}{}", s.site, said(s)));
        let names = names.collect::<Vec<_>>().join(", ");
        if names.is_empty() { names } else { format!("; {words} {names}") }
    };
    let unverified = with(RolloutReason::VerificationFailed, "it could not be verified in");
    let denied = with(RolloutReason::DeniedByPolicy, "not allowed by");
    let ended = |s: &&&SiteRollout| serves(s) || s.reason == RolloutReason::DeniedByPolicy;
    let reason = if serving == named.len() {
        "Serving"
    } else if !unverified.is_empty() {
        "VerificationFailed"
    } else if named.iter().filter(ended).count() == named.len() {
        "DeniedByPolicy"
    } else {
        "RollingOut"
    };
    let lower = lower(spec.stage, named.iter().copied().filter(serves));
    let message = format!("{serving} of {} hospitals serve the model{lower}{unverified}{denied}", named.len());
    let known = facts.promotion.status.as_ref().map_or(&[][..], |s| &s.conditions);
    let before = known.iter().find(|c| c.type_ == ROLLED_OUT).map(|c| c.reason.as_str());
    if before != Some(reason) {
        notes.push(match reason {
            "VerificationFailed" => Note::warning(reason, message.clone()),
            _ => Note::normal(reason, message.clone()),
        });
    }
    match unverified.is_empty() {
        true => conditions.clear(STALLED),
        false => conditions.set(STALLED, true, reason, &message),
    };
    conditions
        .set(ROLLED_OUT, serving == named.len(), reason, message)
        .set(READY, true, "Offered", "the hospitals have the offer, each decides for itself")
        .clear(RECONCILING);
}
