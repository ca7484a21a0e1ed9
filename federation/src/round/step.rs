//! The transitions.

use jiff::Timestamp;

use super::attempt::{advance_attempt, burn, open_attempt};
use super::policy::{Event, NewModel, Protocol, Rejected, RoundPolicy, Summed};
use super::state::{
    GateRecord, Outcome, ProtocolStep, RoundState, RoundStep, SiteFact, SiteReason, SiteState, SiteSums, TotalSums,
    published_decimals,
};
use crate::gate::{self, CaseSums, Verdict, Vote};
use crate::ids::SiteName;
use crate::quorum;
use crate::task::{ScoreFile, TaskKind};

/// The next state. A replayed event gives the same state again or [`Rejected`].
pub fn step(state: &RoundState, event: Event, now: Timestamp, policy: &RoundPolicy) -> Result<RoundState, Rejected> {
    if state.is_over() {
        return Err(Rejected::Over);
    }
    let mut next = state.clone();
    match event {
        Event::Site { site, kind, fact } => site_said(&mut next, &site, kind, fact, policy)?,
        Event::StepDone { site, attempt, step } => step_done(&mut next, &site, attempt, step)?,
        Event::Aggregated { attempt, sum: Summed::Model(model) } => aggregated(&mut next, attempt, model, now, policy)?,
        Event::Aggregated { attempt, sum: Summed::Cases(sums) } => evaluated(&mut next, attempt, sums)?,
        Event::AggregationFailed { attempt, message } => {
            in_sum(&next, attempt)?;
            sum_failed(&mut next, now, policy, &message);
        }
        Event::AttemptFailed { attempt, message } => attempt_failed(&mut next, attempt, now, policy, &message)?,
        Event::Voted { site, vote, sums, published } => {
            // Under masks no hospital's own sums stand in for the sum of all.
            let sums = sums.filter(|_| policy.protocol == Protocol::None);
            voted(&mut next, &site, vote, sums, published)?;
        }
        Event::Cancel => cancel(&mut next, policy),
        Event::Tick => {}
    }
    // Several steps may be due at once; each settles at least one thing, so this ends.
    while advance(&mut next, now, policy) {}
    Ok(next)
}

fn entry<'a>(state: &'a mut RoundState, site: &SiteName) -> Result<&'a mut SiteState, Rejected> {
    state.sites.iter_mut().find(|s| s.site == *site).ok_or_else(|| Rejected::UnknownSite(site.clone()))
}

/// A message of at most 100 bytes, as they are written: a status of many hospitals must stay small whatever they say.
fn cut(message: Option<String>) -> Option<String> {
    let written = |c: char| match c {
        '"' | '\\' => 2,
        c if c < ' ' => 6,
        c => c.len_utf8(),
    };
    message.map(|text| {
        let mut bytes = 0;
        let fits = |c: &char| {
            bytes += written(*c);
            bytes <= 100
        };
        text.chars().take_while(fits).collect()
    })
}

/// The round enters a step.
pub(super) fn enter(state: &mut RoundState, step: RoundStep, now: Timestamp) {
    state.step = step;
    state.step_since = Some(now);
}

