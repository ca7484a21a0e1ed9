//! An attempt of the aggregation protocol: opened, step after step, burned or brought to the sum.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::policy::{Protocol, RoundPolicy};
use super::state::{Outcome, ProtocolStep, RoundState, RoundStep, SiteReason, SiteState};
use super::step::{close_gate, end, enter};
use crate::ids::SiteName;
use crate::quorum;

pub(super) fn open_attempt(
    state: &mut RoundState,
    now: Timestamp,
    policy: &RoundPolicy,
    opens: impl Fn(&SiteState) -> bool,
) {
    state.attempt += 1;
    state.protocol_step = Some(policy.protocol.first());
    state.roster = policy.roster.as_ref().map(|roster| roster.digest);
    state.deadline = now.saturating_add(policy.step_limit).unwrap_or(Timestamp::MAX);
    for site in &mut state.sites {
        site.member = opens(site);
        (site.done, site.dropped, site.survived) = (false, None, false);
    }
    state.attempt_size = members(state).count() as u32;
}

fn members(state: &RoundState) -> impl Iterator<Item = &SiteState> {
    state.sites.iter().filter(|s| s.member)
}

/// How many members must do the open step for the attempt to live: as many as the sum needs, and after the uploads as
/// many as it takes to sign survivors and to reconstruct a secret.
pub fn needed(state: &RoundState, policy: &RoundPolicy) -> u32 {
    match (policy.protocol, state.protocol_step) {
        (Protocol::None, _) => policy.min_contributors.max(1),
        (Protocol::SecAgg, Some(ProtocolStep::Advertise)) => {
            quorum::openers_needed(state.attempt_size, policy.min_contributors, policy.colluders)
        }
        (Protocol::SecAgg, Some(ProtocolStep::Agree | ProtocolStep::Unmask)) => quorum::threshold(state.attempt_size),
        (Protocol::SecAgg, _) => {
            quorum::survivors_needed(state.attempt_size, policy.min_contributors, policy.colluders)
        }
    }
}

/// Whether the hospitals without which no updates are summed have done the open step, or still may.
struct Required {
    done: bool,
    left: bool,
}

fn required(state: &RoundState, policy: &RoundPolicy, open: ProtocolStep) -> Required {
    // After the uploads all that counts is in; the evaluation is a figure, not a sum of updates.
    if open > ProtocolStep::Upload || state.step == RoundStep::Evaluating {
        return Required { done: true, left: true };
    }
    let named = || state.sites.iter().filter(|s| policy.required.contains(&s.site));
    Required { done: named().all(|s| s.member && s.done), left: named().all(|s| s.member) }
}

pub(super) fn advance_attempt(state: &mut RoundState, now: Timestamp, policy: &RoundPolicy) -> bool {
    let Some(open) = state.protocol_step.filter(|&s| s != ProtocolStep::Sum) else { return false };
    let done = members(state).filter(|s| s.done).count() as u32;
    let all = members(state).all(|s| s.done);
    let late = policy.is_over(state.deadline, now);
    let required = required(state, policy, open);
    let enough = done >= needed(state, policy) && required.done;
    // Shares may have left: another attempt could subtract a hospital out, so only time can mend this one.
    if open == ProtocolStep::Unmask && !enough {
        let figure_only = late && state.step == RoundStep::Evaluating;
        if figure_only {
            // The model stands, and what is missing is its figure: nobody has to wait for that.
            let why = format!("{done} of {} members answered Unmask in time", state.attempt_size);
            close_gate(state, policy, Some(why));
        }
        return figure_only;
    }
    let hopeless = all || (members(state).count() as u32) < needed(state, policy) || !required.left;
    if !enough && (late || hopeless) {
        let missing = if required.done { "" } else { ", a required hospital did not" };
        burn(state, now, policy, &format!("{done} of {} members did step {open:?}{missing}", state.attempt_size));
        return true;
    }
    // More signatures or shares than it takes change nothing, so nobody is waited for.
    let settled = matches!(open, ProtocolStep::Agree | ProtocolStep::Unmask) && enough;
    if !(all || late || settled) {
        return false;
    }
    close_step(state, open, now, policy);
    true
}

