//! What the SitePolicy's status says: pure.

use std::collections::BTreeMap;

use consilium_crds::SitePolicy;
use consilium_crds::conditions::{Conditions, READY};
use consilium_crds::site_policy::{
    AcceptedRoster, LedgerHead, OfferedStudy, Participation, SitePolicySpec, SitePolicyStatus, UsedAmounts,
};
use consilium_federation::StudyKey;
use consilium_federation::assignment::{Assignment, Item, ItemState, RoundWork, Work};
use consilium_federation::clock::OtherClock;
use consilium_federation::round::SiteReason;
use consilium_federation::task::TaskKind;
use jiff::Timestamp;

use crate::Enforcement;
use crate::link::LinkStatus;
use crate::policy::{Room, models, reason_name, tasks};
use crate::state::{HubClaim, RolledBack};

/// Studies that the status lists at most, the most that the schema takes.
const MAX_STUDIES: usize = 200;

/// Whether this agent's clock and the hub's show one time.
const CLOCK: &str = "ClockInSync";

/// Whether the agent's volume can be used.
pub(super) const VOLUME: &str = "VolumeUsable";

/// Characters of a refusal that the status holds, the most that the schema takes.
const MAX_MESSAGE: usize = 500;

/// Where a part in a round is, by its UID and kind, and the words of a refusal.
pub type Told<'a> = dyn Fn(&str, TaskKind) -> Option<(SiteReason, Option<String>)> + 'a;

/// Everything that the status depends on.
pub struct StatusInputs<'a> {
    /// The policy as it is.
    pub policy: &'a SitePolicy,
    /// How the connection to the hub is.
    pub link: &'a LinkStatus,
    /// What is known of the hub's clock.
    pub clock: OtherClock,
    /// Whether task pods are kept from the network.
    pub enforcement: &'a Enforcement,
    /// What the hub wants.
    pub desired: &'a Assignment,
    /// What this hospital is to the protocol of masked sums.
    pub standing: &'a Standing,
    /// Where a part in a round is, as it is reported, and the words of a refusal.
    pub reason: &'a Told<'a>,
    /// The time.
    pub now: Timestamp,
}

/// What this hospital is to the protocol of masked sums, and where its memory stands.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its public signing key, as the API spells it.
    pub signing_key: String,
    /// The rosters that hold here, oldest first.
    pub rosters: Vec<AcceptedRoster>,
    /// One of them lists this hospital with its key.
    pub listed: bool,
    /// Why an offered roster does not hold.
    pub trouble: Option<String>,
    /// Entries of the ledger and its head.
    pub ledger: LedgerHead,
    /// What was seen of a volume that was set back.
    pub rolled_back: Option<RolledBack>,
    /// What the hub says of its ledger and the volume does not know.
    pub hub_claim: Option<HubClaim>,
    /// The hub's last signature over the ledger's end is by another key than the pinned one.
    pub other_hub_key: bool,
    /// Folders that nobody needs and that are there too long.
    pub overdue: Option<(usize, String)>,
    /// What of the limits is used.
    pub used: UsedAmounts,
}

/// The status as it should be.
pub fn decide(inputs: &StatusInputs<'_>) -> SitePolicyStatus {
    let generation = inputs.policy.metadata.generation;
    let before = inputs.policy.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let mut conditions = Conditions::from_status(before, generation, inputs.now);
    let connected = connected(&mut conditions, inputs.link);
    in_sync(&mut conditions, inputs.clock);
    let enforced = enforced(&mut conditions, inputs.enforcement);
    roster_accepted(&mut conditions, inputs.policy.spec.governance.is_some(), inputs.standing);
    rolled_back(&mut conditions, &inputs.policy.spec, inputs.standing);
    countersigned(&mut conditions, inputs.policy.spec.audit.is_some(), inputs.standing);
    match &inputs.standing.overdue {
        None => conditions.set("Erased", true, "InTime", "no folder is there longer than it may be"),
        Some((_, words)) => {
            conditions.set("Erased", false, "Overdue", format!("{words}; see the runbook ErasureOverdue"))
        }
    };
    conditions.set(VOLUME, true, "Usable", "the agent's volume takes what is written, and its ledger holds together");
    let policy = &inputs.policy.spec;
    match (closed(policy), connected, enforced) {
        // With nothing to run, neither the hub nor the network is missed.
        (Some((reason, what)), ..) if matches!((tasks(policy), models(policy)), (Room::Closed(_), Room::Closed(_))) => {
            conditions.set(READY, true, reason, format!("in force: {what}"))
        }
        (_, false, _) => {
            conditions.set(READY, false, "NotConnected", "the hub is not connected; see condition Connected")
        }
        (_, _, false) => conditions.set(READY, false, "NotEnforced", "no task starts; see condition Enforced"),
        (Some((reason, what)), ..) => conditions.set(READY, true, reason, format!("in force: {what}")),
        (None, ..) => conditions.set(READY, true, "InForce", "in force"),
    };
    SitePolicyStatus {
        observed_generation: generation,
        studies: offered(inputs),
        signing_key: Some(inputs.standing.signing_key.clone()),
        rosters: inputs.standing.rosters.clone(),
        used: Some(inputs.standing.used.clone()),
        ledger: Some(inputs.standing.ledger.clone()),
        conditions: conditions.into_list(),
    }
}

