//! What a hostile hub asks for, and is refused by name.

use consilium_secagg::advert::AdvertList;
use consilium_secagg::ids::Digest as RingDigest;
use consilium_secagg::survivors::SurvivorStatement;

use super::*;

/// Two sums over one model are what a curious hub would want most.
#[tokio::test]
async fn after_the_release_there_is_no_second_attempt() {
    let (federation, agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Unmask).await;
    let work = federation.ask(TaskKind::Train, 2, ProtocolStep::Advertise, None);
    federation.publish(&SITES, &work);
    let denied = |entry: &Entry| matches!(entry, Entry::Decision { allowed: false, message, .. } if message.contains("second sum"));
    for agent in &agents {
        until_entry(agent, "the refusal", denied).await;
        assert_eq!(agent.ctx.state.phase(&key(2)).unwrap(), None);
    }
    assert!(SITES.iter().all(|site| federation.hub.times(site, 2, "Advertise") == 0));
}

/// The hub asks for the next step about something else than what was opened.
#[tokio::test]
async fn another_base_or_schema_is_refused_by_name() {
    let (federation, agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Advertise).await;
    let list = federation.machine(|hub| hub.close_adverts().unwrap());
    let inputs = Some(federation.hub.keep(list.to_bytes()));
    let asked = federation.ask(TaskKind::Train, 1, ProtocolStep::Share, inputs);
    federation.publish(&["alder"], &RoundWork { model: Digest::of(b"another"), ..asked.clone() });
    until_refused(&agents[0], "base model").await;
    federation.publish(&["birch"], &RoundWork { schema: Digest::of(b"another"), ..asked.clone() });
    until_refused(&agents[1], "schema").await;
    federation.publish(&["cedar"], &RoundWork { roster_size: 3, ..asked });
    until_refused(&agents[2], "roster size").await;
    for (agent, site) in agents.iter().zip(&SITES[..3]) {
        assert_eq!(agent.ctx.state.phase(&key(1)).unwrap(), Some("Burned"));
        until_reason(agent, SiteReason::Rejected).await;
        assert_eq!(federation.hub.times(site, 1, "Share"), 0);
    }
}

/// A hub that puts its own key in a hospital's place could read the shares that are dealt to it.
#[tokio::test]
async fn a_substituted_key_is_refused_and_nothing_is_dealt() {
    let (federation, agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Advertise).await;
    let mut list: AdvertList = federation.machine(|hub| hub.close_adverts().unwrap());
    let mut forged = list.adverts[1].body.clone();
    forged.enc_key = SiteKey::from_seed(&[5; 32]).public();
    list.adverts[1] = SiteKey::from_seed(&[6; 32]).sign(forged);
    let inputs = Some(federation.hub.keep(list.to_bytes()));
    federation.publish(&["alder"], &federation.ask(TaskKind::Train, 1, ProtocolStep::Share, inputs));
    until_refused(&agents[0], "birch").await;
    assert_eq!(federation.hub.times("alder", 1, "Share"), 0);
    assert_eq!(agents[0].ctx.state.phase(&key(1)).unwrap(), Some("Burned"));
    until_reason(&agents[0], SiteReason::Rejected).await;
    // And the hub is told in the attempt's own words, until another attempt opens.
    let report = agents[0].ctx.facts.round("round", TaskKind::Train).unwrap();
    assert!(report.message.unwrap().contains("birch"));
    federation.publish(
        &["alder"],
        &RoundWork { step: None, ..federation.ask(TaskKind::Train, 1, ProtocolStep::Share, None) },
    );
    until_reason(&agents[0], SiteReason::Ready).await;
}

/// Survivors that rest on another view of who dealt shares would unmask one hospital's part.
#[tokio::test]
async fn a_split_survivor_view_is_refused_and_nothing_is_signed() {
    let (federation, agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Upload).await;
    let all: BTreeSet<SiteId> = federation.hospitals.iter().map(Hospital::site).collect();
    let statement = federation.machine(|hub| hub.close_uploads(&all).unwrap());
    let split = SurvivorStatement { view: RingDigest([7; 32]), ..statement };
    let inputs = Some(federation.hub.keep(split.to_bytes()));
    federation.publish(&["alder"], &federation.ask(TaskKind::Train, 1, ProtocolStep::Agree, inputs));
    until_refused(&agents[0], "split the views").await;
    assert_eq!(federation.hub.times("alder", 1, "Agree"), 0);
    assert!(agents[0].ctx.state.history().unwrap().signed.is_empty());
}

/// Messages of an earlier attempt, and bytes that are none, open nothing.
#[tokio::test]
async fn a_replayed_session_and_garbage_are_refused() {
    let (federation, agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Advertise).await;
    let old = federation.machine(|hub| hub.close_adverts().unwrap());
    federation.run_to(TaskKind::Train, 2, ProtocolStep::Advertise).await;
    let replayed = Some(federation.hub.keep(old.to_bytes()));
    federation.publish(&["alder"], &federation.ask(TaskKind::Train, 2, ProtocolStep::Share, replayed));
    let garbage = Some(federation.hub.keep(b"garbage".to_vec()));
    federation.publish(&["birch"], &federation.ask(TaskKind::Train, 2, ProtocolStep::Share, garbage));
    until_refused(&agents[0], "attempt").await;
    until_refused(&agents[1], "expected a").await;
    assert!(["alder", "birch"].iter().all(|site| federation.hub.times(site, 2, "Share") == 0));
}

/// A hub that has the masked update asks for it once more, under a study without masks: it must not get the plain one.
#[tokio::test]
async fn what_was_sent_masked_is_not_sent_plain_on_a_swapped_study() {
    let (federation, agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Upload).await;
    until_reason(&agents[0], SiteReason::Submitted).await;
    federation.hub.keep(canonical_json(&spec()));
    federation.hub.chunks.send_modify(BTreeMap::clear);
    let asked = federation.ask(TaskKind::Train, 1, ProtocolStep::Upload, None);
    let sent = federation.hub.times("alder", 1, "Upload");
    let plain = RoundWork { spec_digest: spec().digest(), roster: None, ..asked };
    federation.publish(&["alder"], &plain);
    until_refused(&agents[0], "spec digest").await;
    assert_eq!(federation.hub.times("alder", 1, "Upload"), sent);
    assert!(federation.hub.chunks.borrow().is_empty());
}

/// The hub is told why a step was refused; of a vector of one number even a digest would tell the number.
#[tokio::test]
async fn a_damaged_vector_is_refused_without_its_digest() {
    let (federation, agents) = started().await;
    federation.run_to(TaskKind::Evaluate, 1, ProtocolStep::Share).await;
    let body = federation.hospitals[0].volume().join("updates").join(evaluate_vector("round")).join("00000001");
    let digest = agents[0].ctx.state.update(&evaluate_vector("round")).unwrap().unwrap().chunks[1].to_string();
    std::fs::write(body, b"dama").unwrap();
    federation.ask_all(TaskKind::Evaluate, 1, ProtocolStep::Upload);
    until_refused(&agents[0], "damaged").await;
    let facts = agents[0].ctx.facts.clone();
    let told = move |_: &u64| {
        let report = facts.round("round", TaskKind::Evaluate).unwrap();
        let told = report.message.is_some_and(|why| why.contains("chunk 1") && !why.contains(&digest[..8]));
        report.reason == SiteReason::Rejected && told
    };
    until("the report", agents[0].ctx.facts.changed(), told).await;
    assert_eq!(federation.hub.times("alder", 1, "Upload"), 0);
}
