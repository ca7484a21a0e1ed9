//! The desired state that the hub publishes for one hospital, and the rules by
//! which the hospital takes it.
//!
//! Absence never means cancel: cancelling is an explicit tombstone, and an item
//! that merely disappears is an orphan that runs to its deadline. A lower
//! revision in one epoch is refused; a new epoch burns open attempts.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::approval::Approval;
use crate::digest::Digest;
use crate::ids::StudyKey;
use crate::ladder::Stage;
use crate::round::ProtocolStep;
use crate::stage_approval::StageApproval;
use crate::task::TaskKind;

/// Items of one assignment, and those that a hospital keeps in all: what the hub names and forgets must not fill a volume.
pub const MAX_ITEMS: usize = 10_000;

/// Bytes of the orphans that a hospital keeps, as [`Item::size`] counts them: a hub can name and forget something else in
/// each message, and what is in use here is a hundred models at the very most.
pub const MAX_ORPHAN_BYTES: usize = 4 << 20;

/// How long an orphan lives, whatever deadline the hub gave it.
const ORPHANED: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What one hospital is asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// Identity of the hub's store: a hub that lost it has another.
    pub hub_epoch: String,
    /// Grows with every change within an epoch.
    pub revision: u64,
    /// Digests of the governance-signed rosters that the hub holds, newest first; the objects are fetched by them. What
    /// counts is whether the keys that this hospital pinned have signed.
    #[serde(default)]
    pub rosters: Vec<Digest>,
    /// The work, keyed by `uid`.
    pub items: Vec<Item>,
}

/// Whether an item is to be done or dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ItemState {
    /// To be done.
    Active,
    /// Tombstone: stop and clean up, then stop reporting it.
    Cancelled,
    /// Set by the hospital: the hub no longer mentions it; it runs to its deadline.
    Orphaned,
}

/// One piece of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// UID of the TrainingRound or ModelPromotion.
    pub uid: String,
    /// To be done or dropped.
    pub state: ItemState,
    /// What.
    pub work: Work,
}

impl Item {
    /// That something of which nothing but the UID is known is over. A tombstone counts by its UID; the work in it is
    /// none that anybody does.
    pub fn tombstone(uid: impl Into<String>) -> Self {
        let none = Digest::of(b"");
        let work = DeployWork {
            release: "unreadable".into(),
            release_digest: none,
            model: none,
            stage: Stage::Shadow,
            approvals: Vec::new(),
            plan: None,
            stage_approvals: Vec::new(),
        };
        Self { uid: uid.into(), state: ItemState::Cancelled, work: Work::Deploy(work) }
    }

    /// About how many bytes it takes, in memory or written down.
    pub fn size(&self) -> usize {
        // UID, digests, numbers and times.
        const FIXED: usize = 600;
        let work = match &self.work {
            Work::Round(work) => work.study.to_string().len() + work.study_uid.len(),
            Work::Deploy(work) => {
                let one =
                    |approval: &Approval| 100 + approval.key_id.len() + approval.role.len() + approval.signature.len();
                // Four digests, and the names.
                let staged = |approval: &StageApproval| {
                    600 + approval.key_id.len() + approval.role.len() + approval.signature.len()
                };
                let (first, second) = (work.approvals.iter().map(one), work.stage_approvals.iter().map(staged));
                work.release.len() + first.chain(second).sum::<usize>()
            }
        };
        FIXED + work
    }
}

/// The kinds of work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Work {
    /// A part in a round.
    Round(RoundWork),
    /// A model to serve.
    Deploy(DeployWork),
}

/// This hospital's part in a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoundWork {
    /// Study by namespace and name.
    pub study: StudyKey,
    /// UID of the FederatedStudy: a deleted and recreated study is another one.
    pub study_uid: String,
    /// Digest of the study's spec as canonical JSON; the object itself is fetched by it, so
    /// that what is run is what the hospital approved.
    pub spec_digest: Digest,
    /// From 1.
    pub round: u32,
    /// Train or Evaluate.
    pub kind: TaskKind,
    /// Digest of the model to start from, or to evaluate.
    pub model: Digest,
    /// Digest of the model's tensor schema.
    pub schema: Digest,
    /// Number of hospitals in the round: fixes the scale of the ring encoding.
    pub roster_size: u32,
    /// The open attempt, 0 when none is.
    pub attempt: u32,
    /// The step of the attempt that this hospital is asked for, if any.
    pub step: Option<ProtocolStep>,
    /// Digest of the roster (without its signatures) whose keys hold in the open attempt; none without masks.
    pub roster: Option<Digest>,
    /// Digest of what the step starts from (adverts, this hospital's shares, survivors, their proof): an immutable
    /// object that is fetched by it. None where a step needs none.
    pub inputs: Option<Digest>,
    /// When the hub stops waiting.
    pub deadline: Timestamp,
}

