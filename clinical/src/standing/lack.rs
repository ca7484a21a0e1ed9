//! What a rung lacks, with its numbers, and in words.

use std::fmt;

use consilium_federation::SiteName;
use consilium_federation::ladder::Stage;
use jiff::Timestamp;

use crate::evidence::Figure;
use crate::hazards::Origin;
use crate::rules::{MetricRule, Of, Outcome};
use crate::stats;
use crate::values::{Decimal, Metric, Name, Share};

/// One thing that stands between a model and a stage.
#[derive(Clone, Debug, PartialEq)]
pub enum Lack {
    /// The hospital has no policy that can be read.
    Policy,
    /// The promotion asks for less.
    Asked(Stage),
    /// The hospital's ceiling.
    Ceiling(Option<Stage>),
    /// Another model of the line acts here.
    LineTaken,
    /// There is no plan to climb by; why.
    Plan(String),
    /// The plan has no rule for the stage.
    Rule,
    /// The hospital's policy says nothing about the stage.
    Requirement(Stage),
    /// Signatures.
    Approvals {
        /// Valid ones.
        have: u32,
        /// By policy.
        need: u32,
    },
    /// A signature in this role.
    Role(String),
    /// A signature of this key has ended, when.
    Ended(String, Timestamp),
    /// There is no evidence of this pipeline here.
    Evidence,
    /// The evidence is too old.
    EvidenceEnded(Timestamp),
    /// A count is too low.
    Count {
        /// Of what.
        what: Counted,
        /// Seen.
        have: u32,
        /// Needed.
        need: u32,
    },
    /// A share is too low or too high; none where no case speaks for it.
    Share {
        /// Of what.
        what: &'static str,
        /// Seen.
        have: Option<f64>,
        /// `at least` or `at most`.
        bound: &'static str,
        /// By the rule.
        need: Share,
    },
    /// Results come too late.
    Seconds {
        /// The 95 % point; none without results.
        have: Option<f64>,
        /// By the rule.
        most: Decimal,
    },
    /// A bound is not shown to hold.
    Metric(Box<MetricLack>),
    /// Too few hospitals in which a bound holds.
    Sites {
        /// The bound.
        words: String,
        /// Hospitals that pass.
        have: u32,
        /// Needed.
        need: u32,
    },
    /// A bound fails in another hospital.
    SiteFails(String, SiteName),
    /// A hospital that must be heard has no verdict that counts.
    SiteSilent(SiteName),
    /// What the plan watches was not measured, or on too few cases.
    Unwatched(Name),
    /// A hazard is open.
    Hazard(Origin, Name),
    /// Drift is seen.
    Drift(Name),
    /// The lease has ended, or there is none.
    Lease,
}

/// What a rule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Cases with a result.
    Cases,
    /// Patients with the finding.
    Positives,
    /// Days with a case.
    Days,
}

/// `86 more positives (14 of 100)`.
fn more(f: &mut fmt::Formatter<'_>, one: &str, many: &str, have: u32, need: u32) -> fmt::Result {
    let lacking = need.saturating_sub(have);
    write!(f, "{lacking} more {} ({have} of {need})", if lacking == 1 { one } else { many })
}

/// A bound that is not shown to hold.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricLack {
    /// The bound, and where it is to hold.
    pub rule: MetricRule,
    /// In which group, for a subgroup.
    pub group: Option<(Name, Name)>,
    /// What the evidence says.
    pub outcome: Outcome,
    /// The figure, if any case speaks for it.
    pub seen: Option<Figure>,
}

