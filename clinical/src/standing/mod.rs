//! On which stage a model stands in a hospital, why, and what the next one lacks.
//!
//! [`standing`] is total: whatever is missing, expired, forged or absurd gives a lower stage, never an error. Nothing but
//! the hospital's policy and signatures by keys in it raise; anyone may lower: the hub by what it asks, a hazard, an
//! expiry, drift, a lost lease, a lost volume. It has no memory: the rung that a model stands on is the highest up to
//! which every rung holds *now*, and the evidence for a rung is what the model did on the rung below it or higher. So no
//! rung is skipped, and a model that falls stands again when what made it fall is gone, if everything else still holds.

mod lack;
mod line;
mod rung;
mod words;

use std::collections::BTreeMap;

use consilium_federation::approval::Requirement;
use consilium_federation::ladder::Stage;
use consilium_federation::{Digest, SiteName, StudyKey};
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::lack::{Counted, Lack, MetricLack};
pub use self::line::{LineStanding, Promoted, arbitrate};
pub use self::rung::{GlobalFigures, own_verdict};
pub use self::words::explain;
use crate::approval::{Presented, Valid};
use crate::drift::{self, Drift};
use crate::evidence::{Evidence, Subject, Summary};
use crate::hazards::HazardLog;
use crate::plan::{ClinicalPlan, Fall, above, below};
use crate::rules::StageRule;
use crate::values::Name;
use crate::verdict::{self, Heard, RosterKeys, SignedVerdict};

/// What a hospital's policy says of releases.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// Approvals by stage. A stage without an entry is denied, and with it all above.
    pub require: &'a [Requirement],
    /// The ceiling, which no signature lifts; without one no model is served.
    pub max_stage: Option<Stage>,
    /// The hospital's own rules, which must hold beside the plan's.
    pub rules: &'a [StageRule],
    /// What becomes of a model whose approvals have all expired.
    pub on_expiry: OnExpiry,
}

/// What becomes of a model whose approvals have expired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum OnExpiry {
    /// It goes on in Shadow, where nobody sees its answers: approvals that have expired count for Shadow alone.
    #[default]
    Shadow,
    /// It is not served.
    Withdraw,
}

/// Everything that the standing of a model depends on.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// What the promotion asks for.
    pub asked: Stage,
    /// Of what, and where.
    pub subject: &'a Subject,
    /// The model line: the study.
    pub line: &'a StudyKey,
    /// The plan that the promotion names, fetched by its digest. Without one nothing stands above Shadow.
    pub plan: Option<&'a ClinicalPlan>,
    /// The hospital's policy; none while there is none that can be read.
    pub policy: Option<Policy<'a>>,
    /// The approvals of the promotion and what they are held against.
    pub presented: Presented<'a>,
    /// This hospital's evidence; none when it is lost or there never was any.
    pub evidence: Option<&'a Evidence>,
    /// Signed verdicts of other hospitals, as the hub hands them on.
    pub verdicts: &'a [SignedVerdict],
    /// Keys to verify them by.
    pub roster: &'a RosterKeys,
    /// Figures over all hospitals, as the hub says.
    pub global: Option<&'a GlobalFigures>,
    /// All hazards ever seen here.
    pub hazards: &'a HazardLog,
    /// What is seen of each thing that the plan watches; none when nothing was measured. What is not known counts as drift.
    pub drift: Option<&'a BTreeMap<Name, Drift>>,
    /// Until when the answer may be acted on without asking again. The agent gives the end of the lease that it is about
    /// to sign, a holder the end of the one that it has. None, or past: Shadow.
    pub lease: Option<Timestamp>,
    /// The time.
    pub now: Timestamp,
}

