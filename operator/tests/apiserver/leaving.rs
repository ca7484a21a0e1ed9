//! What is removed in any order goes, and what the guide says is the way out is one.

use std::path::Path;

use consilium_crds::conditions::status_of;
use consilium_crds::{FederatedStudy, ModelPromotion, ModelRelease, TrainingRound};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use crate::hospital::Manner;
use crate::progress::until;
use crate::world::{Running, SITES, TASKS, apply, study};
use crate::{hospitals, leave, pod, promoted, start};

/// A round that is over holds nothing up: neither a definition nor a namespace waits for an operator that has gone.
pub async fn finished_rounds_hold_nothing(admin: &Client) {
    let rounds: Api<TrainingRound> = Api::namespaced(admin.clone(), "research");
    until("finished rounds hold no finalizer", async || {
        let all = rounds.list(&ListParams::default()).await.ok()?.items;
        let over = |r: &TrainingRound| r.status.as_ref().and_then(|s| s.round.as_ref()).is_some_and(|s| s.is_over());
        (!all.is_empty() && all.iter().all(|r| over(r) && r.finalizers().is_empty())).then_some(())
    })
    .await;
}

/// What the hub's own API server refuses stands at the study, and goes when it is let in.
pub async fn a_quota_at_the_hub_stands_at_the_study(admin: &Client) {
    let quotas: Api<ResourceQuota> = Api::namespaced(admin.clone(), TASKS);
    apply(
        admin,
        json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": TASKS},
            "spec": {"hard": {"count/jobs.batch": "0"}}}),
    )
    .await;
    // No controller counts here, so the test says what was counted.
    let counted = json!({"status": {"hard": {"count/jobs.batch": "0"}, "used": {"count/jobs.batch": "0"}}});
    quotas.patch_status("none", &PatchParams::default(), &Patch::Merge(&counted)).await.unwrap();
    let probe: Job = serde_json::from_value(json!({
        "metadata": {"name": "probe"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}},
    }))
    .unwrap();
    let jobs: Api<Job> = Api::namespaced(admin.clone(), TASKS);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    until("the quota is in force", async || jobs.create(&dry, &probe).await.is_err().then_some(())).await;
    apply(admin, study("refused", 1, &SITES)).await;
    let studies: Api<FederatedStudy> = Api::namespaced(admin.clone(), "research");
    until("the study says what the API server refuses", async || {
        let conditions = studies.get("refused").await.ok()?.status?.conditions;
        let ready = conditions.iter().find(|c| c.type_ == "Ready")?;
        let told = ready.reason == "NotAdmitted" && ready.message.contains("exceeded quota");
        (told && status_of(&conditions, "Stalled") == Some("True")).then_some(())
    })
    .await;
    quotas.delete("none", &DeleteParams::default()).await.unwrap();
    until("the study goes on once it is let in", async || {
        let conditions = studies.get("refused").await.ok()?.status?.conditions;
        status_of(&conditions, "Stalled").is_none().then_some(())
    })
    .await;
    studies.delete("refused", &DeleteParams::default()).await.unwrap();
}

/// A study that is over, its release, and a promotion; then the operator goes first, and the definitions after it.
pub async fn in_the_wrong_order(admin: &Client, operator: Client, folder: &Path) {
    let running = Running::start(operator, folder).await;
    let all = hospitals([Manner::Willing; 4]);
    let people = start(&running, &all);
    apply(admin, study("leaving", 1, &SITES)).await;
    pod::play_init(admin, running.port, "leaving").await;
    let studies: Api<FederatedStudy> = Api::namespaced(admin.clone(), "research");
    until("the study is finished", async || {
        let status = studies.get("leaving").await.ok()?.status?;
        (status_of(&status.conditions, "Succeeded") == Some("True")).then_some(())
    })
    .await;
    finished_rounds_hold_nothing(admin).await;
    promoted(admin, "leaving-r1").await;
    leave(people).await;
    running.stop().await;

    let definitions: Api<CustomResourceDefinition> = Api::all(admin.clone());
    let remove = async |plural: &str| {
        definitions.delete(&format!("{plural}.consilium.health"), &DeleteParams::default()).await.unwrap();
    };
    let gone = async |plural: &str| {
        until(&format!("the definition of {plural} is gone"), async || {
            definitions.get_opt(&format!("{plural}.consilium.health")).await.unwrap().is_none().then_some(())
        })
        .await;
    };
    for plural in ["trainingrounds", "federatedstudies", "modelreleases", "trustsites"] {
        remove(plural).await;
        gone(plural).await;
    }
    // A promotion waits for its hospitals, and so for an operator; the guide has the way out.
    let promotions: Api<ModelPromotion> = Api::namespaced(admin.clone(), "research");
    assert_eq!(promotions.get("shadow").await.unwrap().finalizers(), ["consilium.health/cancel"]);
    remove("modelpromotions").await;
    let way_out = json!({"metadata": {"finalizers": null}});
    for promotion in Api::<ModelPromotion>::all(admin.clone()).list(&ListParams::default()).await.unwrap() {
        let of: Api<ModelPromotion> = Api::namespaced(admin.clone(), &promotion.namespace().unwrap());
        of.patch(&promotion.name_any(), &PatchParams::default(), &Patch::Merge(&way_out)).await.unwrap();
    }
    gone("modelpromotions").await;
    let releases: Api<ModelRelease> = Api::namespaced(admin.clone(), "research");
    assert!(releases.list(&ListParams::default()).await.is_err(), "nothing of ours is served any more");
}
