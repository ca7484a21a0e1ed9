//! What a round asks of each hospital. Pure.

use std::collections::{BTreeMap, BTreeSet};

use consilium_federation::assignment::{Item, ItemState, RoundWork, Work};
use consilium_federation::round::{ProtocolStep, RoundState, SiteWork, site_work};
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, SiteName};

use super::Round;
use crate::attempts::Inputs;

/// The items of a round for its participants. A round that is over or being deleted leaves tombstones, but for the
/// hospitals that have acknowledged theirs. A round without a state has been offered to nobody yet.
///
/// `inputs` is what the open step starts from. An item whose step has no inputs yet is left out, which to a hospital is
/// no word at all; an item without its step would be word that the attempt goes on without it.
pub fn items(round: &Round, acknowledged: &BTreeSet<SiteName>, inputs: &Inputs) -> BTreeMap<SiteName, Item> {
    let Some(state) = &round.state else { return BTreeMap::new() };
    let one = |entry: &consilium_federation::round::SiteState| {
        let site = &entry.site;
        let mut work = site_work(state, site)?;
        if round.deleting {
            work = SiteWork::Stop;
        }
        if work == SiteWork::Stop && acknowledged.contains(site) {
            return None;
        }
        let item_state = if work == SiteWork::Stop { ItemState::Cancelled } else { ItemState::Active };
        let work = Work::Round(round_work(round, state, site, work, inputs)?);
        Some((site.clone(), Item { uid: round.uid.clone(), state: item_state, work }))
    };
    state.sites.iter().filter_map(one).collect()
}

fn round_work(
    round: &Round,
    state: &RoundState,
    site: &SiteName,
    work: SiteWork,
    inputs: &Inputs,
) -> Option<RoundWork> {
    let spec = &round.spec;
    let evaluating = match work {
        SiteWork::Evaluate | SiteWork::EvaluationAttempt(..) => true,
        // What was asked for last, so that the tombstone names the same work.
        SiteWork::Stop => state.model.is_some(),
        SiteWork::Train | SiteWork::Attempt(..) | SiteWork::Wait => false,
    };
    let (kind, model) =
        if evaluating { (TaskKind::Evaluate, state.model?) } else { (TaskKind::Train, spec.base_model) };
    let (attempt, step) = match work {
        SiteWork::Attempt(attempt, step) | SiteWork::EvaluationAttempt(attempt, step) => (attempt, Some(step)),
        SiteWork::Wait => (state.attempt, None),
        SiteWork::Train | SiteWork::Evaluate | SiteWork::Stop => (0, None),
    };
    let inputs = match step {
        Some(step) => starting_point(state, site, step, inputs)?,
        None => None,
    };
    Some(RoundWork {
        study: round.study(),
        study_uid: spec.study_uid.clone(),
        spec_digest: spec.spec_digest,
        round: spec.number,
        kind,
        model,
        schema: spec.tensor_schema,
        roster_size: spec.participants.len() as u32,
        attempt,
        step,
        roster: state.roster.filter(|_| step.is_some()),
        inputs,
        deadline: state.deadline,
    })
}

/// What a hospital starts the step from: `Some(None)` when it needs nothing, `None` when that is not there yet.
fn starting_point(state: &RoundState, site: &SiteName, step: ProtocolStep, inputs: &Inputs) -> Option<Option<Digest>> {
    if state.roster.is_none() || step == ProtocolStep::Advertise {
        return Some(None);
    }
    inputs.of(site).map(Some)
}
