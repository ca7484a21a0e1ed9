//! Everything that a standing depends on, owned, for tests: a world in which all is well, to be broken.

use std::collections::BTreeMap;

use consilium_federation::approval::{Approval, Requirement, TrustedKey, signed_bytes};
use consilium_federation::ladder::Stage;
use consilium_federation::{Digest, StudyKey};
use jiff::Timestamp;

use super::{GlobalFigures, Inputs, OnExpiry, Policy, Standing, standing};
use crate::approval::{Hospitals, Presented, StageApproval, Terms};
use crate::drift::Drift;
use crate::evidence::{Evidence, Figure, Group, Subject, Summary, Window};
use crate::hazards::HazardLog;
use crate::plan::{ClinicalPlan, below};
use crate::rules::{Outcome, StageRule};
use crate::stats::Interval;
use crate::testing::{at, example, roster_key, sign, subject, trusted};
use crate::values::{Metric, Name};
use crate::verdict::{RosterKeys, SignedVerdict, Verdict};

pub(super) const DAY: i64 = 86_400;
/// The day that the tests are on.
pub(super) const TODAY: i64 = 20_600;

#[derive(Clone)]
pub(super) struct World {
    pub(super) asked: Stage,
    pub(super) subject: Subject,
    pub(super) line: StudyKey,
    pub(super) plan: Option<ClinicalPlan>,
    pub(super) policy: bool,
    pub(super) require: Vec<Requirement>,
    pub(super) max_stage: Option<Stage>,
    pub(super) rules: Vec<StageRule>,
    pub(super) on_expiry: OnExpiry,
    pub(super) approvals: Vec<StageApproval>,
    pub(super) first: Vec<Approval>,
    pub(super) own_evidence: Vec<Digest>,
    pub(super) keys: Vec<TrustedKey>,
    pub(super) evidence: Option<Evidence>,
    pub(super) verdicts: Vec<SignedVerdict>,
    pub(super) roster: RosterKeys,
    pub(super) global: Option<GlobalFigures>,
    pub(super) hazards: HazardLog,
    pub(super) drift: Option<BTreeMap<Name, Drift>>,
    pub(super) lease: Option<Timestamp>,
    pub(super) now: Timestamp,
}

pub(super) fn day(n: i64) -> Timestamp {
    at((TODAY + n) * DAY)
}

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A figure of which the interval reaches `half` to both sides.
pub(super) fn figure(estimate: f64, half: f64) -> Figure {
    let interval = Interval { lower: estimate - half, upper: (estimate + half).min(1.0) };
    Figure { estimate, effective: 300.0, interval }
}

/// A summary that passes every rule of the tests.
pub(super) fn good() -> Summary {
    let figures: BTreeMap<Metric, Figure> = [
        (Metric::Sensitivity, figure(0.96, 0.03)),
        (Metric::Specificity, figure(0.9, 0.04)),
        (Metric::Mean(name("dice")), figure(0.88, 0.01)),
    ]
    .into();
    let group = Group { cases: 500, figures: figures.clone() };
    Summary {
        cases: 1000,
        failed: 5,
        days: 90,
        positives: 300,
        coverage: 0.95,
        blind: Some(0.3),
        p95_seconds: Some(60.0),
        figures,
        groups: [(name("sex"), [(name("F"), group.clone()), (name("M"), group)].into())].into(),
        ..Summary::default()
    }
}

/// The example's rules, the upper one for each further stage too, and every other hospital of the roster to be heard.
pub(super) fn full_plan() -> ClinicalPlan {
    let mut plan = example();
    let mut upper = plan.rules[1].clone();
    upper.sites.as_mut().unwrap().heard = ["birch", "cedar"].map(|site| site.parse().unwrap()).into();
    plan.rules[1] = upper.clone();
    for stage in [Stage::Triage, Stage::SecondReader, Stage::PrimaryReader] {
        plan.rules.push(StageRule { stage, ..upper.clone() });
    }
    plan.check().unwrap();
    plan
}