/// What the policy stops, in a word and in words; none where it stops nothing.
pub(super) fn closed(policy: &SitePolicySpec) -> Option<(&'static str, String)> {
    let all = "no training, evaluation or model runs";
    Some(match (tasks(policy), models(policy)) {
        (Room::Open, Room::Open) => return None,
        (Room::Closed(field), Room::Closed(_)) if policy.participation == Participation::Disabled => {
            ("Disabled", format!("{field}: {all}, and the hub learns only that this hospital is there and says no"))
        }
        (Room::Closed(tasks), Room::Closed(models)) => ("Suspended", format!("{tasks} and {models}: {all}")),
        (Room::Closed(field), models) => {
            let rest = if models == Room::Open { "models stay and come" } else { "models in use stay, none comes" };
            ("TasksSuspended", format!("{field}: no training or evaluation runs; {rest}"))
        }
        (tasks, Room::Closed(field)) => {
            let rest = if tasks == Room::Open {
                "trainings go on and start"
            } else {
                "what trains is finished, nothing starts"
            };
            ("ModelsSuspended", format!("{field}: no model is in use; {rest}"))
        }
        (Room::Kept(field), _) | (_, Room::Kept(field)) => (
            "Draining",
            format!("{field}: what runs is finished and models in use stay, nothing new starts or comes into use"),
        ),
    })
}

fn connected(conditions: &mut Conditions, link: &LinkStatus) -> bool {
    match link {
        LinkStatus::Connecting => conditions.unknown("Connected", "Connecting", "the hub is being dialled"),
        LinkStatus::Connected => conditions.set("Connected", true, "Connected", "the watch to the hub is open"),
        LinkStatus::Disconnected { reason, message } => conditions.set("Connected", false, reason, message),
    };
    *link == LinkStatus::Connected
}

/// Set once the hub's clock is known, and kept as it was while it is not.
fn in_sync(conditions: &mut Conditions, clock: OtherClock) {
    match (clock.in_sync(), clock.distance()) {
        (Some(true), _) => {
            conditions.set(CLOCK, true, "InSync", "this agent's clock and the hub's show one time");
        }
        (Some(false), Some(distance)) => {
            let side = if clock.now(Timestamp::UNIX_EPOCH) > Timestamp::UNIX_EPOCH { "behind" } else { "ahead of" };
            let message = format!(
                "this agent's clock is {distance} {side} the hub's: one of the two is wrong. The hub's deadlines are read by \
                 the hub's clock, and approvals, leases and limits of this hospital by this one; see to the time service of \
                 the node"
            );
            conditions.set(CLOCK, false, "Apart", message);
        }
        _ => {}
    }
}

fn enforced(conditions: &mut Conditions, enforcement: &Enforcement) -> bool {
    match enforcement {
        Enforcement::Unknown => conditions.unknown("Enforced", "Probing", "a probe pod tries to reach the network"),
        Enforcement::Enforced => conditions.set(
            "Enforced",
            true,
            "Probed",
            "a pod in the task namespace could reach the agent and nothing else",
        ),
        Enforcement::NotEnforced(what) => conditions.set(
            "Enforced",
            false,
            "NetworkPolicyNotEnforced",
            format!("task pods are not kept from the network ({what}); run a CNI that enforces NetworkPolicy"),
        ),
    };
    *enforcement == Enforcement::Enforced
}