impl MetricLack {
    /// So many more independent trials would do if the share stayed as it is; none of a mean, of a bound that does not
    /// hold, and where none would.
    pub fn more(&self) -> Option<u32> {
        let share = !matches!(self.rule.metric, Metric::Mean(_));
        let seen = self.seen.filter(|_| share && self.outcome == Outcome::Insufficient)?;
        let holds = |interval| self.rule.judge(interval) == Outcome::Pass;
        stats::trials_lacking(seen.estimate, seen.effective, holds)
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy => f.write_str("a SitePolicy that can be read"),
            Self::Asked(stage) => write!(f, "a promotion that asks for it (it asks for {stage})"),
            Self::Ceiling(Some(stage)) => write!(f, "a higher releases.maxStage in the SitePolicy (it is {stage})"),
            Self::Ceiling(None) => f.write_str("a releases.maxStage in the SitePolicy (without it no model is served)"),
            Self::LineTaken => {
                f.write_str("that no other model of the line acts here: hand over by asking for Shadow there")
            }
            Self::Plan(why) => write!(f, "a clinical plan that holds: {why}"),
            Self::Rule => {
                f.write_str("a rule for the stage in the clinical plan, so it cannot be reached by this plan")
            }
            Self::Requirement(stage) => write!(f, "an entry for {stage} in releases.require of the SitePolicy"),
            Self::Approvals { have, need } => more(f, "valid signature", "valid signatures", *have, *need),
            Self::Role(role) => write!(f, "a signature as {role}"),
            Self::Ended(key, at) => write!(f, "a new signature by {key}, whose last one expired at {at}"),
            Self::Evidence => f.write_str("evidence: no case of this pipeline is kept here"),
            Self::EvidenceEnded(at) => write!(f, "newer evidence: what there is counted until {at}"),
            Self::Count { what, have, need } => match what {
                Counted::Cases => more(f, "case with a result", "cases with a result", *have, *need),
                Counted::Positives => more(f, "positive", "positives", *have, *need),
                Counted::Days => more(f, "day with cases", "days with cases", *have, *need),
            },
            Self::Share { what, have: Some(have), bound, need } => {
                write!(f, "{what} of {bound} {} (it is {})", percent(need.value()), percent(*have))
            }
            Self::Share { what, have: None, bound, need } => {
                write!(f, "{what} of {bound} {} (not one case speaks for it)", percent(need.value()))
            }
            Self::Seconds { have: Some(have), most } => {
                write!(f, "results within {most} s in 95 % of cases (it is {have:.0} s)")
            }
            Self::Seconds { have: None, most } => {
                write!(f, "results within {most} s in 95 % of cases (there are none)")
            }
            Self::Metric(lack) => lack.fmt(f),
            Self::Sites { words, have, need } => {
                more(f, &format!("hospital in which {words}"), &format!("hospitals in which {words}"), *have, *need)
            }
            Self::SiteFails(words, site) => write!(f, "{words} in {site}, whose evidence shows that it does not hold"),
            Self::SiteSilent(site) => write!(f, "a signed verdict of {site} that counts"),
            Self::Unwatched(name) => write!(f, "a measure of the drift of {name}"),
            Self::Hazard(origin, id) => {
                let whose = if *origin == Origin::Hub { "hub" } else { "hospital" };
                write!(f, "the {whose}'s hazard {id} closed")
            }
            Self::Drift(name) => write!(f, "an end of the drift of {name}"),
            Self::Lease => f.write_str("a lease from the hospital's agent"),
        }
    }
}

impl fmt::Display for MetricLack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match (&self.group, self.rule.of) {
            (Some((dimension, group)), _) => format!(" for {dimension} {group}"),
            (None, Of::Global) => " over all hospitals".to_owned(),
            (None, Of::Site | Of::WorstSite | Of::WorstSubgroup) => String::new(),
        };
        write!(f, "{}{place} with 95 % confidence", self.rule.words())?;
        let Some(Figure { estimate, effective, interval }) = &self.seen else {
            return f.write_str(" (not one case speaks for it)");
        };
        let (low, high) = (interval.lower, interval.upper);
        write!(f, " (it is {estimate:.3}, from {low:.3} to {high:.3}, on {effective:.0} independent ones")?;
        match (self.outcome, self.more()) {
            (Outcome::Fail, _) => f.write_str(": it does not hold)"),
            (_, Some(more)) => write!(f, ": about {more} more would do if it stayed so)"),
            (_, None) => f.write_str(")"),
        }
    }
}
