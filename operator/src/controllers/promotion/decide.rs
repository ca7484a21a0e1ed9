//! How a promotion stands, and what hospitals are asked to serve. Pure.

use std::collections::{BTreeMap, BTreeSet};

use consilium_crds::conditions::{ACCEPTED, Conditions, READY, RECONCILING, STALLED, status_of};
use consilium_crds::model_promotion::{RolloutReason, SiteRollout};
use consilium_crds::{ModelPromotion, ModelPromotionStatus, ModelRelease};
use consilium_federation::SiteName;
use consilium_federation::assignment::{DeployWork, Item, ItemState, Work};
use consilium_federation::report::DeployReport;
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
    /// The hospitals that there are.
    pub sites: &'a Sites,
    /// What hospitals last said of this promotion.
    pub reports: &'a BTreeMap<SiteName, DeployReport>,
    /// Hospitals that acknowledged that they need no longer serve it.
    pub acknowledged: &'a BTreeSet<SiteName>,
}

/// The items for the hospitals, the status, and what people should hear.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `None`: the promotion is not accepted, and what was asked for before stays.
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
    let namespace = facts.promotion.namespace().unwrap_or_default();
    for (index, site) in spec.sites.iter().enumerate() {
        accept::reference(&format!("spec.sites[{index}]"), site, &namespace, facts.sites)
            .map_err(|message| ("InvalidReference", message))?;
    }
    Ok(())
}

/// Hospitals that were asked before and are no longer named: they get a tombstone until they acknowledge it.
fn dropped(facts: &Facts<'_>) -> BTreeSet<SiteName> {
    let known = facts.promotion.status.as_ref().map_or(&[][..], |s| &s.sites);
    let deleting = facts.promotion.metadata.deletion_timestamp.is_some();
    let named = |site: &SiteName| !deleting && facts.promotion.spec.sites.contains(site);
    known.iter().map(|s| &s.site).filter(|s| !named(s) && !facts.acknowledged.contains(s)).cloned().collect()
}

/// What hospitals are asked for.
pub fn items(facts: &Facts<'_>) -> BTreeMap<SiteName, Item> {
    let promotion = facts.promotion;
    let Some(uid) = &promotion.metadata.uid else { return BTreeMap::new() };
    let named = &promotion.spec.release;
    let item = |state| {
        let work = DeployWork {
            release: named.name.clone(),
            // A tombstone outlives its release; what counts in it is the UID.
            release_digest: facts.release.map_or(named.digest, |r| r.spec.digest()),
            model: facts.release.map_or(named.digest, |r| r.spec.model),
            stage: promotion.spec.stage,
            approvals: promotion.spec.approvals.clone(),
        };
        Item { uid: uid.clone(), state, work: Work::Deploy(work) }
    };
    let mut items: BTreeMap<SiteName, Item> =
        dropped(facts).into_iter().map(|site| (site, item(ItemState::Cancelled))).collect();
    if promotion.metadata.deletion_timestamp.is_none() && facts.release.is_some() {
        items.extend(promotion.spec.sites.iter().map(|site| (site.clone(), item(ItemState::Active))));
    }
    items
}

/// Decides one turn of a promotion that is not being deleted.
pub fn decide(facts: &Facts<'_>, now: Timestamp) -> Plan {
    let promotion = facts.promotion;
    let known = promotion.status.as_ref().map_or(&[][..], |s| &s.conditions);
    let mut conditions = Conditions::from_status(known, promotion.metadata.generation, now);
    let mut notes = Vec::new();
    let verdict = accept(facts);
    let sites = match &verdict {
        Ok(()) => rollouts(facts),
        Err(_) => promotion.status.as_ref().map(|s| s.sites.clone()).unwrap_or_default(),
    };
    match &verdict {
        Ok(()) => {
            conditions.set(ACCEPTED, true, "Accepted", "the release and the hospitals exist").clear(STALLED);
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
                .unknown(ROLLED_OUT, reason, "what hospitals serve is left as it is")
                .clear(RECONCILING);
        }
    }
    let status = ModelPromotionStatus {
        observed_generation: promotion.metadata.generation,
        sites,
        conditions: conditions.into_list(),
    };
    Plan { items: verdict.is_ok().then(|| items(facts)), status, notes }
}

fn rollouts(facts: &Facts<'_>) -> Vec<SiteRollout> {
    let one = |site: SiteName| {
        let report = facts.reports.get(&site);
        SiteRollout {
            reason: report.map_or(RolloutReason::Offered, |r| r.reason),
            digest: report.and_then(|r| r.serving),
            message: report.and_then(|r| r.message.as_ref()).map(|m| m.chars().take(200).collect()),
            site,
        }
    };
    let all: BTreeSet<SiteName> = facts.promotion.spec.sites.iter().cloned().chain(dropped(facts)).collect();
    all.into_iter().map(one).collect()
}

/// Folds the hospitals' states into conditions. `Ready` means accepted and offered: a hospital that takes its time,
/// or says no, must not hang a pipeline that waits for `Ready`.
fn fold(conditions: &mut Conditions, notes: &mut Vec<Note>, facts: &Facts<'_>, sites: &[SiteRollout]) {
    let spec = &facts.promotion.spec;
    let serves = |s: &&SiteRollout| s.reason == RolloutReason::Serving && s.digest == Some(spec.release.digest);
    let named: Vec<&SiteRollout> = sites.iter().filter(|s| spec.sites.contains(&s.site)).collect();
    let serving = named.iter().copied().filter(serves).count();
    let with = |reason: RolloutReason| {
        let names = named.iter().filter(|s| s.reason == reason).map(|s| s.site.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    let counted = format!("{serving} of {} hospitals serve the model", named.len());
    let (reason, message) = if serving == named.len() {
        ("Serving", counted)
    } else if !with(RolloutReason::VerificationFailed).is_empty() {
        (
            "VerificationFailed",
            format!("{counted}; it could not be verified in {}", with(RolloutReason::VerificationFailed)),
        )
    } else if !with(RolloutReason::DeniedByPolicy).is_empty() {
        ("DeniedByPolicy", format!("{counted}; not allowed by {}", with(RolloutReason::DeniedByPolicy)))
    } else {
        ("RollingOut", counted)
    };
    let known = facts.promotion.status.as_ref().map_or(&[][..], |s| &s.conditions);
    let before = known.iter().find(|c| c.type_ == ROLLED_OUT).map(|c| c.reason.as_str());
    if before != Some(reason) {
        notes.push(match reason {
            "VerificationFailed" => Note::warning(reason, message.clone()),
            _ => Note::normal(reason, message.clone()),
        });
    }
    conditions
        .set(ROLLED_OUT, serving == named.len(), reason, message)
        .set(READY, true, "Offered", "the hospitals have the offer, each decides for itself")
        .clear(RECONCILING);
}