/// Where a model stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// What the promotion asks for.
    pub asked: Stage,
    /// The stage; none: it is not served.
    pub effective: Option<Stage>,
    /// Why no higher, short of what is asked. Empty where the model stands on what is asked.
    pub because: Vec<Lack>,
    /// The next rung up.
    pub next: Option<Stage>,
    /// All that the next rung lacks, with its numbers.
    pub missing: Vec<Lack>,
    /// The earliest time at which `effective` changes by itself, always downwards. No lease may go beyond it.
    pub until: Option<Timestamp>,
    /// Approvals that count for nothing, and why.
    pub faults: Vec<String>,
}

/// Says where the model stands.
pub fn standing(inputs: &Inputs<'_>) -> Standing {
    let judge = Judge::new(inputs);
    let effective = judge.effective(inputs.now);
    let next = above(effective);
    let missing = next.map(|stage| judge.missing(stage, inputs.now)).unwrap_or_default();
    let because = if effective >= Some(inputs.asked) { Vec::new() } else { missing.clone() };
    let until = judge.moments().into_iter().filter(|at| *at > inputs.now).find(|at| judge.effective(*at) != effective);
    Standing { asked: inputs.asked, effective, because, next, missing, until, faults: judge.faults }
}

/// The inputs with every signature verified once: what is left depends on the time alone.
struct Judge<'a> {
    inputs: &'a Inputs<'a>,
    /// The plan, or why it cannot be used.
    plan: Result<&'a ClinicalPlan, String>,
    approvals: Vec<Valid>,
    faults: Vec<String>,
    heard: BTreeMap<Stage, BTreeMap<SiteName, Heard>>,
    evidence: Option<&'a Evidence>,
}

impl<'a> Judge<'a> {
    fn new(inputs: &'a Inputs<'a>) -> Self {
        let plan = usable_plan(inputs);
        let digest: Option<Digest> = plan.as_ref().ok().map(|plan| plan.digest());
        let (approvals, faults) = inputs.presented.verify(inputs.subject, digest);
        let of = |plan: Digest, stage| verdict::of_others(inputs.verdicts, inputs.roster, inputs.subject, plan, stage);
        let rules = plan.as_ref().map(|plan| plan.rules.as_slice()).unwrap_or_default();
        let with_sites = rules.iter().filter(|rule| rule.sites.is_some()).map(|rule| rule.stage);
        let heard = with_sites.filter_map(|stage| Some((stage, of(digest?, stage)))).collect();
        let evidence = inputs.evidence.filter(|evidence| evidence.subject == *inputs.subject);
        Self { inputs, plan, approvals, faults, heard, evidence }
    }

    /// The stage at a time.
    fn effective(&self, now: Timestamp) -> Option<Stage> {
        let policy = self.inputs.policy?;
        let ceiling = self.inputs.asked.min(policy.max_stage?);
        let rungs = Stage::ALL.into_iter().take_while(|stage| *stage <= ceiling);
        let climbed = rungs.take_while(|stage| self.rung(&policy, *stage, now).is_empty()).last();
        let falls = self.falls().into_iter().map(|(_, fall)| fall);
        let lease = (!self.leased(now)).then_some(Fall::Shadow);
        falls.chain(lease).map(|fall| fall.from(climbed)).chain([climbed]).min().flatten()
    }

    fn leased(&self, now: Timestamp) -> bool {
        self.inputs.lease.is_some_and(|end| end > now)
    }

    /// What takes trust away, whatever stage it is.
    fn falls(&self) -> Vec<(Lack, Fall)> {
        let inputs = self.inputs;
        let least = self.plan.as_ref().map_or(Fall::Watch, |plan| plan.on_hazard);
        let open = inputs.hazards.open(inputs.subject, inputs.line, least);
        let mut falls: Vec<(Lack, Fall)> =
            open.map(|(origin, id, fall)| (Lack::Hazard(origin, id.clone()), fall)).collect();
        if let Some(rule) = self.plan.as_ref().ok().and_then(|plan| plan.drift.as_ref()) {
            let none = BTreeMap::new();
            // What is not known lowers as far as drift that is seen: further, and seeing it would raise; less, and losing
            // the measure would.
            falls.extend(drift::watched(rule, inputs.drift.unwrap_or(&none)).filter_map(|(name, seen)| match seen {
                Some(Drift::Steady) => None,
                Some(Drift::Seen) => Some((Lack::Drift(name.clone()), rule.then)),
                Some(Drift::Unknown) | None => Some((Lack::Unwatched(name.clone()), rule.then)),
            }));
        }
        falls
    }

