//! The transitions.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::state::{
    GateRecord, Outcome, ProtocolStep, RoundState, RoundStep, SiteFact, SiteReason, SiteState, SiteSums,
    published_decimals,
};
use crate::digest::Digest;
use crate::gate::{self, CaseSums, Gate, Verdict, Vote};
use crate::ids::SiteName;
use crate::quorum;
use crate::task::{ScoreFile, TaskKind};

/// How updates are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Encoded but not masked: one trust boundary, or debugging.
    None,
    /// Masked so that only the sum can be read.
    SecAgg,
}

impl Protocol {
    const fn first(self) -> ProtocolStep {
        match self {
            Protocol::None => ProtocolStep::Upload,
            Protocol::SecAgg => ProtocolStep::Advertise,
        }
    }

    const fn after(self, step: ProtocolStep) -> ProtocolStep {
        match (self, step) {
            (_, ProtocolStep::Advertise) => ProtocolStep::Share,
            (_, ProtocolStep::Share) => ProtocolStep::Upload,
            (Protocol::SecAgg, ProtocolStep::Upload) => ProtocolStep::Agree,
            (Protocol::SecAgg, ProtocolStep::Agree) => ProtocolStep::Unmask,
            _ => ProtocolStep::Sum,
        }
    }
}

/// The rules of one round; taken from the study when the round is made.
#[derive(Clone, Debug)]
pub struct RoundPolicy {
    /// How many must be ready to open an attempt.
    pub quorum: u32,
    /// Least number of updates in a sum.
    pub min_contributors: u32,
    /// Hospitals without which no attempt opens.
    pub required: BTreeSet<SiteName>,
    /// Hospitals that were too slow several times and are waited for until the deadline.
    pub waited_for: BTreeSet<SiteName>,
    /// How long to wait for the others once the quorum is ready.
    pub grace: SignedDuration,
    /// Time limit of one step of an attempt.
    pub step_limit: SignedDuration,
    /// Attempts before the round fails.
    pub max_attempts: u32,
    /// How updates are combined.
    pub protocol: Protocol,
    /// Score each new model, by this gate.
    pub gate: Option<Gate>,
    /// Time limit of the evaluation.
    pub evaluation_limit: SignedDuration,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A hospital said where it is with its part.
    Site {
        /// Who.
        site: SiteName,
        /// Its part.
        kind: TaskKind,
        /// What it says.
        fact: SiteFact,
    },
    /// A hospital's message or upload for a step is durable at the hub.
    StepDone {
        /// Who.
        site: SiteName,
        /// In which attempt.
        attempt: u32,
        /// Which step.
        step: ProtocolStep,
    },
    /// The sum of an attempt is durable and the new model stands.
    Aggregated {
        /// Which attempt.
        attempt: u32,
        /// The new model.
        model: Digest,
    },
    /// The sum cannot be made from what was sent.
    AggregationFailed {
        /// Which attempt.
        attempt: u32,
        /// Why.
        message: String,
    },
    /// A hospital's vote.
    Voted {
        /// Who.
        site: SiteName,
        /// On the new model.
        vote: Vote,
        /// For the global figure.
        sums: Option<CaseSums>,
        /// Numbers the hospital publishes.
        published: Option<ScoreFile>,
    },
    /// Time went by.
    Tick,
    /// The study ends.
    Cancel,
}

/// An event that does not fit; the state stays as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Not a participant.
    #[error("{0} takes no part in this round")]
    UnknownSite(SiteName),
    /// For an attempt or step that is over or not yet open. Harmless: replays look like this.
    #[error("it belongs to another attempt or step")]
    OutOfStep,
    /// The round is over.
    #[error("the round is over")]
    Over,
}

/// The next state. A replayed event gives the same state again or [`Rejected`].
pub fn step(state: &RoundState, event: Event, now: Timestamp, policy: &RoundPolicy) -> Result<RoundState, Rejected> {
    if state.is_over() {
        return Err(Rejected::Over);
    }
    let mut next = state.clone();
    match event {
        Event::Site { site, kind, fact } => site_said(&mut next, &site, kind, fact)?,
        Event::StepDone { site, attempt, step } => step_done(&mut next, &site, attempt, step)?,
        Event::Aggregated { attempt, model } => aggregated(&mut next, attempt, model, now, policy)?,
        Event::AggregationFailed { attempt, message } => {
            in_sum(&next, attempt)?;
            burn(&mut next, now, policy, &message);
        }
        Event::Voted { site, vote, sums, published } => voted(&mut next, &site, vote, sums, published)?,
        Event::Cancel => end(&mut next, RoundStep::Failed, Outcome::Cancelled, None),
        Event::Tick => {}
    }
    // Several steps may be due at once; each settles at least one thing, so this ends.
    while advance(&mut next, now, policy) {}
    Ok(next)
}

