//! Where each model that is here stands, judged from its own object and the policy alone: so that it can be asked with the
//! hub away or lying, the ledger broken and the volume new.

use std::collections::BTreeMap;
use std::sync::Arc;

use consilium_clinical::approval::Presented;
use consilium_clinical::evidence::Subject;
use consilium_clinical::hazards::{HazardLog, Origin};
use consilium_clinical::pipeline::Pipeline;
use consilium_clinical::plan::{ClinicalPlan, Fall, above};
use consilium_clinical::standing::{self, Inputs, Lack, OnExpiry, Policy, Promoted, Standing, arbitrate};
use consilium_clinical::values::Name;
use consilium_clinical::verdict::RosterKeys;
use consilium_crds::model_deployment::Approved;
use consilium_crds::site_policy::{ReleasePolicy, SitePolicySpec};
use consilium_crds::{ModelDeployment, ModelDeploymentSpec};
use consilium_federation::approval::Approval;
use consilium_federation::ladder::Stage;
use consilium_federation::stage_approval::{Hospitals, MAX_STAGE_APPROVALS, StageApproval};
use consilium_federation::{Digest, SiteName, StudyKey};
use jiff::Timestamp;
use kube::ResourceExt as _;

use super::hazards::Hazards;
use super::standing::{NO_POLICY, model_room};

/// What every model here is held against.
#[derive(Clone, Copy, Debug)]
pub struct Hospital<'a> {
    /// What it allows; `None` while there is no SitePolicy that can be read.
    pub policy: Option<&'a SitePolicySpec>,
    /// The hazards that it has seen; `None` before they were read: then nothing stands above Shadow.
    pub hazards: Option<&'a Hazards>,
    /// Digest of the image that serves models here; none where it is not named by one. Then no pipeline is known, and
    /// nothing stands above Shadow.
    pub image: Option<Digest>,
    /// The time.
    pub now: Timestamp,
}

/// What is said of one model.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// It may not be here; why.
    Refused(String),
    /// An agent of before did not write into its object on whose word it stands, or of which line it is while a hazard of a
    /// line is open. The controller adds that as soon as it has the release. Until then nothing prolongs its lease and it
    /// counts as Shadow; to stop it would take every model down with an upgrade.
    Unsaid,
    /// It may be here, and stands there.
    Stands(Box<Standing>),
    /// A hazard is open by which it is not served. Its object stays: it says why, and it goes on being the one of its line
    /// that acts, or its hazard would raise another.
    Withdrawn(Box<Standing>),
}

/// What a model's pod is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The stage.
    pub stage: Stage,
    /// Until when that holds; none where nobody can say.
    pub until: Option<Timestamp>,
}

impl Place {
    /// The stage, if the model may be here.
    pub fn stage(&self) -> Option<Stage> {
        match self {
            Self::Refused(_) | Self::Withdrawn(_) => None,
            Self::Unsaid => Some(Stage::Shadow),
            Self::Stands(standing) => standing.effective,
        }
    }

    /// What the pod is told: never more than what is written down as the model's stage, so that no model rises before its
    /// rise is in the ledger.
    pub fn told(&self, written: Option<Stage>) -> Option<Told> {
        let stage = self.stage()?.min(written.unwrap_or(Stage::Shadow));
        let until = match self {
            Self::Stands(standing) => Some(standing.until.unwrap_or(Timestamp::MAX)),
            Self::Refused(_) | Self::Unsaid | Self::Withdrawn(_) => None,
        };
        Some(Told { stage, until })
    }
}

/// Judges all models that are here, by their UIDs. Of one line one model acts.
pub fn places(models: &[Arc<ModelDeployment>], hospital: &Hospital<'_>) -> BTreeMap<String, Place> {
    let mut places = BTreeMap::new();
    let mut lines: BTreeMap<&StudyKey, Vec<(String, Promoted)>> = BTreeMap::new();
    for model in models {
        let (uid, spec) = (model.uid().unwrap_or_default(), &model.spec);
        match (place(spec, hospital, true), spec.approved.as_ref().and_then(|approved| approved.line.as_ref())) {
            (Place::Stands(standing) | Place::Withdrawn(standing), Some(line)) => {
                let made = model.creation_timestamp().map_or(Timestamp::MAX, |at| at.0);
                lines.entry(line).or_default().push((uid, Promoted { model: spec.model, made, standing: *standing }));
            }
            (other, _) => {
                places.insert(uid, other);
            }
        }
    }
    for promoted in lines.into_values() {
        let standings = arbitrate(promoted.iter().map(|(_, promoted)| promoted.clone())).models;
        for (uid, Promoted { model, standing, .. }) in promoted {
            let standing = standings.get(&model).cloned().unwrap_or(standing);
            places.insert(uid, of(standing));
        }
    }
    places
}

