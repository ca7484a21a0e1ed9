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
    // The round is closed to it: it does not know what it gave.
    let secure = restored.ctx.state.rolled_back().unwrap().unwrap();
    assert_eq!(secure.through(&work().study, "uid-1"), Some(3));
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