fn site_said(
    state: &mut RoundState,
    site: &SiteName,
    kind: TaskKind,
    mut fact: SiteFact,
    policy: &RoundPolicy,
) -> Result<(), Rejected> {
    let fits = match state.step {
        RoundStep::Training | RoundStep::Aggregating => kind == TaskKind::Train,
        RoundStep::Evaluating => kind == TaskKind::Evaluate,
        RoundStep::Succeeded | RoundStep::Failed => false,
    };
    let open = state.protocol_step;
    let evaluating = state.step == RoundStep::Evaluating;
    let entry = entry(state, site)?;
    let in_attempt = open.is_some() && entry.member;
    let leaves = in_attempt && fact.reason.is_out();
    // What the hub saw for itself outweighs what is said: a vote or an upload is not taken back by a report. But no
    // hospital must go on: it may leave the attempt until it has done what is asked of it.
    let was_away = entry.reason == SiteReason::Missed || entry.reason.is_a_word();
    let returns = !in_attempt && was_away && fact.reason == SiteReason::Evaluated;
    let settled =
        in_attempt && entry.done || !leaves && !returns && (entry.vote.is_some() || in_attempt && entry.survived);
    if !fits || settled {
        return Err(Rejected::OutOfStep);
    }
    if matches!(fact.reason, SiteReason::Queued | SiteReason::Training | SiteReason::Ready) && kind == TaskKind::Train {
        entry.began = true;
    }
    if fact.reason == SiteReason::Ready && !may_open(policy, site) && !policy.starting {
        fact = SiteFact { reason: SiteReason::AwaitingRoster, message: None };
    }
    if leaves {
        entry.member = false;
        entry.dropped = open;
    }
    // It said no for a moment. While the step is open it is asked again: after the uploads no other attempt would be as
    // good, and after the shares there is no other one. A part that could not be done does not become fit by being ready
    // for another one.
    let may_return = entry.reason.is_a_word();
    let fit = matches!(fact.reason, SiteReason::Ready | SiteReason::Submitted | SiteReason::Evaluated);
    if open.is_some() && !entry.member && entry.dropped == open && fit && may_return {
        entry.member = true;
        entry.dropped = None;
        entry.reason = if evaluating { SiteReason::Evaluated } else { SiteReason::Ready };
        entry.message = None;
    }
    // Reports about a finished upload or vote say nothing new about the step that is open, unless a hospital that fell
    // out of an attempt over the evaluation is back.
    if returns && entry.vote.is_some() || !matches!(fact.reason, SiteReason::Submitted | SiteReason::Evaluated) {
        entry.reason = fact.reason;
        entry.message = cut(fact.message);
    }
    Ok(())
}

/// Whether this hospital's keys hold in an attempt that opens now.
fn may_open(policy: &RoundPolicy, site: &SiteName) -> bool {
    match policy.protocol {
        Protocol::None => true,
        Protocol::SecAgg => policy.roster.as_ref().is_some_and(|roster| roster.sites.contains(site)),
    }
}

fn step_done(state: &mut RoundState, site: &SiteName, attempt: u32, step: ProtocolStep) -> Result<(), Rejected> {
    if state.attempt != attempt || state.protocol_step != Some(step) {
        return Err(Rejected::OutOfStep);
    }
    let training = state.step == RoundStep::Aggregating;
    let entry = entry(state, site)?;
    if !entry.member {
        return Err(Rejected::OutOfStep);
    }
    entry.done = true;
    if step == ProtocolStep::Upload && training {
        entry.reason = SiteReason::Submitted;
        entry.message = None;
    }
    Ok(())
}

fn in_sum(state: &RoundState, attempt: u32) -> Result<(), Rejected> {
    let here = state.attempt == attempt && state.protocol_step == Some(ProtocolStep::Sum);
    if here { Ok(()) } else { Err(Rejected::OutOfStep) }
}

/// The sum cannot be made. Without masks another attempt may do better. With them the shares that take the masks off
/// have left: the hospitals refuse a second sum over the same subject, whoever asks.
fn sum_failed(state: &mut RoundState, now: Timestamp, policy: &RoundPolicy, why: &str) {
    if policy.protocol == Protocol::None {
        return burn(state, now, policy, why);
    }
    if state.step == RoundStep::Evaluating {
        return close_gate(state, policy, Some(format!("the evaluation could not be summed: {why}")));
    }
    let text = format!(
        "the sum of attempt {} cannot be used: {why}; hospitals give no second sum on this model, so start a new study \
         from it",
        state.attempt
    );
    end(state, RoundStep::Failed, Outcome::SumUnusable, Some(text));
}

