//! The hub beside a real API server: rights, fences, finalizers and restarts as they are, hospitals in memory.
//!
//! Needs a server: `cargo xtask apiserver -- cargo test -p consilium-operator --test apiserver`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod crowd;
mod hospital;
mod leaving;
mod models;
mod pod;
#[path = "../../../tests/support/progress.rs"]
mod progress;
mod world;

use std::sync::Arc;

use consilium_crds::conditions::status_of;
use consilium_crds::{FederatedStudy, ModelPromotion, ModelRelease, TrainingRound, TrustSite};
use consilium_federation::SiteName;
use consilium_federation::round::{Outcome, RoundStep};
use hospital::{Hospital, Manner};
use k8s_openapi::api::batch::v1::Job;
use kube::Api;
use kube::api::DeleteParams;
use progress::until;
use serde_json::json;
use tokio::task::JoinHandle;
use world::{Running, SITES, TASKS, apply, install, study};

fn hospitals(manners: [Manner; 4]) -> Vec<Arc<Hospital>> {
    SITES.into_iter().zip(manners).map(|(site, manner)| Hospital::new(site, manner)).collect()
}

fn start(running: &Running, hospitals: &[Arc<Hospital>]) -> Vec<JoinHandle<()>> {
    hospitals.iter().map(|hospital| hospital.start(&running.hub)).collect()
}

