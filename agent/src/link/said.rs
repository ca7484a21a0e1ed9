//! What the ledger holds of reports: each thing once, when the hub is told it for the first time.

use std::collections::BTreeMap;

use consilium_federation::Digest;
use consilium_federation::report::{DeployReport, Evaluation, Report, RoundReport};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::policy::reason_name;
use crate::state::{Entry, Reported, Said};

/// Parts that one entry lists.
const MOST: usize = 50;
/// Entries at once, and one more for each [`REFILL`]: how often anything changes is the hub's to choose. A report with a
/// vote or a number in it always has its entry: those the hospital's own consent bounds.
const ENTRIES: u64 = 500;
const REFILL: SignedDuration = SignedDuration::from_secs(60);

type Parts = BTreeMap<(String, String), Said>;

/// What the hub was told last, as the ledger has it.
#[derive(Default)]
pub(super) struct Account {
    parts: Parts,
    message: Option<Digest>,
    spent: u64,
    since: Option<Timestamp>,
    unwritten: u64,
}

impl Account {
    /// The entry for what is new in a report; none if nothing is, or if there were too many.
    pub(super) fn news(&mut self, report: &Report, now: Timestamp) -> Option<Entry> {
        let message = digest(report);
        if self.message == Some(message) {
            return None;
        }
        let parts = parts(report);
        let new: Vec<&Said> =
            parts.iter().filter(|(key, said)| self.parts.get(*key) != Some(said)).map(|(_, s)| s).collect();
        let numbers = new.iter().any(|said| said.vote.is_some());
        if !numbers && !self.has_room(now) {
            self.unwritten += 1;
            self.message = Some(message);
            return None;
        }
        let silent = self.parts.keys().filter(|key| !parts.contains_key(key)).map(|(uid, _)| uid.clone());
        // Those with numbers first: they are never left out.
        let (first, rest): (Vec<&Said>, Vec<&Said>) = new.iter().partition(|said| said.vote.is_some());
        let room = MOST.max(first.len());
        let said: Vec<Said> = first.into_iter().chain(rest).take(room).cloned().collect();
        Some(Entry::Reported(Box::new(Reported {
            message: Some(message),
            more: (new.len() - said.len()) as u64,
            said,
            silent: silent.take(MOST).collect(),
            rosters: report.rosters.clone(),
            unwritten: self.unwritten,
        })))
    }

    /// The entry is in the ledger.
    pub(super) fn written(&mut self, report: &Report) {
        (self.parts, self.message, self.unwritten) = (parts(report), Some(digest(report)), 0);
    }

    fn has_room(&mut self, now: Timestamp) -> bool {
        let since = *self.since.get_or_insert(now);
        let refills = now.duration_since(since).as_secs() / REFILL.as_secs();
        if refills > 0 {
            self.spent = self.spent.saturating_sub(refills.unsigned_abs());
            self.since = Some(since + REFILL * i32::try_from(refills).unwrap_or(i32::MAX));
        }
        let room = self.spent < ENTRIES;
        self.spent += u64::from(room);
        room
    }
}

fn digest(report: &Report) -> Digest {
    Digest::of(&consilium_proto::said(report))
}

fn parts(report: &Report) -> Parts {
    let rounds = report.rounds.iter().map(of_round);
    let all = rounds.chain(report.deployments.iter().map(of_model));
    all.map(|said| ((said.uid.clone(), said.part.clone()), said)).collect()
}

fn of_round(round: &RoundReport) -> Said {
    Said {
        uid: round.uid.clone(),
        part: round.kind.as_str().to_owned(),
        reason: reason_name(round.reason).to_owned(),
        words: round.message.clone(),
        serving: None,
        stage: None,
        vote: round.evaluation.as_ref().map(|evaluation| format!("{:?}", evaluation.vote)),
        numbers: round.evaluation.as_ref().and_then(numbers),
    }
}

fn numbers(evaluation: &Evaluation) -> Option<Value> {
    let sums = evaluation.sums.map(|sums| json!({"cases": sums.cases, "dice": sums.dice}));
    let published = evaluation.published.as_ref();
    (sums.is_some() || published.is_some()).then(|| json!({"sums": sums, "published": published}))
}