fn entry<'a>(state: &'a mut RoundState, site: &SiteName) -> Result<&'a mut SiteState, Rejected> {
    state.sites.iter_mut().find(|s| s.site == *site).ok_or_else(|| Rejected::UnknownSite(site.clone()))
}

fn cut(message: Option<String>) -> Option<String> {
    message.map(|text| text.chars().take(100).collect())
}

fn site_said(state: &mut RoundState, site: &SiteName, kind: TaskKind, fact: SiteFact) -> Result<(), Rejected> {
    let fits = match state.step {
        RoundStep::Training | RoundStep::Aggregating => kind == TaskKind::Train,
        RoundStep::Evaluating => kind == TaskKind::Evaluate,
        RoundStep::Succeeded | RoundStep::Failed => false,
    };
    let aggregating = state.step == RoundStep::Aggregating;
    let entry = entry(state, site)?;
    // What the hub saw for itself outweighs what is said: uploads and votes are not taken back by a report.
    let settled = entry.vote.is_some() || (aggregating && entry.member && (entry.done || entry.contributed));
    if !fits || settled {
        return Err(Rejected::OutOfStep);
    }
    if aggregating && entry.member && fact.reason.is_out() {
        entry.member = false;
    }
    // Reports about a finished upload or vote say nothing new about the step that is open.
    if !matches!(fact.reason, SiteReason::Submitted | SiteReason::Evaluated) {
        entry.reason = fact.reason;
        entry.message = cut(fact.message);
    }
    Ok(())
}

fn step_done(state: &mut RoundState, site: &SiteName, attempt: u32, step: ProtocolStep) -> Result<(), Rejected> {
    if state.attempt != attempt || state.protocol_step != Some(step) || state.step != RoundStep::Aggregating {
        return Err(Rejected::OutOfStep);
    }
    let entry = entry(state, site)?;
    if !entry.member {
        return Err(Rejected::OutOfStep);
    }
    entry.done = true;
    if step == ProtocolStep::Upload {
        entry.reason = SiteReason::Submitted;
        entry.message = None;
    }
    Ok(())
}

fn in_sum(state: &RoundState, attempt: u32) -> Result<(), Rejected> {
    let here = state.step == RoundStep::Aggregating
        && state.attempt == attempt
        && state.protocol_step == Some(ProtocolStep::Sum);
    if here { Ok(()) } else { Err(Rejected::OutOfStep) }
}

fn aggregated(
    state: &mut RoundState,
    attempt: u32,
    model: Digest,
    now: Timestamp,
    policy: &RoundPolicy,
) -> Result<(), Rejected> {
    in_sum(state, attempt)?;
    state.model = Some(model);
    state.protocol_step = None;
    state.contributors = state.sites.iter().filter(|s| s.contributed).count() as u32;
    if policy.gate.is_none() {
        end(state, RoundStep::Succeeded, Outcome::Completed, None);
        return Ok(());
    }
    state.step = RoundStep::Evaluating;
    state.deadline = now.saturating_add(policy.evaluation_limit).unwrap_or(Timestamp::MAX);
    for site in &mut state.sites {
        site.done = false;
        if !site.reason.is_out() || site.contributed {
            site.reason = SiteReason::Offered;
            site.message = None;
        }
    }
    Ok(())
}

fn voted(
    state: &mut RoundState,
    site: &SiteName,
    vote: Vote,
    sums: Option<CaseSums>,
    published: Option<ScoreFile>,
) -> Result<(), Rejected> {
    if state.step != RoundStep::Evaluating {
        return Err(Rejected::OutOfStep);
    }
    let found = entry(state, site)?;
    if found.vote.is_some() {
        return Err(Rejected::OutOfStep);
    }
    found.vote = Some(vote);
    found.reason = SiteReason::Evaluated;
    found.message = None;
    if let Some(score) = published {
        found.cases = Some(score.cases);
        found.dice = published_decimals(&score);
    }
    if let Some(sums) = sums {
        state.evaluation.push(SiteSums::new(site, sums));
    }
    Ok(())
}

