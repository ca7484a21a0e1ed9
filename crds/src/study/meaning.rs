//! What a study's spec means: the rules of its rounds, and the sums that they make.

use std::collections::BTreeSet;

use consilium_federation::digest::Digest;
use consilium_federation::gate::Gate;
use consilium_federation::ids::{SiteName, StudyKey};
use consilium_federation::round::{EarlierSums, Protocol, RoundPolicy};
use consilium_federation::strategy::{Adaptive, Momentum, Rule, Second};
use consilium_federation::task::TaskKind;
use consilium_secagg::spec::{self as secagg, Purpose, RoundSpec};
use jiff::{SignedDuration, Timestamp};

use super::{
    EVALUATION_CLIP, EVALUATION_ELEMENTS, EXAMPLES_CAP, FederatedStudySpec, ProtocolKind, StrategyKind, Weighting,
};
use crate::values::{self, ValueError};

impl FederatedStudySpec {
    /// What hospitals opt in to. Of a spec that was read in full this is the digest of what its user wrote, and no other
    /// is ever at hand: see [`WrittenSpec`](super::WrittenSpec).
    pub fn digest(&self) -> Digest {
        Digest::of_json(&self.agreed())
    }

    /// What its digest is of, and what hospitals get to read: all but when the hub works on the study.
    pub fn agreed(&self) -> Self {
        let rounds = super::Rounds { backoff_limit: None, ..self.rounds.clone() };
        Self { suspend: None, rounds, ..self.clone() }
    }

    /// Names of all hospitals.
    pub fn site_names(&self) -> Vec<SiteName> {
        self.sites.iter().map(|s| s.name.clone()).collect()
    }

    /// The clip bound C.
    pub fn clip(&self) -> Result<f64, ValueError> {
        let field = "spec.aggregation.clipNorm";
        let clip = values::decimal(field, &self.aggregation.clip_norm)?;
        let bad = || ValueError { field, value: self.aggregation.clip_norm.clone(), rule: "must be more than 0" };
        if clip > 0.0 { Ok(clip) } else { Err(bad()) }
    }