fn of_model(model: &DeployReport) -> Said {
    Said {
        uid: model.uid.clone(),
        part: "Model".to_owned(),
        reason: format!("{:?}", model.reason),
        words: model.message.clone(),
        serving: model.serving,
        stage: model.stage.map(|stage| stage.to_string()),
        vote: None,
        numbers: None,
    }
}

#[cfg(test)]
mod tests {
    use consilium_federation::gate::{CaseSums, Vote};
    use consilium_federation::report::RolloutReason;
    use consilium_federation::round::SiteReason;
    use consilium_federation::task::TaskKind;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn round(uid: &str, reason: SiteReason) -> RoundReport {
        RoundReport { uid: uid.into(), kind: TaskKind::Train, reason, message: None, evaluation: None }
    }

    fn report(rounds: Vec<RoundReport>) -> Report {
        Report {
            hub_epoch: "e".into(),
            revision: 1,
            agent_version: "1".into(),
            rosters: vec![],
            ledger: None,
            rounds,
            deployments: vec![],
        }
    }

    fn reported(entry: Option<Entry>) -> Reported {
        let Some(Entry::Reported(reported)) = entry else { panic!("{entry:?}") };
        *reported
    }

    /// An auditor reads when the hub was told what, and a number that it was told as it was told; what it was told again
    /// every half minute fills no volume.
    #[test]
    fn each_thing_that_is_said_has_one_entry() {
        let mut account = Account::default();
        let mut first = report(vec![round("a", SiteReason::Training), round("b", SiteReason::Queued)]);
        first.deployments.push(DeployReport {
            uid: "m".into(),
            reason: RolloutReason::Serving,
            serving: None,
            stage: None,
            message: None,
        });
        assert_eq!(reported(account.news(&first, at(0))).said.len(), 3);
        account.written(&first);
        assert_eq!(account.news(&first, at(30)), None);
        let mut second = first.clone();
        second.rounds.remove(1);
        second.rounds[0].evaluation =
            Some(Evaluation { vote: Vote::Pass, sums: Some(CaseSums { cases: 3, dice: 2.5 }), published: None });
        let said = reported(account.news(&second, at(31)));
        assert_eq!(
            (said.said.len(), said.silent, said.said[0].vote.as_deref()),
            (1, vec!["b".to_owned()], Some("Pass"))
        );
        assert_eq!(said.said[0].numbers.as_ref().unwrap()["sums"]["dice"], 2.5);
        assert_ne!(said.message, Some(digest(&first)));
        // Not written, so it is news still: what cannot be written down does not leave.
        assert_eq!(reported(account.news(&second, at(31))).said.len(), 1);
    }

    /// A hub that offers ten thousand rounds under new names with each message would fill the volume by what it is told; and
    /// it must not get a vote out past the ledger that way.
    #[test]
    fn a_hub_that_asks_for_much_does_not_fill_the_ledger_and_a_vote_is_always_in_it() {
        let mut account = Account::default();
        let mut written = 0;
        for n in 0..3000 {
            let rounds = (0..200).map(|r| round(&format!("{n}-{r}"), SiteReason::DeniedByPolicy)).collect();
            let said = report(rounds);
            if let Some(entry) = account.news(&said, at(n / 25)) {
                let entry = reported(Some(entry));
                assert!(entry.said.len() <= MOST && entry.silent.len() <= MOST && entry.more >= 150);
                account.written(&said);
                written += 1;
            }
        }
        assert!((ENTRIES..ENTRIES + 5).contains(&written), "{written}");
        let mut voted = report((0..200).map(|r| round(&format!("last-{r:03}"), SiteReason::Offered)).collect());
        voted.rounds[199].evaluation = Some(Evaluation { vote: Vote::Fail, sums: None, published: None });
        let entry = reported(account.news(&voted, at(120)));
        assert!(entry.said[0].vote.as_deref() == Some("Fail") && entry.unwritten > 1000, "{}", entry.unwritten);
    }
}