    /// All that stands between the model and a stage.
    fn missing(&self, stage: Stage, now: Timestamp) -> Vec<Lack> {
        let Some(policy) = self.inputs.policy else { return vec![Lack::Policy] };
        let mut lacks = Vec::new();
        if stage > self.inputs.asked {
            lacks.push(Lack::Asked(self.inputs.asked));
        }
        if policy.max_stage.is_none_or(|max| stage > max) {
            lacks.push(Lack::Ceiling(policy.max_stage));
        }
        for lower in Stage::ALL.into_iter().take_while(|lower| *lower <= stage) {
            let rung = self.rung(&policy, lower, now);
            lacks.extend(rung.into_iter().filter(|lack| !lacks.contains(lack)).collect::<Vec<_>>());
        }
        // A fall stands in the way of a stage if from there it would go lower.
        let held = self.falls().into_iter().filter(|(_, fall)| fall.from(Some(stage)) < Some(stage));
        lacks.extend(held.map(|(lack, _)| lack));
        if stage > Stage::Shadow && !self.leased(now) {
            lacks.push(Lack::Lease);
        }
        lacks
    }

    /// What one rung lacks by itself.
    fn rung(&self, policy: &Policy<'_>, stage: Stage, now: Timestamp) -> Vec<Lack> {
        let mut lacks = Vec::new();
        let mut roles: Vec<&str> = Vec::new();
        if stage > Stage::Shadow {
            let rule = self.rule(stage, now, &mut lacks);
            let own = policy.rules.iter().find(|rule| rule.stage == stage);
            for rule in rule.into_iter().chain(own) {
                roles.extend(rule.roles.iter().map(Name::as_str));
                lacks
                    .extend(self.shown(rule, now).into_iter().filter(|lack| !lacks.contains(lack)).collect::<Vec<_>>());
            }
        }
        lacks.extend(self.signatures(policy, stage, roles, now));
        lacks
    }