impl World {
    /// All is well up to PrimaryReader.
    pub(super) fn new() -> Self {
        let plan = full_plan();
        let require = |stage| Requirement { stage, approvals: 2, roles: vec![] };
        let window = Window { from: day(-100), to: day(-1) };
        let since = Stage::ALL.into_iter().filter(|stage| *stage < Stage::PrimaryReader).map(|s| (s, good())).collect();
        let watched = ["spacing", "scanner", "failures"];
        let mut world = Self {
            asked: Stage::PrimaryReader,
            subject: subject(),
            line: "research/hippocampus".parse().unwrap(),
            policy: true,
            require: Stage::ALL.map(require).into(),
            max_stage: Some(Stage::PrimaryReader),
            rules: vec![],
            on_expiry: OnExpiry::Shadow,
            approvals: vec![],
            first: vec![],
            own_evidence: vec![Digest::of(b"own evidence")],
            keys: vec![trusted(1, "mary", "clinical-safety-officer"), trusted(2, "ola", "radiologist")],
            evidence: Some(Evidence { subject: subject(), window, since }),
            verdicts: vec![],
            roster: [("birch", 11), ("cedar", 12)].map(|(site, key)| (site.parse().unwrap(), roster_key(key))).into(),
            global: Some(GlobalFigures { figures: good().figures, until: day(200) }),
            hazards: HazardLog::default(),
            drift: Some(watched.map(|feature| (name(feature), Drift::Steady)).into()),
            lease: Some(day(300)),
            now: day(0),
            plan: Some(plan),
        };
        world.approve(Stage::PrimaryReader, 60);
        for stage in Stage::ALL.into_iter().skip(2) {
            let (birch, cedar) = (world.verdict("birch", 11, stage), world.verdict("cedar", 12, stage));
            world.verdicts.extend([birch, cedar]);
        }
        world
    }

    pub(super) fn terms(&self, stage: Stage, days: i64) -> Terms {
        Terms {
            model: self.subject.model,
            pipeline: self.subject.pipeline,
            plan: self.plan.as_ref().unwrap().digest(),
            stage,
            hospital: Hospitals::All,
            evidence: Digest::of(b"own evidence"),
            expiry: day(days),
        }
    }

    pub(super) fn approval(&self, key: u8, stage: Stage, days: i64) -> StageApproval {
        let terms = self.terms(stage, days);
        let trusted = &self.keys[usize::from(key) - 1];
        let (key_id, role) = (trusted.id.clone(), trusted.role.clone());
        StageApproval { key_id, role, signature: sign(key, &terms.signed_bytes()), terms }
    }

    /// Both people approve a stage for some days.
    pub(super) fn approve(&mut self, stage: Stage, days: i64) {
        let both = [self.approval(1, stage, days), self.approval(2, stage, days)];
        self.approvals.extend(both);
    }

    /// Both people's approvals of the first kind.
    pub(super) fn approve_as_before(&mut self, stage: Stage, days: i64) {
        let evidence = Digest::of(b"release evidence");
        for (n, key) in [(1, 0), (2, 1)] {
            let TrustedKey { id, role, .. } = self.keys[key].clone();
            let signature = sign(n, &signed_bytes(self.subject.model, stage, evidence, day(days)));
            self.first.push(Approval { key_id: id, role, expiry: day(days), signature });
        }
    }

    pub(super) fn verdict(&self, hospital: &str, key: u8, stage: Stage) -> SignedVerdict {
        let plan = self.plan.as_ref().unwrap();
        let metrics = vec![Outcome::Pass; plan.rule(stage).unwrap().metrics.len()];
        let verdict = Verdict {
            hospital: hospital.parse().unwrap(),
            model: self.subject.model,
            pipeline: Digest::of(b"pipeline there"),
            plan: plan.digest(),
            stage,
            outcome: Outcome::Pass,
            metrics,
            evidence: Digest::of(b"evidence there"),
            window_end: day(-3),
            expiry: day(80),
        };
        SignedVerdict { signature: sign(key, &verdict.signed_bytes()), verdict }
    }

    pub(super) fn summary(&mut self, stage: Stage) -> &mut Summary {
        let lower = below(stage).unwrap();
        self.evidence.as_mut().unwrap().since.get_mut(&lower).unwrap()
    }

    pub(super) fn stand(&self) -> Standing {
        let policy =
            Policy { require: &self.require, max_stage: self.max_stage, rules: &self.rules, on_expiry: self.on_expiry };
        standing(&Inputs {
            asked: self.asked,
            subject: &self.subject,
            line: &self.line,
            plan: self.plan.as_ref(),
            policy: self.policy.then_some(policy),
            presented: Presented {
                approvals: &self.approvals,
                first: &self.first,
                release_evidence: Digest::of(b"release evidence"),
                own_evidence: &self.own_evidence,
                keys: &self.keys,
            },
            evidence: self.evidence.as_ref(),
            verdicts: &self.verdicts,
            roster: &self.roster,
            global: self.global.as_ref(),
            hazards: &self.hazards,
            drift: self.drift.as_ref(),
            lease: self.lease,
            now: self.now,
        })
    }

    pub(super) fn stage(&self) -> Option<Stage> {
        self.stand().effective
    }
}