/// Judges one model as if it were the only one of its line; `in_use`: it is here already.
pub(super) fn place(model: &ModelDeploymentSpec, hospital: &Hospital<'_>, in_use: bool) -> Place {
    let Some(policy) = hospital.policy else { return Place::Refused(NO_POLICY.to_owned()) };
    if let Err(why) = model_room(policy, in_use).and_then(|()| ceiling(policy).map(drop)) {
        return Place::Refused(why);
    }
    let Some(approved) = &model.approved else { return Place::Unsaid };
    let none = HazardLog::default();
    let Some((site, line)) = approved.hospital.clone().zip(approved.line.clone()) else {
        // Whose line it is does not matter on Shadow, unless a hazard is about one.
        let of_a_line = |hazards: &Hazards| hazards.log().all().any(|(_, _, hazard)| hazard.is_of_a_line());
        if hospital.hazards.is_none_or(of_a_line) {
            return Place::Unsaid;
        }
        let (hospital_name, line) = ("unsaid".parse().ok(), Some(StudyKey::new("unsaid", "unsaid")));
        let approved = Approved { hospital: hospital_name, line, ..approved.clone() };
        let said = ModelDeploymentSpec { stage: Stage::Shadow, approved: Some(approved), ..model.clone() };
        return place(&said, hospital, in_use);
    };
    let climb = Climb::new(approved, model.model, &site, &line, policy, hospital.image);
    let asked = model.stage.min(approved.stage);
    // What has lapsed keeps a model that is here on Shadow; it brings none into use.
    let on_expiry = if in_use { policy.releases.on_expiry.unwrap_or_default() } else { OnExpiry::Withdraw };
    let rules = Policy { on_expiry, ..rules(&policy.releases) };
    let stand = |hazards: &HazardLog| climb.stand(asked, (policy, rules), hazards, hospital.now);
    let standing = fallen(stand(hospital.hazards.map_or(&none, Hazards::log)), hospital.hazards);
    if standing.effective.is_some() {
        return of(standing);
    }
    // Whether it is a hazard that takes it away, or policy and signatures.
    let without = stand(&none);
    if without.effective.is_some() { of(standing) } else { Place::Refused(refusal(&without)) }
}

/// The place of a model that policy and signatures allow.
fn of(standing: Standing) -> Place {
    let standing = Box::new(standing);
    if standing.effective.is_some() { Place::Stands(standing) } else { Place::Withdrawn(standing) }
}

/// Where a model stands that what cannot be read lowers: hazards that are not understood, or not known.
fn fallen(mut standing: Standing, hazards: Option<&Hazards>) -> Standing {
    let unread = hazards.into_iter().flat_map(Hazards::unread);
    let unknown = hazards.is_none_or(|hazards| !hazards.whole()).then_some(("", Fall::Shadow));
    for (name, fall) in unread.chain(unknown) {
        let effective = fall.from(standing.effective).min(standing.effective);
        if effective < standing.effective {
            (standing.effective, standing.next) = (effective, above(effective));
            let lack = Lack::Hazard(Origin::Hospital, name.parse().unwrap_or_else(|_| Name::unreadable()));
            (standing.because, standing.missing) = (vec![lack.clone()], vec![lack]);
        }
    }
    standing
}

/// The hospital's ceiling, which no signature lifts.
pub(super) fn ceiling(policy: &SitePolicySpec) -> Result<Stage, String> {
    policy.releases.max_stage.ok_or_else(|| {
        "SitePolicy spec.releases.maxStage is not set, so no model is served; set it to the highest stage that a model \
         may have here"
            .to_owned()
    })
}

