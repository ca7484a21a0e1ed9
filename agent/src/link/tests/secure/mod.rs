//! The masking protocol from the hospitals' side, against the real machine of the hub and against hostile ones.

mod hostile;
mod rosters;
mod volumes;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use consilium_crds::FederatedStudySpec;
use consilium_federation::model::ModelManifest;
use consilium_secagg::hub::Hub;
use consilium_secagg::identity::SiteKey;
use consilium_secagg::ids::SiteId;
use consilium_secagg::roster::{SignedRoster, VerifiedRoster};
use consilium_secagg::spec::AttemptSpec;
use consilium_secagg::sum;
use consilium_secagg::weight::Weight;
use consilium_secagg::wire::Message;
use serde_json::json;
use world::*;

use super::secure_hub::SecureHub;
use super::*;
use crate::link::plan::attempt_spec;
use crate::state::{AttemptKey, evaluate_vector, hub_digest};

async fn until_entry(agent: &Agent, what: &str, holds: impl Fn(&Entry) -> bool) {
    let look = async {
        while !ledger(agent).iter().any(&holds) {
            tokio::task::yield_now().await;
        }
    };
    let found = tokio::time::timeout(LIMIT, look).await;
    assert!(found.is_ok(), "waited in vain for {what}: {:#?}", ledger(agent));
}

/// The sum that the hub's machine makes of what came in must be that of the plain vectors.
fn assert_sum(federation: &Federation, kind: TaskKind, attempt: u32) {
    federation.machine(|hub| hub.close_unmasking().unwrap());
    let unmasking = federation.machine(|hub| hub.unmasking().unwrap());
    let chunks = federation.hub.chunks.borrow().clone();
    for chunk in 0..2 {
        let mut plain = vec![0u32; sum::from_bytes(&encoded(0, kind).0[chunk as usize]).len()];
        for of in 0..SITES.len() {
            let vector = sum::from_bytes(&encoded(of, kind).0[chunk as usize]);
            plain.iter_mut().zip(vector).for_each(|(p, v)| *p = p.wrapping_add(v));
        }
        let uploads: Vec<_> = SITES.iter().map(|s| &chunks[&((*s).to_owned(), attempt, chunk)][..]).collect();
        assert_ne!(sum::from_bytes(uploads[0]), sum::from_bytes(&encoded(0, kind).0[chunk as usize]), "it is masked");
        let mut total = Vec::new();
        unmasking.sum_chunk(chunk, &uploads, std::num::NonZeroUsize::MIN, &mut total).unwrap();
        assert_eq!(total, plain);
    }
}

/// The whole way, twice: updates, and then the metric, among the same hospitals.
#[tokio::test]
async fn five_steps_give_the_sum_of_updates_and_then_of_the_metric() {
    let (federation, agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Unmask).await;
    assert_sum(&federation, TaskKind::Train, 1);
    until_reason(&agents[0], SiteReason::Submitted).await;
    let names: Vec<_> = ledger(&agents[0]).iter().map(|e| json!(e)["event"].as_str().unwrap().to_owned()).collect();
    let acts: Vec<_> = names.iter().filter(|name| *name != "Decision").map(String::as_str).collect();
    let expected = [
        "RosterAccepted",
        "AttemptOpened",
        "SharesSent",
        "UploadBegins",
        "UploadEnded",
        "SurvivorsSigned",
        "SharesReleased",
    ];
    assert_eq!(acts, expected);
    let act = federation.hospitals[0].shown.act.lock().unwrap().clone().unwrap();
    assert_eq!((act.step.as_str(), act.attempt), ("Unmask", 1));
    assert!(agents[0].ctx.state.had_head(act.ledger_head).unwrap());

    federation.run_to(TaskKind::Evaluate, 2, ProtocolStep::Unmask).await;
    assert_sum(&federation, TaskKind::Evaluate, 2);
    assert_eq!(agents[0].ctx.state.history().unwrap().released.len(), 2);
}