    /// The plan's rule for a stage, or what is in its way.
    fn rule(&self, stage: Stage, now: Timestamp, lacks: &mut Vec<Lack>) -> Option<&'a StageRule> {
        let plan = match &self.plan {
            Ok(plan) => *plan,
            Err(why) => {
                lacks.push(Lack::Plan(why.clone()));
                return None;
            }
        };
        if plan.expires <= now {
            lacks.push(Lack::Plan(format!("this one ended at {}", plan.expires)));
        }
        let rule = plan.rule(stage);
        if rule.is_none() {
            lacks.push(Lack::Rule);
        }
        rule
    }

    /// What the evidence does not show of a rule.
    fn shown(&self, rule: &StageRule, now: Timestamp) -> Vec<Lack> {
        let none = BTreeMap::new();
        let others = self.heard.get(&rule.stage).unwrap_or(&none);
        let mut lacks: Vec<Lack> = rung::silent(rule, &self.inputs.subject.hospital, others, now).collect();
        let lower = below(rule.stage).unwrap_or(Stage::Shadow);
        let Some(here) = self.evidence.and_then(|evidence| evidence.since.get(&lower)) else {
            lacks.push(Lack::Evidence);
            let seen = rung::Seen { here: &Summary::default(), others, global: self.inputs.global, now };
            lacks.extend(rung::lacks(rule, &seen));
            return lacks;
        };
        let end = self.ends(rule);
        if end.is_none_or(|end| end <= now) {
            lacks.push(Lack::EvidenceEnded(end.unwrap_or(Timestamp::MIN)));
        }
        lacks.extend(rung::lacks(rule, &rung::Seen { here, others, global: self.inputs.global, now }));
        lacks
    }

    /// When the evidence stops counting for a rule.
    fn ends(&self, rule: &StageRule) -> Option<Timestamp> {
        let lasts = SignedDuration::from_hours(24 * i64::from(rule.valid_days));
        self.evidence.map(|evidence| evidence.window.to.checked_add(lasts).unwrap_or(Timestamp::MAX))
    }

    /// What the approvals lack: those for this stage or a higher one, by different keys, in all roles.
    fn signatures<'b>(
        &'b self,
        policy: &Policy<'b>,
        stage: Stage,
        mut roles: Vec<&'b str>,
        now: Timestamp,
    ) -> Vec<Lack> {
        // Whoever names the lowest stage that the hospital uses, and not Shadow, asks no more of Shadow than of that.
        let of = |stage: Stage| policy.require.iter().find(|require| require.stage == stage);
        let least = || policy.require.iter().min_by_key(|require| require.stage).filter(|_| stage == Stage::Shadow);
        let Some(require) = of(stage).or_else(least) else {
            return vec![Lack::Requirement(stage)];
        };
        let outlives = stage == Stage::Shadow && policy.on_expiry == OnExpiry::Shadow;
        let counts = |valid: &&Valid| valid.stage >= stage && (valid.expiry > now || outlives);
        let valid: Vec<&Valid> = self.approvals.iter().filter(counts).collect();
        let mut keys: Vec<&str> = valid.iter().map(|valid| valid.key_id.as_str()).collect();
        keys.sort_unstable();
        keys.dedup();
        let have = u32::try_from(keys.len()).unwrap_or(u32::MAX);
        roles.extend(require.roles.iter().map(String::as_str));
        roles.sort_unstable();
        roles.dedup();
        let short = (have < require.approvals).then_some(Lack::Approvals { have, need: require.approvals });
        let missing = roles.into_iter().filter(|role| !valid.iter().any(|valid| valid.role == *role));
        let mut lacks: Vec<Lack> = short.into_iter().chain(missing.map(|role| Lack::Role(role.to_owned()))).collect();
        if !lacks.is_empty() {
            let ended = self.approvals.iter().filter(|valid| valid.stage >= stage && !counts(valid));
            let ended = ended.filter(|valid| !keys.contains(&valid.key_id.as_str()));
            lacks.extend(ended.map(|valid| Lack::Ended(valid.key_id.clone(), valid.expiry)));
        }
        lacks
    }

    /// Every moment at which something ends, earliest first.
    fn moments(&self) -> Vec<Timestamp> {
        let mut moments: Vec<Timestamp> = self.approvals.iter().map(|valid| valid.expiry).collect();
        moments.extend(self.heard.values().flat_map(BTreeMap::values).map(|heard| heard.expiry));
        moments.extend(self.inputs.global.map(|global| global.until));
        moments.extend(self.inputs.lease);
        let own = self.inputs.policy.map(|policy| policy.rules).unwrap_or_default();
        if let Ok(plan) = &self.plan {
            moments.push(plan.expires);
            moments.extend(plan.rules.iter().filter_map(|rule| self.ends(rule)));
        }
        moments.extend(own.iter().filter_map(|rule| self.ends(rule)));
        moments.sort_unstable();
        moments.dedup();
        moments
    }
}

fn usable_plan<'a>(inputs: &Inputs<'a>) -> Result<&'a ClinicalPlan, String> {
    let plan = inputs.plan.ok_or("the promotion names none")?;
    plan.check().map_err(|error| error.to_string())?;
    if plan.line != *inputs.line {
        return Err(format!("the one that the promotion names is for the models of {}", plan.line));
    }
    Ok(plan)
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
