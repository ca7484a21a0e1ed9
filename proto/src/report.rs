//! Facts on the wire.

use std::collections::BTreeSet;

use consilium_federation::gate::{CaseSums, Vote};
use consilium_federation::ladder::Stage;
use consilium_federation::report::{DeployReport, Evaluation, LedgerEnd, Report, RolloutReason, RoundReport};
use consilium_federation::round::SiteReason;
use consilium_federation::task::{ClassScore, ScoreFile, TaskKind};
use prost::Message as _;

use crate::text::{WireError, digests, optional, read, spell, uid};
use crate::v1;

/// Cases that one hospital's evaluation may have: more than any archive holds.
const MAX_CASES: u32 = 100_000_000;

/// Characters of a message.
const MAX_WORDS: usize = 300;

/// Rounds and deployments that one report may list.
const MAX_ENTRIES: usize = 10_000;

impl From<&Report> for v1::ReportRequest {
    fn from(r: &Report) -> Self {
        let deployment = |d: &DeployReport| v1::DeployReport {
            uid: d.uid.clone(),
            reason: spell(d.reason),
            serving: d.serving.map(|s| s.to_string()).unwrap_or_default(),
            message: d.message.clone().unwrap_or_default(),
            stage: d.stage.map(spell).unwrap_or_default(),
        };
        Self {
            hub_epoch: r.hub_epoch.clone(),
            revision: r.revision,
            agent_version: r.agent_version.clone(),
            rounds: r.rounds.iter().map(Into::into).collect(),
            deployments: r.deployments.iter().map(deployment).collect(),
            rosters: r.rosters.iter().map(ToString::to_string).collect(),
            ledger: r.ledger.as_ref().map(Into::into),
            agent_time: String::new(),
        }
    }
}

impl From<&LedgerEnd> for v1::LedgerEnd {
    fn from(end: &LedgerEnd) -> Self {
        Self { entries: end.entries, head: end.head.to_string() }
    }
}

impl TryFrom<v1::LedgerEnd> for LedgerEnd {
    type Error = WireError;
    fn try_from(end: v1::LedgerEnd) -> Result<Self, WireError> {
        Ok(Self { entries: end.entries, head: read("ledger.head", &end.head)? })
    }
}

impl From<&RoundReport> for v1::RoundReport {
    fn from(r: &RoundReport) -> Self {
        Self {
            uid: r.uid.clone(),
            kind: spell(r.kind),
            reason: spell(r.reason),
            message: r.message.clone().unwrap_or_default(),
            evaluation: r.evaluation.as_ref().map(Into::into),
        }
    }
}

impl From<&Evaluation> for v1::Evaluation {
    fn from(e: &Evaluation) -> Self {
        let class =
            |c: &ClassScore| v1::ClassScore { label: c.label, dice: c.dice, hd95_mm: c.hd95_mm, assd_mm: c.assd_mm };
        let score = |s: &ScoreFile| v1::Score { cases: s.cases, classes: s.classes.iter().map(class).collect() };
        Self {
            vote: spell(e.vote),
            sums: e.sums.map(|s| v1::Sums { cases: s.cases, dice: s.dice }),
            published: e.published.as_ref().map(score),
        }
    }
}

/// What a report says, as bytes on the wire: all but the ledger's end and the time of day, which differ in each.
pub fn said(report: &Report) -> Vec<u8> {
    v1::ReportRequest { ledger: None, ..report.into() }.encode_to_vec()
}

/// Reads a report; answers with it how many words in it were not understood. An agent may be a version ahead: a reason
/// that is not known here is one of waiting ([`SiteReason::Offered`], [`RolloutReason::RollingOut`]), so that the part
/// still counts as listed; a part of a kind that is not known, and a vote, are left out.
///
/// # Errors
/// What no version would write. Nothing of the report is used.
pub fn read_report(mut r: v1::ReportRequest) -> Result<(Report, usize), WireError> {
    let mut unknown = 0;
    let known = |kind: &str| read::<TaskKind>("rounds.kind", kind).is_ok();
    let entries = r.rounds.len();
    if entries <= MAX_ENTRIES {
        r.rounds.retain(|round| known(&round.kind));
        unknown += entries - r.rounds.len();
    }
    for round in &mut r.rounds {
        if read::<SiteReason>("rounds.reason", &round.reason).is_err() {
            round.reason = spell(SiteReason::Offered);
            unknown += 1;
        }
        if round.evaluation.as_ref().is_some_and(|e| read::<Vote>("evaluation.vote", &e.vote).is_err()) {
            round.evaluation = None;
            unknown += 1;
        }
    }
    for deployment in &mut r.deployments {
        if read::<RolloutReason>("deployments.reason", &deployment.reason).is_err() {
            deployment.reason = spell(RolloutReason::RollingOut);
            unknown += 1;
        }
        if stage(&deployment.stage).is_err() {
            deployment.stage = String::new();
            unknown += 1;
        }
    }
    Ok((r.try_into()?, unknown))
}