/// A model to be served at a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeployWork {
    /// Name of the ModelRelease.
    pub release: String,
    /// Digest of the release's spec; the object is fetched by it.
    pub release_digest: Digest,
    /// Digest of the model.
    pub model: Digest,
    /// Stage asked for.
    pub stage: Stage,
    /// Signed approvals, judged by the hospital alone.
    pub approvals: Vec<Approval>,
    /// Digest of the clinical plan by which the model may climb; the object is fetched by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Digest>,
    /// Signed approvals of the second kind, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stage_approvals: Vec<StageApproval>,
}

/// What to do with an assignment that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// Take it.
    Take,
    /// Take it, and burn every open attempt: the hub lost its store.
    TakeNewEpoch,
    /// Refuse it: it is older than what is known.
    Stale,
}

/// Compares what is known with what came in.
pub fn acceptance(known: Option<&Assignment>, offered: &Assignment) -> Acceptance {
    match known {
        None => Acceptance::Take,
        Some(known) if known.hub_epoch != offered.hub_epoch => Acceptance::TakeNewEpoch,
        Some(known) if offered.revision < known.revision => Acceptance::Stale,
        Some(_) => Acceptance::Take,
    }
}

/// The items after an accepted assignment: those offered, and orphans that it no longer mentions.
///
/// An orphan is kept until its deadline, 30 days at most; a model in use, as long as there is room: the hub being away
/// takes none out of use. A tombstone that is no longer mentioned has been acknowledged and goes.
pub fn merge(known: Option<&Assignment>, offered: Assignment, now: Timestamp) -> Assignment {
    let mut merged = offered;
    let gone = known.into_iter().flat_map(|k| &k.items).filter(|old| {
        let mentioned = merged.items.iter().any(|new| new.uid == old.uid);
        let alive = match &old.work {
            Work::Round(round) => round.deadline > now,
            Work::Deploy(_) => true,
        };
        !mentioned && alive && old.state != ItemState::Cancelled
    });
    let mut orphans: Vec<Item> = gone.map(|old| orphaned(old, now)).collect();
    orphans.sort_by_key(|orphan| matches!(orphan.work, Work::Round(_)));
    orphans.truncate(MAX_ITEMS.saturating_sub(merged.items.len()));
    let mut room = MAX_ORPHAN_BYTES;
    orphans.retain(|orphan| match room.checked_sub(orphan.size()) {
        Some(left) => {
            room = left;
            true
        }
        None => false,
    });
    merged.items.extend(orphans);
    merged
}