/// Killed with the message on the line and killed after the answer: what is said again is what was said.
#[tokio::test]
async fn a_killed_agent_says_the_same_again_at_every_step() {
    let (federation, mut agents) = started().await;
    for step in STEPS {
        let (name, hub) = (format!("{step:?}"), &federation.hub);
        hub.deaf.lock().unwrap().insert("alder".into());
        federation.ask_all(TaskKind::Train, 1, step);
        until("a lost message", hub.heard.subscribe(), |_| hub.times("alder", 1, &name) >= 1).await;
        agents.remove(0).kill().await;
        hub.deaf.lock().unwrap().clear();
        agents.insert(0, federation.start(0));
        federation.all_done(1, step, SITES.len()).await;
        let before = hub.times("alder", 1, &name);
        agents.remove(0).kill().await;
        agents.insert(0, federation.start(0));
        until("it once more", hub.heard.subscribe(), |_| hub.times("alder", 1, &name) > before).await;
        assert_eq!(hub.said("alder", 1, &name).len(), 1, "{name}: one thing was said");
    }
    assert_sum(&federation, TaskKind::Train, 1);
}

/// The hospital says no while a large vector is being masked: nothing of it has left, so nothing may. Taken back, the
/// upload goes on with what was masked.
#[tokio::test]
async fn a_veto_while_the_vector_is_masked_comes_before_the_first_byte() {
    let (federation, agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Share).await;
    let Hospital { shown, policy, .. } = &federation.hospitals[0];
    let disabled = Arc::new(secure_policy_with(&[("/participation", json!("Disabled"))]));
    let veto = policy.clone();
    // The RoundTask is looked at after the policy was asked, and before the masking begins.
    *shown.meanwhile.lock().unwrap() = Some(Box::new(move || drop(veto.send_replace(Some(disabled.clone())))));
    federation.ask_all(TaskKind::Train, 1, ProtocolStep::Upload);
    let denied = |entry: &Entry| matches!(entry, Entry::Decision { allowed: false, message, .. } if message.contains("Disabled"));
    until_entry(&agents[0], "the veto", denied).await;
    assert_eq!(federation.hub.times("alder", 1, "Upload"), 0);
    assert_eq!(shown.act.lock().unwrap().clone().unwrap().step, "Share", "the point of no return is not passed");
    *shown.meanwhile.lock().unwrap() = None;
    policy.send_replace(Some(Arc::new(secure_policy())));
    federation.all_done(1, ProtocolStep::Upload, SITES.len()).await;
}

/// A drop-out in the middle of the round must not leave seeds behind, and no hospital is in two attempts.
#[tokio::test]
async fn another_attempt_burns_the_one_before() {
    let (federation, agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Upload).await;
    federation.run_to(TaskKind::Train, 2, ProtocolStep::Unmask).await;
    assert_sum(&federation, TaskKind::Train, 2);
    assert_eq!(agents[0].ctx.state.phase(&key(1)).unwrap(), Some("Burned"));
    assert_eq!(agents[0].ctx.state.open_attempts().unwrap(), []);
}

/// A hospital that was away while the others signed still helps to take the masks off: one share fewer could mean none.
#[tokio::test]
async fn a_hospital_that_missed_the_signatures_catches_up() {
    let (federation, mut agents) = started().await;
    federation.run_to(TaskKind::Train, 1, ProtocolStep::Upload).await;
    agents.pop().unwrap().kill().await;
    federation.ask_all(TaskKind::Train, 1, ProtocolStep::Agree);
    federation.all_done(1, ProtocolStep::Agree, 3).await;
    federation.ask_all(TaskKind::Train, 1, ProtocolStep::Unmask);
    let late = federation.start(3);
    federation.all_done(1, ProtocolStep::Unmask, 4).await;
    assert_sum(&federation, TaskKind::Train, 1);
    assert!(ledger(&late).iter().any(|entry| matches!(entry, Entry::SurvivorsSigned { .. })));
    assert_eq!(federation.hub.times("damson", 1, "Agree"), 0);
}