/// Takes one transition that is due; false when none is.
fn advance(state: &mut RoundState, now: Timestamp, policy: &RoundPolicy) -> bool {
    match state.step {
        RoundStep::Training => advance_training(state, now, policy),
        RoundStep::Aggregating => advance_attempt(state, now, policy),
        RoundStep::Evaluating => advance_evaluation(state, now, policy),
        RoundStep::Succeeded | RoundStep::Failed => false,
    }
}

fn is_ready(site: &SiteState) -> bool {
    site.reason == SiteReason::Ready
}

fn advance_training(state: &mut RoundState, now: Timestamp, policy: &RoundPolicy) -> bool {
    let ready = state.sites.iter().filter(|s| is_ready(s)).count() as u32;
    let pending = |s: &&SiteState| !is_ready(s) && !s.reason.is_out();
    let all_in = !state.sites.iter().any(|s| pending(&s));
    let required_in = state.sites.iter().all(|s| is_ready(s) || !policy.required.contains(&s.site));
    let enough = ready >= policy.quorum && ready >= policy.min_contributors && required_in;
    let late = now >= state.deadline;
    if enough && state.grace_until.is_none() && !all_in {
        let until = now.saturating_add(policy.grace).unwrap_or(Timestamp::MAX);
        state.grace_until = Some(until.min(state.deadline));
        return true;
    }
    if !enough {
        if late {
            let missing = policy.quorum.max(policy.min_contributors);
            let text = if required_in {
                format!("{ready} hospitals were ready at the deadline, {missing} are needed")
            } else {
                "a required hospital was not ready at the deadline".to_owned()
            };
            end(state, RoundStep::Failed, Outcome::QuorumLost, Some(text));
        }
        return late;
    }
    let waiting = state.sites.iter().filter(pending).any(|s| policy.waited_for.contains(&s.site));
    let graced = state.grace_until.is_some_and(|until| now >= until) && !waiting;
    if all_in || graced || late {
        open_attempt(state, now, policy);
        return true;
    }
    false
}

fn open_attempt(state: &mut RoundState, now: Timestamp, policy: &RoundPolicy) {
    state.attempt += 1;
    state.step = RoundStep::Aggregating;
    state.protocol_step = Some(policy.protocol.first());
    state.deadline = now.saturating_add(policy.step_limit).unwrap_or(Timestamp::MAX);
    for site in &mut state.sites {
        site.member = is_ready(site);
        site.done = false;
        site.contributed = false;
    }
    state.attempt_size = members(state).count() as u32;
}

fn members(state: &RoundState) -> impl Iterator<Item = &SiteState> {
    state.sites.iter().filter(|s| s.member)
}

/// How many members must do the open step for the attempt to live.
pub fn needed(state: &RoundState, policy: &RoundPolicy) -> u32 {
    match policy.protocol {
        Protocol::SecAgg => quorum::survivors_needed(state.attempt_size, policy.min_contributors),
        Protocol::None => policy.min_contributors.max(1),
    }
}

fn advance_attempt(state: &mut RoundState, now: Timestamp, policy: &RoundPolicy) -> bool {
    let Some(open) = state.protocol_step.filter(|&s| s != ProtocolStep::Sum) else { return false };
    let done = members(state).filter(|s| s.done).count() as u32;
    let all = members(state).all(|s| s.done);
    let late = now >= state.deadline;
    let enough = done >= needed(state, policy);
    // Shares may have left: another attempt could subtract a hospital out, so only time can mend this one.
    if open == ProtocolStep::Unmask && !enough {
        return false;
    }
    if !enough && (late || all) {
        burn(state, now, policy, &format!("{done} of {} members did step {open:?}", state.attempt_size));
        return true;
    }
    if !(all || late || (open == ProtocolStep::Unmask && enough)) {
        return false;
    }
    close_step(state, open, now, policy);
    true
}

fn close_step(state: &mut RoundState, open: ProtocolStep, now: Timestamp, policy: &RoundPolicy) {
    for site in state.sites.iter_mut().filter(|s| s.member) {
        let keeps = site.done || open > ProtocolStep::Upload;
        if open == ProtocolStep::Upload {
            site.contributed = site.done;
        }
        if !keeps {
            site.member = false;
            site.reason = SiteReason::Missed;
        }
        site.done = false;
    }
    if open == ProtocolStep::Advertise {
        state.attempt_size = members(state).count() as u32;
    }
    state.protocol_step = Some(policy.protocol.after(open));
    state.deadline = now.saturating_add(policy.step_limit).unwrap_or(Timestamp::MAX);
}