/// What a model climbs by, as its own object and the policy say.
struct Climb<'a> {
    approved: &'a Approved,
    line: &'a StudyKey,
    subject: Subject,
    /// None where the promotion names none; or why the one that it names cannot be used.
    plan: Result<Option<ClinicalPlan>, String>,
}

impl<'a> Climb<'a> {
    fn new(
        approved: &'a Approved,
        model: Digest,
        site: &SiteName,
        line: &'a StudyKey,
        policy: &SitePolicySpec,
        image: Option<Digest>,
    ) -> Self {
        let plan = approved.plan.as_ref().map(ClinicalPlan::read).transpose();
        let plan = plan.map_err(|error| format!("the one that the promotion names cannot be used: {error}"));
        let known = plan.as_ref().ok().and_then(Option::as_ref);
        let pipeline = known.and_then(|plan| pipeline(approved, plan, model, policy, image));
        // Without a pipeline nothing is signed for one, nor counted by one, and the model stands for it.
        let subject = Subject { hospital: site.clone(), model, pipeline: pipeline.unwrap_or(model) };
        Self { approved, line, subject, plan }
    }

    fn stand(
        &self,
        asked: Stage,
        (policy, rules): (&SitePolicySpec, Policy<'_>),
        hazards: &HazardLog,
        now: Timestamp,
    ) -> Standing {
        let roster = RosterKeys::default();
        let mut standing = standing::standing(&Inputs {
            asked,
            subject: &self.subject,
            line: self.line,
            plan: self.plan.as_ref().ok().and_then(Option::as_ref),
            policy: Some(rules),
            presented: Presented {
                approvals: &self.approved.stage_approvals,
                ..presented(&self.approved.approvals, self.approved.evidence_digest, &policy.releases)
            },
            evidence: None,
            verdicts: &[],
            roster: &roster,
            global: None,
            hazards,
            drift: None,
            lease: now.checked_add(policy.model_lease()).ok(),
            now,
        });
        if let Err(why) = &self.plan {
            let lacks = standing.because.iter_mut().chain(&mut standing.missing);
            lacks.filter(|lack| matches!(lack, Lack::Plan(_))).for_each(|lack| *lack = Lack::Plan(why.clone()));
        }
        standing
    }
}

/// Digest of everything that changes an answer here; none while a part of it is not known.
fn pipeline(
    approved: &Approved,
    plan: &ClinicalPlan,
    model: Digest,
    policy: &SitePolicySpec,
    image: Option<Digest>,
) -> Option<Digest> {
    let line = approved.line.as_ref()?;
    let worker = policy.releases.workers.iter().find(|worker| worker.line == *line)?;
    let device = if policy.releases.gpus == 0 { "cpu" } else { "gpu" };
    let pipeline = Pipeline {
        model,
        output: approved.output.clone(),
        finding: plan.finding.clone(),
        scope: plan.scope.clone(),
        worker_image: worker.image,
        inference_image: image?,
        // The server knows no other.
        precision: "FP32".parse().ok()?,
        device_class: device.parse().ok()?,
    };
    Some(pipeline.digest())
}

/// The pipeline of a model that is here, by its own object.
pub fn pipeline_of(model: &ModelDeploymentSpec, policy: &SitePolicySpec, image: Option<Digest>) -> Option<Digest> {
    let approved = model.approved.as_ref()?;
    let plan = ClinicalPlan::read(approved.plan.as_ref()?).ok()?;
    pipeline(approved, &plan, model.model, policy, image)
}

/// Of what an approval of the first kind is: it says nothing of a pipeline, so the model stands for it.
pub(super) fn subject(site: &SiteName, model: Digest) -> Subject {
    Subject { hospital: site.clone(), model, pipeline: model }
}

fn rules(releases: &ReleasePolicy) -> Policy<'_> {
    Policy {
        require: &releases.require,
        max_stage: releases.max_stage,
        rules: &releases.rules,
        on_expiry: releases.on_expiry.unwrap_or_default(),
    }
}

fn presented<'a>(first: &'a [Approval], evidence: Digest, releases: &'a ReleasePolicy) -> Presented<'a> {
    Presented { approvals: &[], first, release_evidence: evidence, own_evidence: &[], keys: &releases.keys }
}

