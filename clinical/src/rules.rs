//! What a rung of the ladder asks for, as data: written by clinicians in a plan for the federation, and by a hospital in
//! its own policy. Both must hold, so the stricter one does.

use consilium_federation::SiteName;
use consilium_federation::ladder::Stage;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::PlanError;
use crate::stats::Interval;
use crate::values::{Decimal, Metric, Name, Share};

/// What must hold before a model stands on a stage.
///
/// The evidence for a stage is what the model did on the stage *below it or higher*, in one window; so no rung can be
/// skipped, and a model that stands high keeps the evidence for the rungs below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub struct StageRule {
    /// The stage that is asked for; any but Shadow, which needs no evidence.
    pub stage: Stage,
    /// Cases with a result, at least.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub cases: u32,
    /// Patients with the finding, by usable truth, at least.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub positives: u32,
    /// Days (UTC) with at least one case, at least.
    #[schemars(range(min = 1, max = 3660))]
    pub days: u32,
    /// Share of the results that have usable truth, at least: of those where the model found something, and of those where
    /// it did not, each by itself. To check only what it found makes any model look sensitive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<Share>,
    /// Share of the cases in scope that failed, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<Share>,
    /// Seconds from a complete series to its result that 95 % of the results do not exceed, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_p95_seconds: Option<Decimal>,
    /// Of the reads of results, the share that was signed before the result was visible, at least. The worker holds back
    /// as many, chosen by the case's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blind: Option<Share>,
    /// Bounds on figures.
    #[schemars(length(min = 1, max = 20), extend("x-kubernetes-list-type" = "atomic"))]
    pub metrics: Vec<MetricRule>,
    /// Groups that must suffice in each metric of `WorstSubgroup`. Other groups must only not fail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "atomic"))]
    pub subgroups: Vec<Subgroups>,
    /// Which hospitals must speak for each metric of `WorstSite`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sites: Option<Sites>,
    /// Roles that must be among the approvals, beside what the hospital's policy requires.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), extend("x-kubernetes-list-type" = "atomic"))]
    pub roles: Vec<Name>,
    /// How many days after its window's end the evidence counts.
    #[schemars(range(min = 1, max = 3660))]
    pub valid_days: u32,
}

/// A bound on one figure. Not the figure must hold it but the end of its interval: a figure that is merely good so far
/// does not suffice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub struct MetricRule {
    /// What is measured.
    pub metric: Metric,
    /// Where it must hold.
    pub of: Of,
    /// The interval's lower end must not be below. This or `ceiling`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Decimal>,
    /// The interval's upper end must not be above. This or `floor`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<Decimal>,
}

/// Where a bound must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Of {
    /// In this hospital.
    Site,
    /// In this hospital, and in no other may it fail; see [`Sites`].
    WorstSite,
    /// In each subgroup of this hospital; see [`Subgroups`].
    WorstSubgroup,
    /// In the sum over the hospitals. The sum is made at the hub: this bound is one more that must hold, and no other
    /// hangs on it.
    Global,
}

/// Groups of one dimension, for example `sex: F, M`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub struct Subgroups {
    /// The dimension.
    pub dimension: Name,
    /// Its groups that must suffice.
    #[schemars(length(min = 1, max = 20), extend("x-kubernetes-list-type" = "atomic"))]
    pub groups: Vec<Name>,
}

/// Whose verdicts a worst hospital is looked for among.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
pub struct Sites {
    /// Hospitals in which the bound must hold, this one among them, at least.
    #[schemars(range(min = 1, max = 200))]
    pub pass: u32,
    /// Hospitals that must have spoken, whatever they say short of Fail. A hub can keep back the verdict of a hospital
    /// that is not named here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "atomic"))]
    pub heard: Vec<SiteName>,
}

/// What evidence says of a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Outcome {
    /// The evidence shows that it does not hold.
    Fail,
    /// The evidence does not suffice to say.
    Insufficient,
    /// The evidence shows that it holds.
    Pass,
}

impl Outcome {
    /// The name as it is signed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fail => "Fail",
            Self::Insufficient => "Insufficient",
            Self::Pass => "Pass",
        }
    }
}