/// Whom to leave out of a sum, so that no sum of the study differs from an earlier one by a single hospital: the two
/// together would say something of that one. `None` when the sum is fine as it is, when no second hospital can be
/// spared, or when leaving one out would not help (the hospitals then decide by their own policies).
fn spare(state: &RoundState, policy: &RoundPolicy) -> Option<SiteName> {
    let can_spare = state.attempt_size.saturating_sub(quorum::threshold(state.attempt_size)) >= 2;
    if policy.protocol == Protocol::None || !can_spare {
        return None;
    }
    let earlier = match state.step {
        RoundStep::Evaluating => &policy.earlier.evaluations,
        _ => &policy.earlier.updates,
    };
    let close = |set: &BTreeSet<SiteName>| earlier.iter().any(|e| e.symmetric_difference(set).take(2).count() == 1);
    let complete: BTreeSet<SiteName> = members(state).filter(|s| s.done).map(|s| s.site.clone()).collect();
    if !close(&complete) || (complete.len() as u32) <= needed(state, policy) {
        return None;
    }
    let helps = |site: &&SiteName| !close(&complete.iter().filter(|s| s != site).cloned().collect());
    let optional = |site: &&SiteName| state.step == RoundStep::Evaluating || !policy.required.contains(*site);
    let candidates: Vec<&SiteName> = complete.iter().filter(optional).filter(helps).collect();
    // In turn, so that it is not always the same hospital whose work is not in the model.
    let turn = earlier.len().checked_rem(candidates.len())?;
    candidates.get(turn).map(|site| (*site).clone())
}

fn close_step(state: &mut RoundState, open: ProtocolStep, now: Timestamp, policy: &RoundPolicy) {
    if let Some(spared) = (open == ProtocolStep::Upload).then(|| spare(state, policy)).flatten() {
        state.sites.iter_mut().filter(|s| s.site == spared).for_each(|s| s.done = false);
        let why = "left out: this sum and an earlier one would differ by one hospital alone";
        let named = |s: &&mut SiteState| s.site == spared;
        state.sites.iter_mut().filter(named).for_each(|s| s.message = Some(why.into()));
    }
    for site in state.sites.iter_mut().filter(|s| s.member) {
        let keeps = site.done || open > ProtocolStep::Upload;
        if open == ProtocolStep::Upload {
            site.survived = site.done;
        }
        if !keeps {
            site.member = false;
            site.dropped = Some(open);
            site.reason = SiteReason::Missed;
            state.missed_at = Some(now);
        }
        site.done = false;
    }
    if open == ProtocolStep::Advertise {
        state.attempt_size = members(state).count() as u32;
    }
    state.protocol_step = Some(policy.protocol.after(open));
    state.deadline = now.saturating_add(policy.step_limit).unwrap_or(Timestamp::MAX);
}

pub(super) fn burn(state: &mut RoundState, now: Timestamp, policy: &RoundPolicy, why: &str) {
    state.protocol_step = None;
    let evaluating = state.step == RoundStep::Evaluating;
    let used = state.attempt - state.model_attempt;
    if used >= policy.max_attempts {
        let text = format!("attempt {} failed, the last of {}: {why}", state.attempt, policy.max_attempts);
        if evaluating {
            return close_gate(state, policy, Some(text));
        }
        return end(state, RoundStep::Failed, Outcome::AggregationFailed, Some(text));
    }
    for site in &mut state.sites {
        // What they made is on their own disks: those that did the step are ready again, the others must say so anew,
        // or the next attempt would open with the same dead hospitals.
        if site.member {
            let fine = if evaluating { SiteReason::Evaluated } else { SiteReason::Ready };
            site.reason = if site.done || site.survived { fine } else { SiteReason::Missed };
        }
        (site.member, site.done, site.dropped, site.survived) = (false, false, None, false);
    }
    state.missed_at = Some(now);
    state.grace_until = None;
    state.deadline = now.saturating_add(policy.step_limit).unwrap_or(Timestamp::MAX);
    if !evaluating {
        enter(state, RoundStep::Training, now);
    }
}
