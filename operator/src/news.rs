//! What a hospital said anew, so that a report of many pieces of work wakes only those that it is news for. Pure.

use std::collections::{BTreeMap, BTreeSet};

use consilium_federation::report::Report;

/// What changed of a hospital.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing that anyone acts on.
    Nothing,
    /// What it says, or sent, of these pieces of work, by UID; of none when it only works from a newer assignment, which
    /// may have held tombstones.
    Work(BTreeSet<String>),
    /// Anything.
    Everything,
}

/// What a report says that the one before did not.
pub(crate) fn differences(known: &Report, new: &Report) -> News {
    // What is not said of single pieces of work decides about all of them: which keys it accepts, which life it is in.
    if (&known.hub_epoch, &known.agent_version, &known.rosters) != (&new.hub_epoch, &new.agent_version, &new.rosters) {
        return News::Everything;
    }
    let rounds = |report: &Report| -> BTreeMap<_, _> {
        report.rounds.iter().map(|round| ((round.uid.clone(), round.kind as u8), round.clone())).collect()
    };
    let deployments = |report: &Report| -> BTreeMap<_, _> {
        report.deployments.iter().map(|deployment| (deployment.uid.clone(), deployment.clone())).collect()
    };
    let rounds = unlike(&rounds(known), &rounds(new)).into_iter().map(|(uid, _)| uid);
    let deployments = unlike(&deployments(known), &deployments(new));
    let uids: BTreeSet<String> = rounds.chain(deployments).collect();
    if uids.is_empty() && known.revision == new.revision { News::Nothing } else { News::Work(uids) }
}

/// The keys whose values are not the same in both.
fn unlike<K: Ord + Clone, V: PartialEq>(known: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Vec<K> {
    let keys: BTreeSet<&K> = known.keys().chain(new.keys()).collect();
    keys.into_iter().filter(|key| known.get(key) != new.get(key)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use consilium_federation::Digest;
    use consilium_federation::report::{DeployReport, LedgerEnd, RolloutReason, RoundReport};
    use consilium_federation::round::SiteReason;
    use consilium_federation::task::TaskKind;

    use super::*;

    fn round(uid: &str, reason: SiteReason) -> RoundReport {
        RoundReport { uid: uid.into(), kind: TaskKind::Train, reason, message: None, evaluation: None }
    }

    fn report(rounds: Vec<RoundReport>) -> Report {
        let deployment =
            DeployReport { uid: "d".into(), reason: RolloutReason::Serving, serving: None, stage: None, message: None };
        Report {
            hub_epoch: "e".into(),
            revision: 1,
            agent_version: "1".into(),
            rosters: vec![],
            ledger: None,
            rounds,
            deployments: vec![deployment],
        }
    }

    /// A hospital with work of a hundred studies must not wake all of them whenever one task takes a step.
    #[test]
    fn a_report_is_news_only_for_what_it_says_anew() {
        use SiteReason::{Queued, Ready, Training};
        let known = report(vec![round("a", Training), round("b", Training), round("c", Queued)]);
        let work = |uids: &[&str]| News::Work(uids.iter().map(|uid| (*uid).to_owned()).collect());
        let of = |new: &Report| differences(&known, new);
        assert_eq!(of(&known), News::Nothing);
        let ready = report(vec![round("a", Training), round("b", Ready), round("c", Queued)]);
        assert_eq!(of(&ready), work(&["b"]));
        let fewer = report(vec![round("a", Training), round("d", Queued), round("c", Queued)]);
        assert_eq!(of(&fewer), work(&["b", "d"]), "what came, and what is listed no longer");
        let mut withdrawn = known.clone();
        withdrawn.deployments[0].reason = RolloutReason::Withdrawn;
        assert_eq!(of(&withdrawn), work(&["d"]));
        // A ledger that grew is nobody's news; a newer assignment may have held tombstones.
        let ledger = Some(LedgerEnd { entries: 7, head: Digest::of(b"h") });
        assert_eq!(of(&Report { ledger, ..known.clone() }), News::Nothing);
        assert_eq!(of(&Report { revision: 2, ..known.clone() }), work(&[]));
        assert_eq!(of(&Report { rosters: vec![Digest::of(b"r")], ..known.clone() }), News::Everything);
        assert_eq!(of(&Report { hub_epoch: "f".into(), ..known.clone() }), News::Everything);
    }
}