impl MetricRule {
    /// Does an interval show that the bound holds?
    pub fn judge(&self, interval: Interval) -> Outcome {
        let low = self.floor.map(Decimal::value);
        let high = self.ceiling.map(Decimal::value);
        if low.is_some_and(|floor| interval.upper < floor) || high.is_some_and(|ceiling| interval.lower > ceiling) {
            return Outcome::Fail;
        }
        // Written so that an end that is no number shows nothing.
        let holds = low.is_none_or(|floor| interval.lower >= floor) && high.is_none_or(|c| interval.upper <= c);
        if holds && (low.is_some() || high.is_some()) { Outcome::Pass } else { Outcome::Insufficient }
    }

    /// The bound in words, for example `sensitivity ≥ 0.9`.
    pub fn words(&self) -> String {
        let bound = |sign: &str, value: Option<Decimal>| value.map(|v| format!(" {sign} {v}")).unwrap_or_default();
        format!("{}{}{}", self.metric, bound("≥", self.floor), bound("≤", self.ceiling))
    }

    /// Is `self` at least as strict as `lower`, which bounds the same figure?
    fn at_least(&self, lower: &Self) -> bool {
        let floor = lower.floor.is_none_or(|low| self.floor.is_some_and(|floor| floor >= low));
        floor && lower.ceiling.is_none_or(|high| self.ceiling.is_some_and(|ceiling| ceiling <= high))
    }
}

fn twice<T: PartialEq>(items: &[T]) -> Option<&T> {
    items.iter().enumerate().find(|(n, item)| items[..*n].contains(item)).map(|(_, item)| item)
}

impl StageRule {
    fn check(&self, at: &str) -> Result<(), PlanError> {
        let fault = |field: &str, problem: String| Err(PlanError::new(format!("{at}.{field}"), problem));
        if self.stage == Stage::Shadow {
            return fault("stage", "Shadow needs no evidence: leave this rule out".into());
        }
        for (field, value, most) in [
            ("cases", self.cases, 10_000_000),
            ("positives", self.positives, 10_000_000),
            ("days", self.days, 3660),
            ("validDays", self.valid_days, 3660),
        ] {
            if !(1..=most).contains(&value) {
                return fault(field, format!("is {value}: write a number from 1 to {most}"));
            }
        }
        if self.metrics.is_empty() || self.metrics.len() > 20 {
            return fault("metrics", format!("has {} entries: write from 1 to 20", self.metrics.len()));
        }
        for (n, rule) in self.metrics.iter().enumerate() {
            if rule.floor.is_some() == rule.ceiling.is_some() {
                return fault(&format!("metrics[{n}]"), "needs a floor or a ceiling, and not both".into());
            }
            let same = |other: &&MetricRule| (&other.metric, other.of) == (&rule.metric, rule.of);
            if self.metrics[..n].iter().any(|other| same(&other)) {
                return fault(&format!("metrics[{n}]"), format!("{} of {:?} stands twice", rule.metric, rule.of));
            }
        }
        let asks = |of: Of| self.metrics.iter().any(|rule| rule.of == of);
        if asks(Of::WorstSite) != self.sites.is_some() {
            return fault("sites", "goes with metrics of WorstSite: write both or neither".into());
        }
        if asks(Of::WorstSubgroup) == self.subgroups.is_empty() {
            return fault("subgroups", "goes with metrics of WorstSubgroup: write both or neither".into());
        }
        self.check_lists(&fault)
    }

    fn check_lists(&self, fault: &impl Fn(&str, String) -> Result<(), PlanError>) -> Result<(), PlanError> {
        let dimensions: Vec<&Name> = self.subgroups.iter().map(|s| &s.dimension).collect();
        if let Some(name) = twice(&dimensions) {
            return fault("subgroups", format!("names the dimension {name} twice"));
        }
        if dimensions.len() > 10 {
            return fault("subgroups", format!("has {} dimensions: write at most 10", dimensions.len()));
        }
        for subgroup in &self.subgroups {
            let (n, name) = (subgroup.groups.len(), &subgroup.dimension);
            if n == 0 || n > 20 || twice(&subgroup.groups).is_some() {
                return fault("subgroups", format!("{name} has {n} groups: write from 1 to 20, each once"));
            }
        }
        if let Some(sites) = &self.sites {
            if sites.pass == 0 || sites.pass > 200 {
                return fault("sites.pass", format!("is {}: write a number from 1 to 200", sites.pass));
            }
            if sites.heard.len() > 200 || twice(&sites.heard).is_some() {
                return fault("sites.heard", "names a hospital twice, or more than 200".into());
            }
        }
        if self.roles.len() > 10 || twice(&self.roles).is_some() {
            return fault("roles", "names a role twice, or more than 10".into());
        }
        Ok(())
    }