fn burn(state: &mut RoundState, now: Timestamp, policy: &RoundPolicy, why: &str) {
    state.protocol_step = None;
    if state.attempt >= policy.max_attempts {
        let text = format!("attempt {} failed, the last of {}: {why}", state.attempt, policy.max_attempts);
        return end(state, RoundStep::Failed, Outcome::AggregationFailed, Some(text));
    }
    state.step = RoundStep::Training;
    state.grace_until = None;
    state.deadline = now.saturating_add(policy.step_limit).unwrap_or(Timestamp::MAX);
    for site in &mut state.sites {
        // Their updates are on their own disks: those that did the step are ready again, the others must say so anew.
        if site.member || site.contributed {
            site.reason = if site.done || site.contributed { SiteReason::Ready } else { SiteReason::Missed };
        }
        site.member = false;
        site.done = false;
        site.contributed = false;
    }
}

fn advance_evaluation(state: &mut RoundState, now: Timestamp, policy: &RoundPolicy) -> bool {
    let waiting = state.sites.iter().any(|s| s.vote.is_none() && !s.reason.is_out());
    if waiting && now < state.deadline {
        return false;
    }
    if let Some(gate) = &policy.gate {
        let votes: Vec<Vote> = state.sites.iter().filter_map(|s| s.vote).collect();
        let sums: Vec<CaseSums> = state.evaluation.iter().map(SiteSums::sums).collect();
        let cases: u32 = sums.iter().map(|s| s.cases).sum();
        let mean = sums.iter().map(|s| s.dice).sum::<f64>() / f64::from(cases.max(1));
        let verdict = gate::decide(gate, &votes, &sums);
        state.gate = Some(GateRecord {
            passed: matches!(verdict, Verdict::Passed { .. }),
            global: (cases > 0).then(|| format!("{mean:.4}")),
            message: match verdict {
                Verdict::Passed { .. } => None,
                Verdict::Shut(why) => Some(why.to_string()),
            },
        });
    }
    end(state, RoundStep::Succeeded, Outcome::Completed, None);
    true
}

fn end(state: &mut RoundState, step: RoundStep, outcome: Outcome, message: Option<String>) {
    state.step = step;
    state.outcome = Some(outcome);
    state.protocol_step = None;
    state.grace_until = None;
    state.message = message.map(|text| text.chars().take(300).collect());
}

/// What the hub itself has to do in a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HubWork {
    /// Sum the uploads of these hospitals and make the new model.
    Sum {
        /// Of this attempt.
        attempt: u32,
        /// Whose updates.
        contributors: Vec<SiteName>,
    },
}

/// The hub's work in this state, if any. Idempotent, keyed by the attempt.
pub fn hub_work(state: &RoundState) -> Option<HubWork> {
    let summing = state.step == RoundStep::Aggregating && state.protocol_step == Some(ProtocolStep::Sum);
    summing.then(|| HubWork::Sum { attempt: state.attempt, contributors: state.contributor_names() })
}

/// What one hospital is asked for in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteWork {
    /// Train and keep the update.
    Train,
    /// Do this step of the open attempt.
    Attempt(u32, ProtocolStep),
    /// Score the new model.
    Evaluate,
    /// Nothing for now, but the round goes on: keep what there is.
    Wait,
    /// The round is over: stop and clean up.
    Stop,
}

/// This hospital's work in this state; `None` when it takes no part.
pub fn site_work(state: &RoundState, site: &SiteName) -> Option<SiteWork> {
    let entry = state.site(site)?;
    Some(match (state.step, state.protocol_step) {
        (RoundStep::Training, _) => SiteWork::Train,
        (RoundStep::Aggregating, Some(step)) if entry.member && step != ProtocolStep::Sum => {
            SiteWork::Attempt(state.attempt, step)
        }
        (RoundStep::Aggregating, _) => SiteWork::Wait,
        (RoundStep::Evaluating, _) => SiteWork::Evaluate,
        (RoundStep::Succeeded | RoundStep::Failed, _) => SiteWork::Stop,
    })
}

/// When something happens by itself, if nothing else does.
pub fn wake_at(state: &RoundState) -> Option<Timestamp> {
    if state.is_over() {
        return None;
    }
    Some(
        state
            .grace_until
            .filter(|_| state.step == RoundStep::Training)
            .map_or(state.deadline, |g| g.min(state.deadline)),
    )
}