impl TryFrom<v1::ReportRequest> for Report {
    type Error = WireError;
    fn try_from(r: v1::ReportRequest) -> Result<Self, WireError> {
        let entries = r.rounds.len() + r.deployments.len();
        if entries > MAX_ENTRIES {
            return Err(WireError::new("rounds", entries, format!("at most {MAX_ENTRIES} entries")));
        }
        let cut = |text: String| text.chars().take(63).collect();
        once("rounds.uid", r.rounds.iter().map(|round| (&round.uid, &round.kind)))?;
        once("deployments.uid", r.deployments.iter().map(|deployment| (&deployment.uid, "")))?;
        Ok(Self {
            hub_epoch: cut(r.hub_epoch),
            revision: r.revision,
            agent_version: cut(r.agent_version),
            rosters: digests("rosters", &r.rosters)?,
            ledger: r.ledger.map(TryInto::try_into).transpose()?,
            rounds: r.rounds.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            deployments: r.deployments.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

/// Each part is said once: work named ten thousand times would be looked at as often.
fn once<'a, K: Ord + 'a>(field: &'static str, parts: impl Iterator<Item = (&'a String, K)>) -> Result<(), WireError> {
    let mut seen = BTreeSet::new();
    for (uid, kind) in parts {
        if !seen.insert((uid, kind)) {
            return Err(WireError::new(field, uid, "it is listed twice"));
        }
    }
    Ok(())
}

fn stage(text: &str) -> Result<Option<Stage>, WireError> {
    if text.is_empty() { Ok(None) } else { read("deployments.stage", text).map(Some) }
}

/// Words for people, no longer than anyone shows them.
fn words(text: &str) -> Option<String> {
    optional(text).map(|text| text.chars().take(MAX_WORDS).collect())
}

impl TryFrom<v1::RoundReport> for RoundReport {
    type Error = WireError;
    fn try_from(r: v1::RoundReport) -> Result<Self, WireError> {
        Ok(Self {
            uid: uid("rounds.uid", r.uid)?,
            kind: read("rounds.kind", &r.kind)?,
            reason: read("rounds.reason", &r.reason)?,
            message: words(&r.message),
            evaluation: r.evaluation.map(TryInto::try_into).transpose()?,
        })
    }
}

impl TryFrom<v1::DeployReport> for DeployReport {
    type Error = WireError;
    fn try_from(d: v1::DeployReport) -> Result<Self, WireError> {
        let serving = if d.serving.is_empty() { None } else { Some(read("deployments.serving", &d.serving)?) };
        Ok(Self {
            uid: uid("deployments.uid", d.uid)?,
            reason: read("deployments.reason", &d.reason)?,
            serving,
            stage: stage(&d.stage)?,
            message: words(&d.message),
        })
    }
}

impl TryFrom<v1::Evaluation> for Evaluation {
    type Error = WireError;
    fn try_from(e: v1::Evaluation) -> Result<Self, WireError> {
        let sums = e.sums.map(|s| {
            cases("sums.cases", s.cases)?;
            let ok = (0.0..=f64::from(s.cases)).contains(&s.dice);
            let rule = "a sum of Dice lies between 0 and the number of cases";
            if ok {
                Ok(CaseSums { cases: s.cases, dice: s.dice })
            } else {
                Err(WireError::new("sums.dice", s.dice, rule))
            }
        });
        Ok(Self {
            vote: read("evaluation.vote", &e.vote)?,
            sums: sums.transpose()?,
            published: e.published.map(score).transpose()?,
        })
    }
}

fn cases(field: &'static str, cases: u32) -> Result<(), WireError> {
    let ok = cases <= MAX_CASES;
    if ok { Ok(()) } else { Err(WireError::new(field, cases, format!("at most {MAX_CASES} cases"))) }
}

fn score(s: v1::Score) -> Result<ScoreFile, WireError> {
    cases("published.cases", s.cases)?;
    let class = |c: v1::ClassScore| ClassScore { label: c.label, dice: c.dice, hd95_mm: c.hd95_mm, assd_mm: c.assd_mm };
    let file = ScoreFile { cases: s.cases, classes: s.classes.into_iter().map(class).collect() };
    file.check().map_err(|rule| WireError::new("published", "", rule))?;
    Ok(file)
}