    /// Nothing that the rung below asks may be asked less of the next.
    fn stricter(&self, below: &Self, at: &str) -> Result<(), PlanError> {
        let (stage, lower) = (self.stage, below.stage);
        let fault = |field: &str, what: String| {
            Err(PlanError::new(
                format!("{at}.{field}"),
                format!("{what} is asked for {lower} and less for {stage}: a higher stage needs at least as much"),
            ))
        };
        for rule in &below.metrics {
            let holds = |r: &MetricRule| r.metric == rule.metric && r.of == rule.of && r.at_least(rule);
            if !self.metrics.iter().any(holds) {
                return fault("metrics", format!("{} of {:?}", rule.words(), rule.of));
            }
        }
        if below.coverage > self.coverage {
            return fault("coverage", "a coverage".into());
        }
        if below.max_failures.is_some_and(|low| self.max_failures.is_none_or(|high| high > low)) {
            return fault("maxFailures", "a bound on failures".into());
        }
        Ok(())
    }
}

/// Refuses a list of rules that no one can climb or that gets looser upwards. `at` is the field that holds it.
///
/// # Errors
/// The field, what it says, the rule and the way out.
pub fn check(rules: &[StageRule], at: &str) -> Result<(), PlanError> {
    for (n, rule) in rules.iter().enumerate() {
        let here = format!("{at}[{n}]");
        rule.check(&here)?;
        let expected = Stage::ALL.get(n + 1);
        if expected != Some(&rule.stage) {
            let way = expected.map_or("there is no further stage".to_owned(), |s| format!("this one must be for {s}"));
            let problem = format!("is {}: rules go rung by rung from SafetyNet up, and {way}", rule.stage);
            return Err(PlanError::new(format!("{here}.stage"), problem));
        }
        if let Some(below) = n.checked_sub(1).and_then(|n| rules.get(n)) {
            rule.stricter(below, &here)?;
        }
    }
    Ok(())
}

/// The same for a hospital's own rules, which may leave stages out and speak of this hospital only: what other hospitals
/// show is judged by the plan that they share.
///
/// # Errors
/// As [`check`].
pub fn check_own(rules: &[StageRule], at: &str) -> Result<(), PlanError> {
    for (n, rule) in rules.iter().enumerate() {
        let here = format!("{at}[{n}]");
        rule.check(&here)?;
        if let Some(m) = rule.metrics.iter().position(|m| matches!(m.of, Of::Global | Of::WorstSite)) {
            let problem = "is of other hospitals: write it into the plan, or use Site or WorstSubgroup here";
            return Err(PlanError::new(format!("{here}.metrics[{m}].of"), problem.into()));
        }
        if rules[..n].iter().any(|other| other.stage >= rule.stage) {
            let problem = format!("is {}: write each stage once, lowest first", rule.stage);
            return Err(PlanError::new(format!("{here}.stage"), problem));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(floor: &str) -> MetricRule {
        let floor = Some(floor.parse().unwrap());
        MetricRule { metric: Metric::Sensitivity, of: Of::Site, floor, ceiling: None }
    }

    /// A figure that is good so far on few cases is no evidence, and neither is an interval that is no number.
    #[test]
    fn the_end_of_the_interval_holds_the_bound_and_not_the_figure() {
        let interval = |lower, upper| Interval { lower, upper };
        for (seen, expected) in [
            (interval(0.9, 0.97), Outcome::Pass),
            (interval(0.899, 0.97), Outcome::Insufficient),
            (interval(0.8, 0.899), Outcome::Fail),
            (interval(0.8, 0.9), Outcome::Insufficient),
            (interval(f64::NAN, f64::NAN), Outcome::Insufficient),
            (Interval::UNKNOWN_SHARE, Outcome::Insufficient),
        ] {
            assert_eq!(rule("0.9").judge(seen), expected, "{seen:?}");
        }
        let ceiling = MetricRule { floor: None, ceiling: Some("5".parse().unwrap()), ..rule("0") };
        assert_eq!(ceiling.judge(interval(4.0, 5.0)), Outcome::Pass);
        assert_eq!(ceiling.judge(interval(4.0, 5.1)), Outcome::Insufficient);
        assert_eq!(ceiling.judge(interval(5.1, 6.0)), Outcome::Fail);
        assert_eq!(ceiling.words(), "sensitivity ≤ 5");
    }
}