/// The hub's side of an attempt cannot go on. Before shares may have left another one may do better; the members have
/// their updates and are not known to be at fault.
fn attempt_failed(
    state: &mut RoundState,
    attempt: u32,
    now: Timestamp,
    policy: &RoundPolicy,
    why: &str,
) -> Result<(), Rejected> {
    let open = state.protocol_step.filter(|_| state.attempt == attempt).ok_or(Rejected::OutOfStep)?;
    if open >= ProtocolStep::Unmask {
        sum_failed(state, now, policy, why);
    } else {
        state.sites.iter_mut().filter(|s| s.member).for_each(|s| s.done = true);
        burn(state, now, policy, why);
    }
    Ok(())
}

/// Somebody ends the round. When hospitals may have given their shares, they give no other sum on this model: that is no
/// round of which nothing remains.
fn cancel(state: &mut RoundState, policy: &RoundPolicy) {
    let given = state.step == RoundStep::Aggregating
        && policy.protocol == Protocol::SecAgg
        && state.protocol_step.is_some_and(|open| open >= ProtocolStep::Unmask);
    if given {
        let why = "it was cancelled when hospitals had given their shares, and they give no second sum on this model";
        end(state, RoundStep::Failed, Outcome::SumUnusable, Some(why.to_owned()));
    } else {
        end(state, RoundStep::Failed, Outcome::Cancelled, None);
    }
}

fn aggregated(
    state: &mut RoundState,
    attempt: u32,
    new: NewModel,
    now: Timestamp,
    policy: &RoundPolicy,
) -> Result<(), Rejected> {
    in_sum(state, attempt)?;
    if state.step != RoundStep::Aggregating {
        return Err(Rejected::OutOfStep);
    }
    (state.model, state.moments) = (Some(new.model), new.moments);
    state.model_attempt = attempt;
    state.protocol_step = None;
    for site in &mut state.sites {
        site.contributed = site.survived;
    }
    state.contributors = state.sites.iter().filter(|s| s.contributed).count() as u32;
    if policy.gate.is_none() {
        end(state, RoundStep::Succeeded, Outcome::Completed, None);
        return Ok(());
    }
    enter(state, RoundStep::Evaluating, now);
    state.grace_until = None;
    state.deadline = now.saturating_add(policy.evaluation_limit).unwrap_or(Timestamp::MAX);
    for site in &mut state.sites {
        (site.member, site.done) = (false, false);
        if !site.reason.is_out() || site.contributed {
            site.reason = SiteReason::Offered;
            site.message = None;
        }
    }
    Ok(())
}

/// The masked sum of the evaluation is there.
fn evaluated(state: &mut RoundState, attempt: u32, sums: CaseSums) -> Result<(), Rejected> {
    in_sum(state, attempt)?;
    if state.step != RoundStep::Evaluating {
        return Err(Rejected::OutOfStep);
    }
    state.total = Some(TotalSums::new(sums));
    state.protocol_step = None;
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
        state.evaluation.push(SiteSums::new(site, sums.capped()));
    }
    Ok(())
}

/// Takes one transition that is due; false when none is.
fn advance(state: &mut RoundState, now: Timestamp, policy: &RoundPolicy) -> bool {
    match state.step {
        RoundStep::Training => advance_training(state, now, policy),
        RoundStep::Aggregating => advance_attempt(state, now, policy),
        RoundStep::Evaluating if state.protocol_step.is_some() => advance_attempt(state, now, policy),
        RoundStep::Evaluating => advance_evaluation(state, now, policy),
        RoundStep::Succeeded | RoundStep::Failed => false,
    }
}