/// Of the approvals of the second kind that are offered those that are for this model, plan and hospital. Whether they are
/// signed, and suffice, is judged at every turn.
pub(super) fn concerning(
    offered: &[StageApproval],
    site: &SiteName,
    model: Digest,
    plan: Option<Digest>,
) -> Vec<StageApproval> {
    let here = |hospital: &Hospitals| match hospital {
        Hospitals::All => true,
        Hospitals::One(one) => one == site,
    };
    let concerns = |a: &&StageApproval| a.terms.model == model && Some(a.terms.plan) == plan && here(&a.terms.hospital);
    offered.iter().filter(concerns).take(MAX_STAGE_APPROVALS).cloned().collect()
}

/// Of the approvals that are offered those whose signatures hold, one a key: of several by one the last to end. They are
/// what the object keeps; whether they suffice is judged from there.
pub(super) fn counted(
    offered: &[Approval],
    subject: &Subject,
    evidence: Digest,
    releases: &ReleasePolicy,
) -> Vec<Approval> {
    let mut kept: BTreeMap<&str, &Approval> = BTreeMap::new();
    for approval in offered {
        let (valid, _) = presented(std::slice::from_ref(approval), evidence, releases).verify(subject, None);
        let longer = kept.get(approval.key_id.as_str()).is_none_or(|other| other.expiry < approval.expiry);
        if longer && !valid.is_empty() {
            kept.insert(&approval.key_id, approval);
        }
    }
    kept.into_values().cloned().collect()
}

/// Words for people, of what the hub or a signer may have had a hand in.
const WORDS: usize = 500;

fn listed(lacks: &[Lack]) -> String {
    lacks.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn cut(text: String) -> String {
    if text.chars().count() <= WORDS { text } else { text.chars().take(WORDS - 1).chain(['…']).collect() }
}

fn refusal(standing: &Standing) -> String {
    let mut text = format!("it may not stand on Shadow here, for which it needs {}", listed(&standing.missing));
    if !standing.faults.is_empty() {
        text.push_str(&format!(" (approvals that do not count: {})", standing.faults.join("; ")));
    }
    cut(text)
}

/// Why a model that policy and signatures allow is not served.
pub fn withdrawn(place: &Place) -> Option<String> {
    let Place::Withdrawn(standing) = place else { return None };
    Some(cut(format!("it is not served, for which it needs {}", listed(&standing.missing))))
}

/// What a model's next rung lacks, for people.
pub struct Outlook {
    /// The rung.
    pub next: Option<Stage>,
    /// What it lacks, a text each.
    pub missing: Vec<String>,
    /// When the model falls by itself.
    pub until: Option<Timestamp>,
}

/// What the next rung lacks, as far as anybody reads it.
pub fn outlook(place: &Place) -> Outlook {
    const MOST: usize = 40;
    const LENGTH: usize = 400;
    let (Place::Stands(standing) | Place::Withdrawn(standing)) = place else {
        return Outlook { next: None, missing: Vec::new(), until: None };
    };
    let texts = standing
        .missing
        .iter()
        .map(ToString::to_string)
        .chain(standing.faults.iter().map(|fault| format!("(an approval that does not count: {fault})")));
    let missing = texts.take(MOST).map(|text| text.chars().take(LENGTH).collect()).collect();
    Outlook { next: standing.next, missing, until: standing.until }
}

/// Why a model stands on a stage below the one that is asked for.
pub fn because(place: &Place, asked: Stage, stands: Stage) -> Option<String> {
    if stands >= asked {
        return None;
    }
    let text = match place {
        Place::Refused(why) => why.clone(),
        Place::Withdrawn(standing) => listed(&standing.missing),
        Place::Unsaid => "on whose word it stands is not written down yet".to_owned(),
        Place::Stands(standing) if standing.effective > Some(stands) => {
            "it may rise, and does as soon as the ledger has it and SitePolicy spec.participation is Enabled".to_owned()
        }
        // What is asked is less than the object says: another promotion of the same model asks for less.
        Place::Stands(standing) if standing.because.is_empty() => {
            format!("another promotion of this model asks for {} alone", standing.asked)
        }
        Place::Stands(standing) => {
            let next = standing.next.map_or("more".to_owned(), |next| next.to_string());
            format!("{next} needs {}", listed(&standing.because))
        }
    };
    Some(cut(text))
}

#[cfg(test)]
#[path = "stands_tests.rs"]
mod tests;
