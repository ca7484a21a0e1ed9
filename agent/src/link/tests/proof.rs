//! What the ledger proves of what left, and the hub's word on it.

use super::*;

/// Whoever has to prove what left finds it in the ledger: under which generation of the policy, to which hub, and each
/// thing that the hub was told.
#[tokio::test]
async fn the_ledger_says_what_left_to_whom_and_by_which_policy() {
    let world = World::new().await;
    let mut policy = SitePolicy::clone(&site_policy(true).unwrap());
    policy.metadata.generation = Some(4);
    world.policy.send_replace(Some(Arc::new(policy)));
    let agent = world.agent(None);
    world.trained(&agent);
    world.publish(1, vec![asked(1)]);
    until("the report", world.hub.reports.subscribe(), |reports| {
        reports.last().is_some_and(|report| report.rounds.iter().any(|round| round.reason == "Submitted"))
    })
    .await;
    let records = agent.ctx.state.ledger(1, 100).unwrap();
    let gateway = Some(format!("https://localhost:{}", world.address.port()));
    for record in &records {
        let before = matches!(record.entry, Entry::HubDialed { .. } | Entry::PolicyInForce { .. });
        assert!(before || record.policy == Some(4), "{record:?}");
        assert_eq!(record.to, gateway.clone().filter(|_| record.entry.leaves()), "{record:?}");
    }
    let left = |wanted: fn(&Entry) -> bool| records.iter().any(|record| wanted(&record.entry));
    assert!(left(|entry| matches!(entry, Entry::PolicyInForce { generation: Some(4), spec: Some(_), .. })));
    assert!(left(|entry| matches!(entry, Entry::UploadBegins { .. })));
    assert!(left(|entry| matches!(entry, Entry::UploadEnded { complete: true, .. })));
    let submitted =
        |entry: &Entry| matches!(entry, Entry::Reported(r) if r.said.iter().any(|s| s.reason == "Submitted"));
    assert!(records.iter().any(|record| submitted(&record.entry)));
}

/// Whoever has to prove what the hub was shown finds its signature over the ledger's end; one over another end proves
/// nothing about this one.
#[tokio::test]
async fn the_hubs_signature_over_the_ledgers_end_is_kept() {
    let world = World::new().await;
    let agent = world.agent(None);
    let LedgerEnd { entries, head } = agent.ctx.state.ledger_end().unwrap();
    let shown = consilium_proto::v1::LedgerEnd { entries, head: head.to_string() };
    *world.hub.ledger.lock().unwrap() = Some(shown);
    let end = LedgerEnd { entries, head };
    world.ready(&agent);
    while agent.ctx.state.countersigned(end).unwrap() != Some("07".repeat(64)) {
        tokio::task::yield_now().await;
    }
    assert_eq!(agent.ctx.state.countersigned(LedgerEnd { entries: entries + 1, head }).unwrap(), None);
}