fn advance_training(state: &mut RoundState, now: Timestamp, policy: &RoundPolicy) -> bool {
    // Ready is what it said when its keys held; they must hold now.
    let is_ready = |s: &SiteState| s.reason == SiteReason::Ready && may_open(policy, &s.site);
    let ready = state.sites.iter().filter(|s| is_ready(s)).count() as u32;
    let pending = |s: &&SiteState| !is_ready(s) && !s.reason.is_out();
    let all_in = !state.sites.iter().any(|s| pending(&s));
    let required_in = state.sites.iter().all(|s| is_ready(s) || !policy.required.contains(&s.site));
    let enough = ready >= policy.quorum && ready >= policy.min_contributors && required_in;
    let late = policy.is_over(state.deadline, now);
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
    let graced = state.grace_until.is_some_and(|until| policy.is_over(until, now)) && !waiting;
    if all_in || graced || late {
        enter(state, RoundStep::Aggregating, now);
        open_attempt(state, now, policy, is_ready);
        return true;
    }
    false
}

fn advance_evaluation(state: &mut RoundState, now: Timestamp, policy: &RoundPolicy) -> bool {
    // Who has not spoken since the start may have voted, and under which roster is not known yet.
    if policy.starting {
        return false;
    }
    let waiting = state.sites.iter().any(|s| s.vote.is_none() && !s.reason.is_out());
    // An attempt over the evaluation moves the deadline, and was opened because the votes were in or late.
    if waiting && state.attempt == state.model_attempt {
        let votes = state.sites.iter().filter(|s| s.vote.is_some()).count() as u32;
        if votes >= policy.quorum && state.grace_until.is_none() {
            // A hospital that died in the round must not hold up the release of the others' model.
            let until = now.saturating_add(policy.grace).unwrap_or(Timestamp::MAX);
            state.grace_until = Some(until.min(state.deadline));
            return true;
        }
        let graced = state.grace_until.is_some_and(|until| policy.is_over(until, now));
        if !policy.is_over(state.deadline, now) && !graced {
            return false;
        }
    }
    if policy.protocol == Protocol::SecAgg && policy.gate.is_some() && state.total.is_none() {
        let opens = |site: &SiteState| {
            site.vote.is_some() && site.reason == SiteReason::Evaluated && may_open(policy, &site.site)
        };
        let opening = state.sites.iter().filter(|s| opens(s)).count() as u32;
        if opening >= quorum::openers_needed(opening, policy.min_contributors, policy.colluders) {
            open_attempt(state, now, policy, opens);
            return true;
        }
        // Those that fell out of a burned attempt have the time of a step to say that they are back.
        let returning = state.sites.iter().any(|s| s.vote.is_some() && s.reason == SiteReason::Missed);
        if returning && state.attempt > state.model_attempt && !policy.is_over(state.deadline, now) {
            return false;
        }
    }
    close_gate(state, policy, None);
    true
}

/// Decides the gate and ends the round; `trouble` is why there is no figure.
pub(super) fn close_gate(state: &mut RoundState, policy: &RoundPolicy, trouble: Option<String>) {
    if let Some(gate) = &policy.gate {
        let votes: Vec<Vote> = state.sites.iter().filter_map(|s| s.vote).collect();
        let sums: Vec<CaseSums> = match &state.total {
            Some(total) => vec![total.sums()],
            // The figure of a masked study comes from the masked sum or there is none.
            None if policy.protocol == Protocol::SecAgg => Vec::new(),
            None => state.evaluation.iter().map(SiteSums::sums).collect(),
        };
        let verdict = gate::decide(gate, &votes, &sums);
        let message = match &verdict {
            Verdict::Passed { .. } => None,
            Verdict::Shut(why) => Some(trouble.unwrap_or_else(|| why.to_string())),
        };
        state.gate = Some(GateRecord {
            passed: matches!(verdict, Verdict::Passed { .. }),
            global: gate::global(&sums).map(|mean| format!("{mean:.4}")),
            message: message.map(|text| text.chars().take(200).collect()),
        });
    }
    end(state, RoundStep::Succeeded, Outcome::Completed, None);
}

pub(super) fn end(state: &mut RoundState, step: RoundStep, outcome: Outcome, message: Option<String>) {
    state.step = step;
    state.outcome = Some(outcome);
    state.protocol_step = None;
    state.grace_until = None;
    state.message = message.map(|text| text.chars().take(300).collect());
}
