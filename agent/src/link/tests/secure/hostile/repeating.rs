//! Attacks by asking again: a second attempt, a second round, an earlier session, an older desired state.

use consilium_federation::assignment::Acceptance;

use super::*;
use crate::policy::{Barrier, Decision};

/// Two sums over one model are what a curious hub would want most.
#[tokio::test]
async fn after_the_release_there_is_no_second_attempt() {
    attack(async |attack| {
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Unmask).await;
        attack.publish(&SITES, &attack.ask(TaskKind::Train, 2, ProtocolStep::Advertise, None));
        for (of, site) in SITES.iter().enumerate() {
            attack.denies(of, "second sum").await;
            assert_eq!(attack.agents[of].ctx.state.phase(&key(2)).unwrap(), None);
            assert_eq!(attack.sent(site, 2), 0);
        }
    })
    .await;
}

/// Numbers that do not change between rounds are summed once for a model, also the metric with its counts of cases.
#[tokio::test]
async fn the_metric_of_a_model_is_summed_once() {
    attack(async |attack| {
        attack.run_to(TaskKind::Evaluate, 1, ProtocolStep::Unmask).await;
        assert_sum_is_of(attack);
        attack.publish(&SITES, &attack.ask(TaskKind::Evaluate, 2, ProtocolStep::Advertise, None));
        for (of, site) in SITES.iter().enumerate() {
            attack.denies(of, "second sum").await;
            assert_eq!(attack.sent(site, 2), 0);
        }
    })
    .await;
}

/// The hub has what it may have: the sum.
fn assert_sum_is_of(attack: &Attack) {
    attack.machine(|hub| hub.close_unmasking().unwrap());
    let unmasking = attack.machine(|hub| hub.unmasking().unwrap());
    let chunks = attack.hub.chunks.borrow().clone();
    let uploads: Vec<_> = SITES.iter().map(|s| &chunks[&((*s).to_owned(), 1, 1)][..]).collect();
    let mut total = Vec::new();
    unmasking.sum_chunk(1, &uploads, std::num::NonZeroUsize::MIN, &mut total).unwrap();
    let plain = (0..SITES.len()).map(|of| sum::from_bytes(&vector(of, TaskKind::Evaluate, attack.variant).0[1])[0]);
    assert_eq!(total, [plain.fold(0, u32::wrapping_add)]);
}

/// The same under another round's name and number: the base is what counts. The refusal names the session, there is no
/// task for the round, and no advert.
#[tokio::test]
async fn a_second_round_on_a_released_base_is_denied_with_its_session() {
    attack(async |attack| {
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Unmask).await;
        let session = attack.machine(|hub| hub.session().unwrap().sid()).to_string();
        attack.go_on(&attack.agents, RoundOf { model: model(), ..next_round() });
        let work = attack.ask(TaskKind::Train, 2, ProtocolStep::Advertise, None);
        assert_eq!((work.round, work.model), (4, model().digest()));
        attack.publish(&SITES, &work);
        for (of, site) in SITES.iter().enumerate() {
            attack.denies(of, &format!("in session {session}; a second sum")).await;
            assert_eq!(attack.sent(site, 2), 0);
        }
        // As the hub would begin such a round: before there is an attempt, and before there is a task.
        let begun = RoundWork { attempt: 0, step: None, roster: None, ..work };
        for agent in &attack.agents {
            let decision = agent.ctx.judge("round-4", &begun, Some(&secure_spec()), Barrier::CreateTask).unwrap();
            let Decision::Refused { reason, message } = decision else { panic!("{decision:?}") };
            assert_eq!(reason, SiteReason::DeniedByPolicy);
            assert!(message.contains(&session), "{message}");
        }
    })
    .await;
}

/// "We lost our store, please do it again": what was released stays released, and what was open is burned.
#[tokio::test]
async fn a_hub_that_says_it_lost_its_store_gets_no_second_sum() {
    attack(async |attack| {
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Unmask).await;
        let sent = attack.sent("alder", 1);
        for (epoch, attempt) in [("f", 1), ("g", 2)] {
            let work = attack.ask(TaskKind::Train, attempt, ProtocolStep::Advertise, None);
            attack.publish_as(&["alder"], &work, attack.rosters(), (epoch, 1));
            let heard = |entry: &Entry| matches!(entry, Entry::NewEpoch { new, .. } if new == epoch);
            until_entry(&attack.agents[0], "the new epoch", heard).await;
        }
        attack.denies(0, "second sum").await;
        assert_eq!((attack.sent("alder", 1), attack.sent("alder", 2)), (sent, 0));
    })
    .await;
}

/// Messages of an earlier attempt, and bytes that are none, open nothing.
#[tokio::test]
async fn a_replayed_session_and_garbage_are_refused() {
    attack(async |attack| {
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Advertise).await;
        let old = attack.machine(|hub| hub.close_adverts().unwrap());
        attack.run_to(TaskKind::Train, 2, ProtocolStep::Advertise).await;
        attack.press("alder", 2, ProtocolStep::Share, &old);
        let garbage = Some(attack.hub.keep(b"garbage".to_vec()));
        attack.publish(&["birch"], &attack.ask(TaskKind::Train, 2, ProtocolStep::Share, garbage));
        attack.refuses(0, 2, "is for attempt").await;
        attack.refuses(1, 2, "expected a").await;
        assert!(["alder", "birch"].iter().all(|site| attack.hub.times(site, 2, "Share") == 0));
    })
    .await;
}

