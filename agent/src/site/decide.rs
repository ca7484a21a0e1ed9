//! What the SitePolicy's status says: pure.

use std::collections::BTreeMap;

use consilium_crds::SitePolicy;
use consilium_crds::conditions::{Conditions, READY};
use consilium_crds::site_policy::{
    AcceptedRoster, LedgerHead, OfferedStudy, Participation, SitePolicySpec, SitePolicyStatus,
};
use consilium_federation::StudyKey;
use consilium_federation::assignment::{Assignment, Item, ItemState, RoundWork, Work};
use consilium_federation::round::SiteReason;
use consilium_federation::task::TaskKind;
use jiff::Timestamp;

use crate::Enforcement;
use crate::link::LinkStatus;
use crate::policy::reason_name;
use crate::state::{HubClaim, RolledBack};

/// Studies that the status lists at most, the most that the schema takes.
const MAX_STUDIES: usize = 200;

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
}

/// The status as it should be.
pub fn decide(inputs: &StatusInputs<'_>) -> SitePolicyStatus {
    let generation = inputs.policy.metadata.generation;
    let before = inputs.policy.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let mut conditions = Conditions::from_status(before, generation, inputs.now);
    let connected = connected(&mut conditions, inputs.link);
    let enforced = enforced(&mut conditions, inputs.enforcement);
    roster_accepted(&mut conditions, inputs.policy.spec.governance.is_some(), inputs.standing);
    rolled_back(&mut conditions, &inputs.policy.spec, inputs.standing);
    let participation = inputs.policy.spec.participation;
    match (participation, connected, enforced) {
        (Participation::Disabled, ..) => {
            conditions.set(READY, true, "Disabled", "in force: spec.participation is Disabled, nothing runs")
        }
        (_, false, _) => {
            conditions.set(READY, false, "NotConnected", "the hub is not connected; see condition Connected")
        }
        (_, _, false) => conditions.set(READY, false, "NotEnforced", "no task starts; see condition Enforced"),
        (Participation::Drain, ..) => {
            conditions.set(READY, true, "Draining", "in force: what runs is finished, nothing new starts")
        }
        (Participation::Enabled, ..) => conditions.set(READY, true, "InForce", "in force"),
    };
    SitePolicyStatus {
        observed_generation: generation,
        studies: offered(inputs),
        signing_key: Some(inputs.standing.signing_key.clone()),
        rosters: inputs.standing.rosters.clone(),
        ledger: Some(inputs.standing.ledger.clone()),
        conditions: conditions.into_list(),
    }
}