    /// How the mean update moves the model. What is left out has the paper's usual value, which never changes: a study's
    /// digest does not know it.
    pub fn rule(&self) -> Result<Rule, ValueError> {
        let strategy = &self.aggregation.strategy;
        let number = |field: &'static str, text: &Option<String>, default: f64, good: fn(f64) -> bool, rule| {
            let Some(text) = text else { return Ok(default) };
            let value = values::decimal(field, text)?;
            if good(value) { Ok(value) } else { Err(ValueError { field, value: text.clone(), rule }) }
        };
        let above = |field, text, default| number(field, text, default, |v| v > 0.0, "must be more than 0");
        let share = |field, text, default| number(field, text, default, |v| v < 1.0, "must be less than 1");
        let rate = |default| above("spec.aggregation.strategy.rate", &strategy.rate, default);
        let momentum = || share("spec.aggregation.strategy.momentum", &strategy.momentum, 0.9);
        let adaptive = |second| {
            Ok(Rule::Adaptive(Adaptive {
                rate: rate(0.01)?,
                beta1: momentum()?,
                beta2: share("spec.aggregation.strategy.secondMomentum", &strategy.second_momentum, 0.99)?,
                tau: above("spec.aggregation.strategy.floor", &strategy.floor, 1e-3)?,
                second,
            }))
        };
        match strategy.kind {
            StrategyKind::FedAvg => Ok(Rule::Average),
            StrategyKind::FedAvgM => Ok(Rule::Momentum(Momentum { rate: rate(1.0)?, beta: momentum()? })),
            StrategyKind::FedAdam => adaptive(Second::Adam),
            StrategyKind::FedYogi => adaptive(Second::Yogi),
        }
    }

    /// The longest time for training.
    pub fn deadline(&self) -> Result<SignedDuration, ValueError> {
        values::duration("spec.rounds.deadline", &self.rounds.deadline)
    }

    /// The gate, if there is one.
    pub fn gate(&self) -> Result<Option<Gate>, ValueError> {
        let Some(gate) = &self.gate else { return Ok(None) };
        Ok(Some(Gate {
            min: values::decimal("spec.gate.min", &gate.min)?,
            per_site_min: values::decimal("spec.gate.perSiteMin", &gate.per_site_min)?,
            min_cases: gate.min_cases,
            quorum: self.rounds.quorum,
        }))
    }

    /// Updates are masked.
    pub fn is_masked(&self) -> bool {
        self.aggregation.secure.protocol == ProtocolKind::SecAgg
    }

    /// The specification of the sum that an attempt makes. Hub and hospital each make it from what they know
    /// themselves: a hub that plans another sum gets adverts for one that it does not run.
    ///
    /// # Errors
    /// A clip bound that is no number.
    pub fn sum_spec(&self, facts: &SumFacts<'_>) -> Result<RoundSpec, ValueError> {
        let secure = &self.aggregation.secure;
        let counted = secagg::Weighting::Examples { cap: EXAMPLES_CAP };
        let (purpose, clip, weighting, body) = match facts.kind {
            // One number, the mean Dice over cases and classes, weighted by cases: at most 1.
            TaskKind::Evaluate => (Purpose::Evaluate, EVALUATION_CLIP, counted, EVALUATION_ELEMENTS),
            TaskKind::Train | TaskKind::Init => {
                let weighting = match self.aggregation.weighting {
                    Weighting::Examples => counted,
                    Weighting::Equal => secagg::Weighting::Equal,
                };
                (Purpose::Train, self.clip()?, weighting, facts.parameters)
            }
        };
        let digest = |d: Digest| consilium_secagg::ids::Digest(*d.as_bytes());
        // Bounds of the schema: all three are at most 200.
        let small = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        Ok(RoundSpec {
            federation: facts.federation.to_owned(),
            study: format!("{}@{}", facts.study, facts.study_uid),
            round: u64::from(facts.round),
            purpose,
            subject: digest(facts.model),
            plan: digest(facts.spec_digest),
            schema: digest(facts.schema),
            roster: digest(facts.roster),
            capacity: small(facts.participants),
            clip,
            weighting,
            statistics: Vec::new(),
            body,
            colluders: small(secure.colluders),
            min_contributors: small(secure.min_contributors),
        })
    }

    /// The rules for a round, but for the roster and earlier sums, which change with the hospitals; `waited_for` are the hospitals that were left out too often.
    pub fn round_policy(&self, waited_for: BTreeSet<SiteName>) -> Result<RoundPolicy, ValueError> {
        self.clip()?;
        self.rule()?;
        Ok(RoundPolicy {
            quorum: self.rounds.quorum,
            min_contributors: self.aggregation.secure.min_contributors,
            colluders: self.aggregation.secure.colluders,
            roster: None,
            earlier: EarlierSums::default(),
            required: self.sites.iter().filter(|s| s.required).map(|s| s.name.clone()).collect(),
            waited_for,
            grace: values::duration("spec.rounds.straggler.grace", &self.rounds.straggler.grace)?,
            step_limit: values::duration("spec.rounds.stepLimit", &self.rounds.step_limit)?,
            max_attempts: 3,
            protocol: match self.aggregation.secure.protocol {
                ProtocolKind::SecAgg => Protocol::SecAgg,
                ProtocolKind::None => Protocol::None,
            },
            gate: self.gate()?,
            evaluation_limit: self.deadline()?,
            starting: false,
        })
    }
}

/// What a sum is about, beside the study's spec.
#[derive(Clone, Copy, Debug)]
pub struct SumFacts<'a> {
    /// Name of the federation, as the roster has it.
    pub federation: &'a str,
    /// The study.
    pub study: &'a StudyKey,
    /// Its UID.
    pub study_uid: &'a str,
    /// Number of the round.
    pub round: u32,
    /// Train: updates; Evaluate: the metric.
    pub kind: TaskKind,
    /// The base model, or the model evaluated.
    pub model: Digest,
    /// Digest of the study's spec.
    pub spec_digest: Digest,
    /// Digest of the tensor schema.
    pub schema: Digest,
    /// Digest of the roster.
    pub roster: Digest,
    /// Participants of the round: scales the ring.
    pub participants: u32,
    /// Parameters of the model.
    pub parameters: u64,
}

/// When a round that starts now must have trained.
pub fn training_deadline(spec: &FederatedStudySpec, now: Timestamp) -> Result<Timestamp, ValueError> {
    Ok(now.saturating_add(spec.deadline()?).unwrap_or(Timestamp::MAX))
}