/// So do the shares, survivors and proofs of one, which all hospitals signed.
#[tokio::test]
async fn shares_survivors_and_proofs_of_an_earlier_session_are_refused() {
    attack(async |attack| {
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Agree).await;
        let (bundle, statement) = attack
            .machine(|hub| (hub.bundle_for(&SiteId::new("alder").unwrap()).unwrap(), hub.statement().unwrap().clone()));
        let proof = attack.machine(|hub| hub.close_agreement().unwrap());
        attack.run_to(TaskKind::Train, 2, ProtocolStep::Share).await;
        attack.press("alder", 2, ProtocolStep::Upload, &bundle);
        attack.refuses(0, 2, "message is for session").await;
        attack.machine(|hub| hub.close_shares().unwrap());
        for site in &SITES[1..] {
            let bundle = attack.machine(|hub| hub.bundle_for(&SiteId::new(*site).unwrap()).unwrap());
            attack.press(site, 2, ProtocolStep::Upload, &bundle);
        }
        until("uploads", attack.hub.heard.subscribe(), |_| attack.machine(|hub| hub.heard().len()) == 3).await;
        attack.press("cedar", 2, ProtocolStep::Agree, &statement);
        attack.press("damson", 2, ProtocolStep::Unmask, &proof);
        attack.refuses(2, 2, "survivor set is for session").await;
        attack.refuses(3, 2, "survivor set is for session").await;
        assert!(SITES.iter().all(|site| attack.hub.times(site, 2, "Agree") == 0));
        assert!(SITES.iter().all(|site| attack.hub.times(site, 2, "Unmask") == 0));
    })
    .await;
}

/// A colluding hospital signs two adverts, so that the hub can open two sessions in one attempt: the victim is in one.
#[tokio::test]
async fn a_second_session_in_one_attempt_is_refused() {
    attack(async |attack| {
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Share).await;
        let mut list = attack.machine(|hub| hub.advert_list().unwrap().clone());
        let mut body = list.adverts[1].body.clone();
        body.nonce = [8; 32];
        list.adverts[1] = attack.colluder(1).sign(body);
        attack.press("alder", 1, ProtocolStep::Share, &list);
        attack.refuses(0, 1, "one session, one answer").await;
        assert_eq!(attack.hub.said("alder", 1, "Share").len(), 1);
    })
    .await;
}

/// A desired state that is older than the known one is not taken; an older step or attempt under a new number gets what
/// was said to it before, or nothing.
#[tokio::test]
async fn an_older_revision_step_or_attempt_gets_nothing_new() {
    attack(async |attack| {
        attack.run_to(TaskKind::Train, 1, ProtocolStep::Share).await;
        attack.machine(|hub| hub.close_shares().unwrap());
        let bundle = attack.machine(|hub| hub.bundle_for(&SiteId::new("alder").unwrap()).unwrap());
        attack.run_to(TaskKind::Train, 2, ProtocolStep::Share).await;
        let said = |attack: &Attack| -> BTreeSet<Vec<u8>> {
            attack.hub.heard.borrow().iter().filter(|(s, ..)| s == VICTIM).map(|(.., bytes)| bytes.clone()).collect()
        };
        let before = said(attack);

        let agent = &attack.agents[0];
        let known = agent.ctx.state.assignment().unwrap().unwrap();
        let inputs = Some(attack.hub.keep(bundle.to_bytes()));
        let old = attack.ask(TaskKind::Train, 1, ProtocolStep::Upload, inputs);
        attack.publish_as(&["alder"], &old, attack.rosters(), ("e", known.revision - 1));
        let look = async {
            while agent.ctx.metrics.assignments.with_label_values(&["stale"]).get() == 0 {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(LIMIT, look).await.is_ok(), "the older revision never came");
        assert_eq!(agent.ctx.state.assignment().unwrap(), Some(known.clone()));
        let stale = Assignment { revision: known.revision - 1, ..known };
        assert_eq!(agent.ctx.state.accept(stale, agent.ctx.now(), agent.ctx.now()).unwrap(), Acceptance::Stale);

        // The step before, under a new number: the very bytes of then.
        let times = attack.hub.times("alder", 2, "Advertise");
        attack.publish(&["alder"], &attack.ask(TaskKind::Train, 2, ProtocolStep::Advertise, None));
        until("it again", attack.hub.heard.subscribe(), |_| attack.hub.times("alder", 2, "Advertise") > times).await;
        assert_eq!(said(attack), before);
        let act = attack.hospitals[0].shown.act.lock().unwrap().clone().unwrap();
        assert_eq!((act.attempt, act.step.as_str()), (2, "Share"), "what is shown never moves back");

        // The attempt before: it was given up when this one was opened.
        let sent = attack.sent("alder", 1);
        attack.publish(&["alder"], &old);
        let burned = |entry: &Entry| matches!(entry, Entry::AttemptBurned { attempt: 2, .. });
        until_entry(&attack.agents[0], "the end of the second attempt", burned).await;
        attack.refusals.push(Refusal { site: VICTIM.into(), kind: TaskKind::Train, attempt: 1, sent });
        attack.all_silent().await;
        assert_eq!(attack.agents[0].ctx.state.phase(&key(1)).unwrap(), Some("Burned"));
        assert!(attack.hub.chunks.borrow().is_empty());
    })
    .await;
}