fn roster_accepted(conditions: &mut Conditions, pinned: bool, standing: &Standing) {
    let ask = "ask the governance to sign a roster that lists this hospital with status.signingKey";
    let (good, reason, message) = match (pinned, standing.rosters.last()) {
        (false, _) => {
            (false, "NoGovernance", "spec.governance is not set, so only studies with protocol None can run".to_owned())
        }
        (true, None) => {
            let why = standing.trouble.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
            (
                false,
                "NoneAccepted",
                format!("no roster with the signatures that spec.governance asks for was offered{why}; {ask}"),
            )
        }
        (true, Some(newest)) if !standing.listed => (
            false,
            "NotListed",
            format!("roster version {} does not list this hospital with its key; {ask}", newest.version),
        ),
        (true, Some(newest)) => {
            let why =
                standing.trouble.as_ref().map(|why| format!("; another one was refused: {why}")).unwrap_or_default();
            (true, "Accepted", format!("roster version {} with {} hospitals holds{why}", newest.version, newest.sites))
        }
    };
    conditions.set("RosterAccepted", good, reason, message);
}

fn countersigned(conditions: &mut Conditions, pinned: bool, standing: &Standing) {
    match (pinned, standing.other_hub_key) {
        (false, _) => conditions.unknown(
            "Countersigned",
            "NoHubKey",
            "the hub's signatures over the ledger's end are kept and not checked: spec.audit names no key of the hub",
        ),
        (true, true) => conditions.set(
            "Countersigned",
            false,
            "OtherKey",
            "the hub signs the ledger's end by another key than spec.audit.hubKey: such signatures are not kept. Ask the \
             hub's administrators, by a path that you trust, whether they have changed it",
        ),
        (true, false) => conditions.set(
            "Countersigned",
            true,
            "Checked",
            "what the hub signs of the ledger's end is by the key that spec.audit names",
        ),
    };
}

fn rolled_back(conditions: &mut Conditions, policy: &SitePolicySpec, standing: &Standing) {
    let shut = |seen: &RolledBack| -> Vec<String> {
        let studies = policy.studies.iter().filter(|study| {
            let closed = seen.closed(&study.study, &study.uid);
            closed.is_some_and(|closed| closed.through(study.resume_after_round).is_none())
        });
        studies.map(|study| study.study.to_string()).collect()
    };
    let seen = standing.rolled_back.as_ref().map(|seen| (seen, shut(seen)));
    let claim = standing.hub_claim.as_ref().filter(|claim| claim.stands);
    let (set_back, reason, message) = match (seen, claim) {
        (Some((seen, shut)), _) if !shut.is_empty() => (
            true,
            "Restored",
            format!(
                "{} (noticed {}); open attempts were burned. No masked sum is given until spec.studies[].resumeAfterRound says which round is the last that this hospital may have taken part in, for: {}",
                seen.why,
                seen.at,
                shut.join(", ")
            ),
        ),
        (_, Some(claim)) => (
            true,
            "HubRemembersMore",
            format!(
                "{} (noticed {}); open attempts were burned. On the hub's word alone nothing else follows; if the volume was not restored, ask the hub's administrators",
                claim.why, claim.at
            ),
        ),
        (Some((seen, _)), None) => (
            false,
            "Resumed",
            format!("{} (noticed {}); no study of this policy is closed for it any more", seen.why, seen.at),
        ),
        (None, None) => (false, "Continuous", "the volume has forgotten nothing that was seen of it".to_owned()),
    };
    conditions.set("StateRolledBack", set_back, reason, message);
}

/// The newest round of each study that the hub offers, with all that an opt-in needs.
fn offered(inputs: &StatusInputs<'_>) -> Vec<OfferedStudy> {
    let mut newest: BTreeMap<&StudyKey, (&Item, &RoundWork)> = BTreeMap::new();
    for item in inputs.desired.items.iter().filter(|item| item.state != ItemState::Cancelled) {
        if let Work::Round(work) = &item.work
            && newest.get(&work.study).is_none_or(|(_, known)| known.round <= work.round)
        {
            newest.insert(&work.study, (item, work));
        }
    }
    let entry = |(study, (item, work)): (&StudyKey, (&Item, &RoundWork))| {
        let (reason, message) = (inputs.reason)(&item.uid, work.kind).unwrap_or((SiteReason::Offered, None));
        OfferedStudy {
            study: study.clone(),
            uid: work.study_uid.clone(),
            spec_digest: work.spec_digest,
            round: work.round,
            reason: reason_name(reason).to_owned(),
            message: message.map(|text| text.chars().take(MAX_MESSAGE).collect()),
        }
    };
    newest.into_iter().take(MAX_STUDIES).map(entry).collect()
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
