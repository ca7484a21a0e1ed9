//! Volumes that were restored or copied.

use super::*;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// A volume from a backup has forgotten what it said since, and could say something else.
#[tokio::test]
async fn a_volume_from_a_backup_burns_what_was_open() {
    let (federation, mut agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Advertise).await;
    agents.remove(0).kill().await;
    let backup = federation.hospitals[0].folder.join("backup");
    copy(&federation.hospitals[0].volume(), &backup);
    agents.insert(0, federation.start(0));
    federation.ask_all(TaskKind::Train, 1, ProtocolStep::Share);
    federation.all_done(1, ProtocolStep::Share, 4).await;
    agents.remove(0).kill().await;

    let restored = federation.start_on(0, &backup);
    until_entry(&restored, "the roll-back", |entry| matches!(entry, Entry::StateRolledBack { .. })).await;
    assert_eq!(restored.ctx.state.phase(&key(1)).unwrap(), Some("Burned"));
    assert_eq!(federation.hub.said("alder", 1, "Share").len(), 1);

    // It does not know what it gave, so it gives nothing, in no round, until its people say how far it came.
    agents.insert(0, restored);
    let Hospital { shown, policy, .. } = &federation.hospitals[0];
    *shown.act.lock().unwrap() = None;
    federation.go_on(&agents, next_round());
    federation.open(TaskKind::Train, 2);
    federation.publish(&["alder"], &federation.ask(TaskKind::Train, 2, ProtocolStep::Advertise, None));
    let denied = |entry: &Entry| matches!(entry, Entry::Decision { allowed: false, message, .. } if message.contains("resumeAfterRound"));
    until_entry(&agents[0], "the refusal", denied).await;
    assert_eq!(federation.hub.times("alder", 2, "Advertise"), 0);
    policy.send_replace(Some(Arc::new(secure_policy_with(&[("/studies/0/resumeAfterRound", json!(3))]))));
    until("its advert", federation.hub.heard.subscribe(), |_| federation.hub.times("alder", 2, "Advertise") > 0).await;
}

/// The hub asks for an earlier step once more. If that took the RoundTask's memory back, a volume from in between would
/// pass for the newest, and answer what was answered since in another way.
#[tokio::test]
async fn an_earlier_step_asked_for_again_hides_no_restored_volume() {
    let (federation, mut agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Advertise).await;
    agents.remove(0).kill().await;
    let backup = federation.hospitals[0].folder.join("backup");
    copy(&federation.hospitals[0].volume(), &backup);
    agents.insert(0, federation.start(0));
    federation.ask_all(TaskKind::Train, 1, ProtocolStep::Share);
    federation.all_done(1, ProtocolStep::Share, 4).await;
    let (hub, list) = (&federation.hub, federation.machine(|hub| hub.advert_list().unwrap().clone()));
    let times = hub.times("alder", 1, "Advertise");
    federation.publish(&["alder"], &federation.ask(TaskKind::Train, 1, ProtocolStep::Advertise, None));
    until("it again", hub.heard.subscribe(), |_| hub.times("alder", 1, "Advertise") > times).await;
    agents.remove(0).kill().await;

    federation.press("alder", 1, ProtocolStep::Share, &list);
    let restored = federation.start_on(0, &backup);
    until_entry(&restored, "the roll-back", |entry| matches!(entry, Entry::StateRolledBack { .. })).await;
    assert_eq!(hub.said("alder", 1, "Share").len(), 1);
}

/// Without a task left to tell, the SitePolicy's status does.
#[tokio::test]
async fn a_head_in_the_policy_that_the_volume_never_had_is_a_roll_back() {
    let (federation, mut agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Advertise).await;
    agents.remove(0).kill().await;
    let mut policy = secure_policy();
    let status = json!({
        "ledger": {"entries": 99, "head": Digest::of(b"from after the backup")},
        "studies": [{"study": "research/hippocampus", "uid": "uid-1", "specDigest": secure_spec().digest(), "round": 3, "reason": "Ready"}],
    });
    policy.status = Some(serde_json::from_value(status).unwrap());
    federation.hospitals[0].policy.send_replace(Some(Arc::new(policy)));
    let agent = federation.start(0);
    until_entry(&agent, "the burning", |entry| matches!(entry, Entry::AttemptBurned { .. })).await;
    let denied = |entry: &Entry| matches!(entry, Entry::Decision { allowed: false, message, .. } if message.contains("StateRolledBack"));
    federation.publish(&["alder"], &federation.ask(TaskKind::Train, 2, ProtocolStep::Advertise, None));
    until_entry(&agent, "the refusal", denied).await;
    assert_eq!(federation.hub.times("alder", 2, "Advertise"), 0);
}

/// At the agent's start the policy may not be readable, or not be there yet. What it shows later counts as well.
#[tokio::test]
async fn a_policy_that_is_readable_only_later_shows_the_roll_back_all_the_same() {
    let (federation, mut agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Advertise).await;
    agents.remove(0).kill().await;
    let policy = &federation.hospitals[0].policy;
    policy.send_replace(None);
    let agent = federation.start(0);
    federation.publish(&["alder"], &federation.ask(TaskKind::Train, 2, ProtocolStep::Advertise, None));
    let denied = |words: &'static str| move |entry: &Entry| matches!(entry, Entry::Decision { allowed: false, message, .. } if message.contains(words));
    until_entry(&agent, "the refusal without a policy", denied("no SitePolicy")).await;
    let mut readable = secure_policy();
    let status = json!({"ledger": {"entries": 99, "head": Digest::of(b"from after the backup")}});
    readable.status = Some(serde_json::from_value(status).unwrap());
    policy.send_replace(Some(Arc::new(readable)));
    until_entry(&agent, "the refusal", denied("StateRolledBack")).await;
    assert_eq!(federation.hub.times("alder", 2, "Advertise"), 0);
}

/// Two pods on two copies of a volume: one of them goes on, whichever is first.
#[tokio::test]
async fn two_agents_on_copies_of_a_volume_never_both_answer() {
    let (federation, mut agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Advertise).await;
    agents.remove(0).kill().await;
    let twin = federation.hospitals[0].folder.join("twin");
    copy(&federation.hospitals[0].volume(), &twin);
    federation.ask_all(TaskKind::Train, 1, ProtocolStep::Share);
    let pair = [federation.start(0), federation.start_on(0, &twin)];
    let burned = || pair.iter().filter(|a| a.ctx.state.phase(&key(1)).unwrap() == Some("Burned")).count();
    let look = async {
        while burned() == 0 || federation.hub.times("alder", 1, "Share") == 0 {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(LIMIT, look).await.is_ok(), "nobody noticed");
    assert_eq!((burned(), federation.hub.said("alder", 1, "Share").len()), (1, 1));
    let seen = pair.iter().filter(|a| a.ctx.state.rolled_back().unwrap().is_some()).count();
    assert_eq!(seen, 1);
}
