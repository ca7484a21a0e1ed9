use tokio::sync::broadcast::error::TryRecvError;

use super::*;

fn site() -> SiteName {
    "alder".parse().unwrap()
}

async fn hub(folder: &tempfile::TempDir) -> Hub {
    let store = BlobStore::open(folder.path()).await.unwrap();
    let boot = store.next_boot().await.unwrap();
    Hub::new(store, boot, Metrics::new(), SigningKey::from_bytes(&[5; 32]))
}

fn report(revision: u64) -> Report {
    let (hub_epoch, agent_version) = (String::new(), String::new());
    Report { hub_epoch, revision, agent_version, rosters: vec![], ledger: None, rounds: vec![], deployments: vec![] }
}

/// An agent refuses a revision below the one it has, so a restarted hub must begin above all it ever sent.
#[tokio::test]
async fn revisions_grow_over_restarts_and_the_epoch_stays() {
    let folder = tempfile::tempdir().unwrap();
    let first = hub(&folder).await;
    assert!(first.assignment(&site()).is_none());
    assert!(first.publish(&site(), vec![]));
    assert!(!first.publish(&site(), vec![]));
    let before = first.assignment(&site()).unwrap();
    let second = hub(&folder).await;
    second.publish(&site(), vec![]);
    let after = second.assignment(&site()).unwrap();
    assert_eq!(after.hub_epoch, before.hub_epoch);
    assert!(after.revision > before.revision);
}

/// A hub whose volume was restored from a backup counts from further back than its hospitals remember; they refuse a
/// lower revision, so it must come out above, and only for the hospital that says so.
#[tokio::test]
async fn a_hub_that_was_set_back_goes_on_above_what_a_hospital_has() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub(&folder).await;
    let birch: SiteName = "birch".parse().unwrap();
    for site in [&site(), &birch] {
        hub.publish(site, vec![]);
    }
    let before = hub.assignment(&birch).unwrap().revision;
    let ahead = Report { hub_epoch: hub.store().epoch().to_owned(), ..report(9 << 32) };
    let now = Timestamp::UNIX_EPOCH;
    hub.put_report(&site(), Report { hub_epoch: "of another store".into(), ..ahead.clone() }, now);
    assert!(hub.assignment(&site()).unwrap().revision < 9 << 32);
    hub.put_report(&site(), ahead, now);
    assert_eq!(hub.assignment(&site()).unwrap().revision, (9 << 32) + 1);
    hub.set_rosters(vec![Digest::of(b"roster")]);
    assert!(hub.assignment(&site()).unwrap().revision > 9 << 32);
    assert_eq!(hub.assignment(&birch).unwrap().revision >> 32, before >> 32);
}

/// SiteSilent and QuorumAtRisk speak of hospitals that are away, also to a hub that has never heard them, and of none
/// that was revoked.
#[tokio::test]
async fn every_accepted_hospital_has_its_series_and_a_revoked_one_none() {
    let hub = hub(&tempfile::tempdir().unwrap()).await;
    hub.set_accepted([site()].into());
    hub.remember_contact(&site(), Timestamp::from_second(7).unwrap());
    let text = hub.0.metrics.text();
    assert!(text.contains("consilium_site_connected{site=\"alder\"} 0"), "{text}");
    assert!(text.contains("consilium_site_last_contact_timestamp_seconds{site=\"alder\"} 7"), "{text}");
    let open = hub.connect(&site());
    hub.set_accepted(BTreeSet::new());
    drop(open);
    assert!(!hub.0.metrics.text().contains("alder"));
}