fn connected(conditions: &mut Conditions, link: &LinkStatus) -> bool {
    match link {
        LinkStatus::Connecting => conditions.unknown("Connected", "Connecting", "the hub is being dialled"),
        LinkStatus::Connected => conditions.set("Connected", true, "Connected", "the watch to the hub is open"),
        LinkStatus::Disconnected { reason, message } => conditions.set("Connected", false, reason, message),
    };
    *link == LinkStatus::Connected
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
mod tests {
    use consilium_crds::conditions::status_of;
    use consilium_federation::Digest;

    use super::*;

    fn policy(participation: &str) -> SitePolicy {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "consilium.health/v1alpha1", "kind": "SitePolicy",
            "metadata": {"name": "default", "generation": 3},
            "spec": {
                "participation": participation, "maxGPUs": 0, "registries": [],
                "resources": {"cpu": "1", "memory": "1Gi", "workClaim": "work"},
                "aggregation": {"minContributors": 3}
            }
        }))
        .unwrap()
    }

    fn item(uid: &str, study: &str, round: u32, state: ItemState) -> Item {
        let work = RoundWork {
            study: StudyKey::new("research", study),
            study_uid: "study-uid".into(),
            spec_digest: Digest::of(b"spec"),
            round,
            kind: TaskKind::Train,
            model: Digest::of(b"model"),
            schema: Digest::of(b"schema"),
            roster_size: 4,
            attempt: 0,
            step: None,
            roster: None,
            inputs: None,
            deadline: "2026-01-01T00:00:00Z".parse().unwrap(),
        };
        Item { uid: uid.into(), state, work: Work::Round(work) }
    }

    fn standing() -> Standing {
        Standing {
            signing_key: "key".into(),
            rosters: vec![AcceptedRoster { version: 3, digest: Digest::of(b"roster"), sites: 4 }],
            listed: true,
            trouble: None,
            ledger: LedgerHead { entries: 7, head: Digest::of(b"head"), countersignature: None },
            rolled_back: None,
            hub_claim: None,
        }
    }

    /// An administrator must read from the policy alone what stands between the hospital and its first masked round.
    #[test]
    fn the_roster_is_told_with_what_to_do() {
        let told = |governance: bool, standing: Standing| {
            let mut policy = policy("Enabled");
            if governance {
                policy.spec.governance = Some(
                    serde_json::from_value(serde_json::json!(
                        {"federation": "north", "required": 1, "keys": [{"id": "chair", "publicKey": ""}]}
                    ))
                    .unwrap(),
                );
            }
            let status = decide(&StatusInputs {
                policy: &policy,
                link: &LinkStatus::Connected,
                enforcement: &Enforcement::Enforced,
                desired: &Assignment { hub_epoch: "e".into(), revision: 1, rosters: vec![], items: vec![] },
                standing: &standing,
                reason: &|_, _| None,
                now: "2026-01-01T00:00:00Z".parse().unwrap(),
            });
            let condition = |name: &str| {
                let found = status.conditions.iter().find(|c| c.type_ == name).unwrap();
                (found.status == "True", found.reason.clone(), found.message.clone())
            };
            (condition("RosterAccepted"), condition("StateRolledBack"), status)
        };
        let (roster, back, status) = told(true, standing());
        assert!(roster.0 && roster.2.contains("version 3") && !back.0);
        assert_eq!((status.signing_key.as_deref(), status.ledger.map(|l| l.entries)), (Some("key"), Some(7)));
        assert_eq!(told(false, standing()).0.1, "NoGovernance");
        assert_eq!(told(true, Standing { listed: false, ..standing() }).0.1, "NotListed");
        let none = Standing { rosters: vec![], trouble: Some("1 valid signature".into()), ..standing() };
        let (roster, ..) = told(true, none);
        assert!(roster.1 == "NoneAccepted" && roster.2.contains("1 valid signature"), "{roster:?}");
    }

    /// What keeps the hospital out must be told with the way back in, and end where that was taken.
    #[test]
    fn a_roll_back_is_told_until_the_policy_resumes_and_a_claim_while_the_hub_makes_it() {
        let told = |resume: Option<u32>, seen: bool, claim: Option<bool>| {
            let mut policy = policy("Enabled");
            policy.spec.studies = crate::policy::tests::policy(&[]).studies;
            policy.spec.studies[0].resume_after_round = resume;
            let at = "2026-01-01T00:00:00Z".parse().unwrap();
            let study = &policy.spec.studies[0];
            let closed =
                vec![crate::state::Closed { study: study.study.clone(), uid: study.uid.clone(), resumed: Some(2) }];
            let standing = Standing {
                rolled_back: seen.then(|| RolledBack { why: "a head that it never had".into(), at, closed }),
                hub_claim: claim.map(|stands| HubClaim { why: "the hub says more".into(), at, stands }),
                ..standing()
            };
            let mut conditions = Conditions::from_status(&[], None, at);
            rolled_back(&mut conditions, &policy.spec, &standing);
            let found = conditions.into_list().pop().unwrap();
            (found.status == "True", found.reason, found.message)
        };
        for resume in [None, Some(2)] {
            let (back, reason, message) = told(resume, true, None);
            assert!(back && reason == "Restored", "{message}");
            assert!(message.contains("resumeAfterRound") && message.contains("research/hippocampus"), "{message}");
        }
        assert_eq!(told(Some(3), true, None).1, "Resumed");
        for (seen, claim, back, reason) in [
            (false, None, false, "Continuous"),
            (false, Some(true), true, "HubRemembersMore"),
            (false, Some(false), false, "Continuous"),
            (true, Some(true), true, "HubRemembersMore"),
        ] {
            let (found, found_reason, message) = told(Some(3), seen, claim);
            assert_eq!((found, found_reason.as_str()), (back, reason), "{message}");
        }
    }

    fn status(participation: &str, link: LinkStatus, enforcement: Enforcement, items: Vec<Item>) -> SitePolicyStatus {
        decide(&StatusInputs {
            policy: &policy(participation),
            link: &link,
            enforcement: &enforcement,
            desired: &Assignment { hub_epoch: "e".into(), revision: 1, rosters: vec![], items },
            standing: &standing(),
            reason: &|uid, _| (uid == "b").then(|| (SiteReason::DeniedByPolicy, Some("why".into()))),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
        })
    }

    #[test]
    fn ready_says_whether_something_would_run() {
        let lost = || LinkStatus::Disconnected { reason: "ProxyIntercepts", message: "m".into() };
        let open = || LinkStatus::Connected;
        for (participation, link, enforcement, ready) in [
            ("Enabled", open(), Enforcement::Enforced, "True"),
            ("Enabled", lost(), Enforcement::Enforced, "False"),
            ("Enabled", open(), Enforcement::NotEnforced("x".into()), "False"),
            ("Enabled", open(), Enforcement::Unknown, "False"),
            ("Drain", open(), Enforcement::Enforced, "True"),
            ("Disabled", lost(), Enforcement::Unknown, "True"),
        ] {
            let status = status(participation, link.clone(), enforcement, vec![]);
            assert_eq!(status_of(&status.conditions, READY), Some(ready), "{participation} {link:?}");
            assert_eq!(status.observed_generation, Some(3));
        }
        let lost = status("Enabled", lost(), Enforcement::Enforced, vec![]);
        assert!(lost.conditions.iter().any(|c| c.type_ == "Connected" && c.reason == "ProxyIntercepts"));
    }

    /// An administrator copies uid and specDigest from here into the spec to opt in.
    #[test]
    fn each_study_is_offered_once_with_its_newest_round() {
        let items = vec![
            item("a", "lung", 1, ItemState::Orphaned),
            item("b", "lung", 2, ItemState::Active),
            item("c", "liver", 7, ItemState::Cancelled),
            item("d", "heart", 1, ItemState::Active),
        ];
        let status = status("Enabled", LinkStatus::Connected, Enforcement::Enforced, items);
        let seen: Vec<_> = status.studies.iter().map(|s| (s.study.name.as_str(), s.round, s.reason.as_str())).collect();
        assert_eq!(seen, [("heart", 1, "Offered"), ("lung", 2, "DeniedByPolicy")]);
        assert_eq!((status.studies[0].uid.as_str(), status.studies[0].spec_digest), ("study-uid", Digest::of(b"spec")));
    }
}