/// Ends hospitals, and waits until they have: one that still answers speaks for the hospital that comes after it.
async fn leave(hospitals: Vec<JoinHandle<()>>) {
    hospitals.iter().for_each(JoinHandle::abort);
    for hospital in hospitals {
        assert!(hospital.await.is_err_and(|ended| ended.is_cancelled()), "a hospital fell over");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_federation_runs_beside_a_real_api_server() {
    let Ok(kubeconfig) = std::env::var("CONSILIUM_APISERVER_KUBECONFIG") else {
        println!("not run, since CONSILIUM_APISERVER_KUBECONFIG is not set; see `cargo xtask apiserver`");
        return;
    };
    if std::env::var("CONSILIUM_APISERVER_SUITE").is_ok_and(|suite| suite != "hub") {
        return;
    }
    consilium_operator::admin::init_logs(&std::env::var("CONSILIUM_LOG").unwrap_or_else(|_| "warn".into()));
    rustls::crypto::ring::default_provider().install_default().ok();
    let (admin, operator) = world::clients(&kubeconfig).await;
    install(&admin).await;
    crowd::gather(&admin).await;
    let folder = tempfile::tempdir().unwrap();
    let studies: Api<FederatedStudy> = Api::namespaced(admin.clone(), "research");
    let rounds: Api<TrainingRound> = Api::namespaced(admin.clone(), "research");

    let mut running = Running::start(operator.clone(), folder.path()).await;
    // A study with a bad reference says so, and stands in nobody's way.
    apply(&admin, study("typo", 1, &["alder", "birch", "cedra"])).await;
    until("the bad reference is told", async || {
        let status = studies.get("typo").await.ok()?.status?;
        let accepted = status.conditions.iter().find(|c| c.type_ == "Accepted")?;
        (accepted.reason == "InvalidReference" && accepted.message.contains("\"cedra\"")).then_some(())
    })
    .await;

    // The first model is made by a Job, whose pod is played here.
    apply(&admin, study("hippocampus", 3, &SITES)).await;
    until("without a roster no update can be masked, and the study says so", async || {
        let status = studies.get("hippocampus").await.ok()?.status?;
        status.conditions.iter().any(|c| c.type_ == "Accepted" && c.reason == "NoRoster").then_some(())
    })
    .await;
    apply(&admin, world::roster(1, &SITES)).await;
    pod::play_init(&admin, running.port, "hippocampus").await;
    let all = hospitals([Manner::Willing, Manner::Willing, Manner::Willing, Manner::Refusing]);
    let mut people = start(&running, &all);
    until("a hospital is connected", async || {
        let site = Api::<TrustSite>::all(admin.clone()).get("alder").await.ok()?;
        (status_of(&site.status?.conditions, "Connected") == Some("True")).then_some(())
    })
    .await;
    let first = until("the first round is over", async || {
        let state = rounds.get("hippocampus-1").await.ok()?.status?.round?;
        state.is_over().then_some(state)
    })
    .await;
    assert_eq!((first.outcome, first.contributors), (Some(Outcome::Completed), 3));
    // No hospital reported a number of its own; the sum over all cases is there all the same.
    let total = first.total.expect("a masked sum");
    assert_eq!((total.cases, first.gate.unwrap().global.as_deref()), (30, Some("0.9000")));
    assert!(first.evaluation.is_empty());

    // Killed and started again on the same store, at whatever point the second round has reached.
    leave(people).await;
    running.stop().await;
    running = Running::start(operator.clone(), folder.path()).await;
    people = start(&running, &all);
    let done = until("the study is finished", async || {
        let status = studies.get("hippocampus").await.ok()?.status?;
        (status_of(&status.conditions, "Succeeded") == Some("True")).then_some(status)
    })
    .await;
    assert_eq!((done.current_round, done.rounds_succeeded), (Some(3), Some(3)));
    pod::check_model(&running.hub, done.model.unwrap(), 3.0 * hospital::STEP).await;
    until("old rounds are archived", async || {
        let left = rounds.list(&Default::default()).await.ok()?.items.len();
        (left == 1).then_some(())
    })
    .await;

    take_away(&running, folder.path()).await;
    crowd::the_one_that_cannot_be_read_says_so_and_goes(&admin).await;
    leaving::finished_rounds_hold_nothing(&admin).await;
    promoted(&admin, "hippocampus-r3").await;
    models::go_out_and_in_by_right(&admin, &running, "hippocampus-r3").await;
    figures(&running);
    demote(&admin).await;
    delete_study(&admin).await;
    // Those who do everything at once leave first, or the round would be over before anybody sees it offered.
    leave(people).await;
    delete_mid_round(&admin, &running).await;
    leaving::a_quota_at_the_hub_stands_at_the_study(&admin).await;
    running.stop().await;
    leaving::in_the_wrong_order(&admin, operator, folder.path()).await;
}

/// What Prometheus would read now, for the check that asks it every panel.
fn figures(running: &Running) {
    let text = running.context.metrics.text();
    assert!(text.contains("consilium_study_dice{study=\"research/hippocampus\"} 0.9\n"), "{text}");
    if let Some(folder) = std::env::var_os("CONSILIUM_FIGURES") {
        std::fs::write(std::path::Path::new(&folder).join("operator.txt"), text).unwrap();
    }
}

/// What no object names leaves the store, and nothing else does: the release is promoted after it.
async fn take_away(running: &Running, folder: &std::path::Path) {
    let store = running.hub.store();
    let unnamed = store.put_object(vec![7; 2 << 20].into()).await.unwrap();
    let hex = unnamed.hex();
    let file = std::fs::File::open(folder.join(format!("objects/{}/{hex}", &hex[..2]))).unwrap();
    file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(2 * 3600)).unwrap();
    let gone = consilium_operator::controllers::collect::collect(&running.context).await.unwrap();
    assert!(gone.bytes >= 2 << 20, "{gone:?}");
    assert!(!store.has_object(unnamed).await.unwrap());
}

async fn promoted(admin: &kube::Client, name: &str) {
    let releases: Api<ModelRelease> = Api::namespaced(admin.clone(), "research");
    let release = until("the release is attested", async || {
        let release = releases.get(name).await.ok()?;
        let attested = status_of(&release.status.as_ref()?.conditions, "Attested") == Some("True");
        attested.then_some(release)
    })
    .await;
    apply(
        admin,
        json!({"apiVersion": "consilium.health/v1alpha1", "kind": "ModelPromotion",
            "metadata": {"name": "shadow", "namespace": "research"},
            "spec": {"release": {"name": name, "digest": release.spec.model}, "stage": "Shadow",
                "sites": ["alder", "birch"]}}),
    )
    .await;
    let promotions: Api<ModelPromotion> = Api::namespaced(admin.clone(), "research");
    until("the promotion is rolled out", async || {
        let status = promotions.get("shadow").await.ok()?.status?;
        (status_of(&status.conditions, "RolledOut") == Some("True")).then_some(())
    })
    .await;
}

async fn demote(admin: &kube::Client) {
    let promotions: Api<ModelPromotion> = Api::namespaced(admin.clone(), "research");
    promotions.delete("shadow", &DeleteParams::default()).await.unwrap();
    until("the promotion is gone once hospitals acknowledged", async || {
        promotions.get_opt("shadow").await.ok()?.is_none().then_some(())
    })
    .await;
}

/// Without a garbage collector: the operator itself sees that the study is gone.
async fn delete_study(admin: &kube::Client) {
    let studies: Api<FederatedStudy> = Api::namespaced(admin.clone(), "research");
    let rounds: Api<TrainingRound> = Api::namespaced(admin.clone(), "research");
    studies.delete("hippocampus", &DeleteParams::default()).await.unwrap();
    until("the Init Job and the rounds of the study are gone", async || {
        let jobs: Api<Job> = Api::namespaced(admin.clone(), TASKS);
        let gone = |job: &Job| job.metadata.deletion_timestamp.is_some();
        let jobs_gone = jobs.list(&Default::default()).await.ok()?.items.iter().all(gone);
        (jobs_gone && rounds.list(&Default::default()).await.ok()?.items.is_empty()).then_some(())
    })
    .await;
}

/// One made anew under the same name is another study; it starts, and is deleted while hospitals train.
async fn delete_mid_round(admin: &kube::Client, running: &Running) {
    let studies: Api<FederatedStudy> = Api::namespaced(admin.clone(), "research");
    let rounds: Api<TrainingRound> = Api::namespaced(admin.clone(), "research");
    let slow = start(running, &hospitals([Manner::Slow; 4]));
    apply(admin, study("hippocampus", 3, &SITES)).await;
    pod::play_init(admin, running.port, "hippocampus").await;
    until("the new study's first round is offered", async || {
        let state = rounds.get("hippocampus-1").await.ok()?.status?.round?;
        (state.step == RoundStep::Training).then_some(())
    })
    .await;
    studies.delete("hippocampus", &DeleteParams::default()).await.unwrap();
    until("its round is gone", async || rounds.get_opt("hippocampus-1").await.ok()?.is_none().then_some(())).await;
    let alder: SiteName = "alder".parse().unwrap();
    until("no hospital is asked for anything any more", async || {
        running.hub.assignment(&alder)?.items.is_empty().then_some(())
    })
    .await;
    leave(slow).await;
}