/// The controllers act on changes: a heartbeat that says nothing new must not wake all rounds of a hospital.
#[tokio::test]
async fn a_report_that_says_nothing_new_wakes_nobody_but_is_contact() {
    let hub = hub(&tempfile::tempdir().unwrap()).await;
    let mut changes = hub.changes();
    let at = |second| Timestamp::from_second(second).unwrap();
    hub.put_report(&site(), report(1), at(1));
    assert_eq!(changes.try_recv().unwrap().0, site());
    hub.put_report(&site(), report(1), at(2));
    assert_eq!(changes.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(hub.report(&site()).unwrap().1, at(2));
    hub.put_report(&site(), report(2), at(3));
    assert_eq!(changes.try_recv().unwrap().0, site());
}

/// A hospital that was restored from a backup must be told what it had shown before, by a hub that was restarted since;
/// an older end must never replace a newer one.
#[tokio::test]
async fn the_furthest_end_of_a_ledger_is_kept_and_said_back() {
    let folder = tempfile::tempdir().unwrap();
    let end = |entries, head: &[u8]| LedgerEnd { entries, head: Digest::of(head) };
    let first = hub(&folder).await;
    assert_eq!(first.countersign(&site(), end(3, b"a")).await.unwrap().0, end(3, b"a"));
    assert_eq!(first.countersign(&site(), end(9, b"b")).await.unwrap().0, end(9, b"b"));
    let second = hub(&folder).await;
    let (said, signature) = second.countersign(&site(), end(5, b"c")).await.unwrap();
    assert_eq!(said, end(9, b"b"));
    let key = SigningKey::from_bytes(&[5; 32]).verifying_key();
    key.verify_strict(&said.signed_bytes(&site()), &signature).unwrap();
    // As many entries with another head is another ledger.
    assert_eq!(second.countersign(&site(), end(9, b"d")).await.unwrap().0, end(9, b"b"));
    assert_eq!(second.countersign(&"birch".parse().unwrap(), end(1, b"e")).await.unwrap().0, end(1, b"e"));
}

/// An agent that reconnects before its old connection is given up is not gone.
#[tokio::test]
async fn a_hospital_is_connected_while_any_watch_is_open() {
    let hub = hub(&tempfile::tempdir().unwrap()).await;
    let (old, new) = (hub.connect(&site()), hub.connect(&site()));
    drop(old);
    assert!(hub.connected(&site()));
    drop(new);
    assert!(!hub.connected(&site()));
}

/// What a hospital says of work that it was never given is not kept: ten thousand rounds that there are not would fill the
/// memory of the hub, and wake what is no concern of the hospital's.
#[tokio::test]
async fn only_what_a_hospital_says_of_its_own_work_is_kept() {
    use consilium_federation::assignment::{DeployWork, ItemState};
    use consilium_federation::ladder::Stage;
    use consilium_federation::report::{DeployReport, RolloutReason};
    let hub = hub(&tempfile::tempdir().unwrap()).await;
    let work = DeployWork {
        release: "r".into(),
        release_digest: Digest::of(b"r"),
        model: Digest::of(b"m"),
        stage: Stage::Shadow,
        approvals: vec![],
        plan: None,
        stage_approvals: Vec::new(),
    };
    hub.publish(&site(), vec![Item { uid: "mine".into(), state: ItemState::Active, work: Work::Deploy(work) }]);
    let said = |uid: &str| DeployReport {
        uid: uid.into(),
        reason: RolloutReason::Serving,
        serving: None,
        stage: None,
        message: None,
    };
    let mut changes = hub.changes();
    let deployments = vec![said("mine"), said("theirs")];
    hub.put_report(&site(), Report { deployments, ..report(1) }, Timestamp::UNIX_EPOCH);
    assert_eq!(changes.try_recv().unwrap(), (site(), News::Everything));
    let kept: Vec<_> = hub.report(&site()).unwrap().0.deployments.iter().map(|d| d.uid.clone()).collect();
    assert_eq!(kept, ["mine"]);
    let deployments = vec![DeployReport { reason: RolloutReason::Withdrawn, ..said("mine") }, said("theirs")];
    hub.put_report(&site(), Report { deployments, ..report(1) }, Timestamp::UNIX_EPOCH);
    assert_eq!(changes.try_recv().unwrap(), (site(), News::Work(BTreeSet::from(["mine".to_owned()]))));
}