fn orphaned(old: &Item, now: Timestamp) -> Item {
    let mut orphan = Item { state: ItemState::Orphaned, ..old.clone() };
    if let (Work::Round(work), ItemState::Active) = (&mut orphan.work, old.state) {
        work.deadline = work.deadline.min(now.checked_add(ORPHANED).unwrap_or(Timestamp::MAX));
    }
    orphan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(uid: &str, state: ItemState, deadline: &str) -> Item {
        let work = RoundWork {
            study: StudyKey::new("research", "hippocampus"),
            study_uid: "u".into(),
            spec_digest: Digest::of(b"spec"),
            round: 1,
            kind: TaskKind::Train,
            model: Digest::of(b"model"),
            schema: Digest::of(b"schema"),
            roster_size: 4,
            attempt: 0,
            step: None,
            roster: None,
            inputs: None,
            deadline: deadline.parse().unwrap(),
        };
        Item { uid: uid.into(), state, work: Work::Round(work) }
    }

    fn assignment(epoch: &str, revision: u64, items: Vec<Item>) -> Assignment {
        Assignment { hub_epoch: epoch.into(), revision, rosters: vec![], items }
    }

    #[test]
    fn an_older_revision_is_refused_and_a_new_epoch_is_told_apart() {
        let known = assignment("e1", 7, vec![]);
        for (epoch, revision, expected) in [
            ("e1", 6, Acceptance::Stale),
            ("e1", 7, Acceptance::Take),
            ("e1", 8, Acceptance::Take),
            ("e2", 1, Acceptance::TakeNewEpoch),
        ] {
            assert_eq!(acceptance(Some(&known), &assignment(epoch, revision, vec![])), expected);
        }
    }

    #[test]
    fn what_disappears_is_an_orphan_until_its_deadline_and_never_a_cancellation() {
        let (soon, late) = ("2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z");
        let now = "2026-01-02T00:00:00Z".parse().unwrap();
        let known = assignment(
            "e",
            1,
            vec![
                item("kept", ItemState::Active, late),
                item("gone", ItemState::Active, late),
                item("over", ItemState::Active, soon),
                item("tomb", ItemState::Cancelled, late),
            ],
        );
        let merged = merge(Some(&known), assignment("e", 2, vec![item("kept", ItemState::Cancelled, late)]), now);
        let seen: Vec<_> = merged.items.iter().map(|i| (i.uid.as_str(), i.state)).collect();
        assert_eq!(seen, [("kept", ItemState::Cancelled), ("gone", ItemState::Orphaned)]);
    }

    /// A hub that names rounds and forgets them, with deadlines in another age, must not fill the hospital's volume; nor
    /// may it push models out of use with them.
    #[test]
    fn orphans_are_bounded_in_time_and_number() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let known = assignment("e", 1, vec![item("far", ItemState::Active, "9999-01-01T00:00:00Z")]);
        let merged = merge(Some(&known), assignment("e", 2, vec![]), now);
        let Work::Round(work) = &merged.items[0].work else { unreachable!() };
        assert_eq!(work.deadline, "2026-02-01T00:00:00Z".parse().unwrap());
        let next = merge(Some(&merged), assignment("e", 3, vec![]), work.deadline - SignedDuration::from_secs(1));
        assert_eq!(next.items, merged.items, "and not anew with every assignment");
        assert!(merge(Some(&next), assignment("e", 4, vec![]), work.deadline).items.is_empty());

        let late = "2026-01-03T00:00:00Z";
        let mut items: Vec<Item> = (0..MAX_ITEMS).map(|n| item(&n.to_string(), ItemState::Active, late)).collect();
        let model = DeployWork {
            release: "r".into(),
            release_digest: Digest::of(b"r"),
            model: Digest::of(b"m"),
            stage: Stage::Shadow,
            approvals: vec![],
            plan: None,
            stage_approvals: Vec::new(),
        };
        items.push(Item { uid: "model".into(), state: ItemState::Active, work: Work::Deploy(model) });
        let merged = merge(Some(&assignment("e", 1, items)), assignment("e", 2, vec![]), now);
        assert!(merged.items.len() > 5_000 && merged.items.len() < MAX_ITEMS, "{}", merged.items.len());
        assert!(merged.items.iter().any(|item| item.uid == "model"));
    }

    /// A hub that sends a hundred of its largest messages, with other promotions in each and a new epoch each time, would
    /// have a hospital keep half a gigabyte. The figures: what a hospital keeps of them is 4 MiB of orphans beside the
    /// message that came last, whatever was sent before.
    #[test]
    fn a_hundred_of_the_largest_messages_leave_four_mebibytes() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let largest = |epoch: usize| {
            let approval =
                Approval { key_id: "k".repeat(63), role: "r".repeat(63), expiry: now, signature: "s".repeat(88) };
            let model = DeployWork {
                release: "r".repeat(253),
                release_digest: Digest::of(b"r"),
                model: Digest::of(b"m"),
                stage: Stage::Shadow,
                approvals: vec![approval; 20],
                plan: None,
                stage_approvals: Vec::new(),
            };
            // A message is at most 5 MiB.
            let item = |n: usize| Item {
                uid: format!("{epoch}-{n}"),
                state: ItemState::Active,
                work: Work::Deploy(model.clone()),
            };
            let one = item(0).size();
            assignment(&epoch.to_string(), 1, (0..(5 << 20) / one).map(item).collect())
        };
        let mut known = largest(0);
        for epoch in 1..100 {
            known = merge(Some(&known), largest(epoch), now);
        }
        let kept: usize = known.items.iter().map(Item::size).sum();
        assert!(kept <= MAX_ORPHAN_BYTES + (5 << 20), "{kept} bytes");
        let orphans = known.items.iter().filter(|item| item.state == ItemState::Orphaned);
        assert!(orphans.map(Item::size).sum::<usize>() <= MAX_ORPHAN_BYTES);
    }
}
