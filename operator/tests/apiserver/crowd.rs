//! Objects of everybody else: whatever the schemas admit, at their edges, and what no version can read. The federation that
//! the tests are about goes on beside them, also after a restart: one object never stops or hides another.

use consilium_crds::conditions::status_of;
use consilium_crds::study::CONFIG_DEPTH;
use consilium_crds::{FederatedStudy, schema};
use futures::StreamExt as _;
use kube::api::{DeleteParams, DynamicObject, PostParams};
use kube::core::ApiResource;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::progress::until;
use crate::world::{SITES, apply, study};

#[path = "../../../tests/support/drawn.rs"]
mod draw;

const CROWD: &str = "crowd";
const KINDS: [&str; 5] = ["TrustSite", "FederatedStudy", "TrainingRound", "ModelRelease", "ModelPromotion"];

/// Puts them there; how many of each kind were admitted is printed.
pub async fn gather(admin: &Client) {
    apply(admin, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": CROWD}})).await;
    let many = if std::env::var_os("CONSILIUM_LONG").is_some() { 2_000 } else { 100 };
    for kind in KINDS {
        let crd = schema::all().into_iter().find(|crd| crd.spec.names.kind == kind).unwrap();
        let shape = serde_json::to_value(&crd).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
        let resource = ApiResource {
            group: "consilium.health".into(),
            version: "v1alpha1".into(),
            api_version: "consilium.health/v1alpha1".into(),
            kind: kind.into(),
            plural: crd.spec.names.plural.clone(),
        };
        let api: Api<DynamicObject> = match crd.spec.scope.as_str() {
            "Namespaced" => Api::namespaced_with(admin.clone(), CROWD, &resource),
            _ => Api::all_with(admin.clone(), &resource),
        };
        let mut drawing = draw::Draw::new(CONFIG_DEPTH);
        let drawn: Vec<Value> =
            (0..many).map(|n| draw::object(&mut drawing, kind, &format!("drawn-{n}"), &shape)).collect();
        let made = futures::stream::iter(drawn).map(|object| put(&api, object)).buffer_unordered(8);
        let admitted = made.filter(|made| std::future::ready(*made)).count().await;
        println!("{kind}: {admitted} of {many} drawn objects were admitted");
    }
    // Admitted, and no version of ours reads it.
    let mut deep = study("deep", 1, &SITES);
    deep["metadata"]["namespace"] = json!(CROWD);
    deep["spec"]["trainer"]["config"] = (0..118).fold(json!(1), |inner, _| json!({"a": inner}));
    apply(admin, deep).await;
}

async fn put(api: &Api<DynamicObject>, object: Value) -> bool {
    let status = object.get("status").cloned();
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    let Ok(mut made) = api.create(&PostParams::default(), &object).await else { return false };
    if let Some(status) = status {
        made.data["status"] = status;
        let name = made.metadata.name.clone().unwrap_or_default();
        // One that the rules refuse is left out; the object stays.
        let _ = api.replace_status(&name, &PostParams::default(), &made).await;
    }
    true
}

/// What cannot be read says so where its owner looks, and is deleted like any other.
pub async fn the_one_that_cannot_be_read_says_so_and_goes(admin: &Client) {
    let studies: Api<DynamicObject> = Api::namespaced_with(
        admin.clone(),
        CROWD,
        &ApiResource { plural: "federatedstudies".into(), ..ApiResource::erase::<FederatedStudy>(&()) },
    );
    until("the study that cannot be read says so", async || {
        let study = studies.get("deep").await.ok()?;
        let conditions = serde_json::from_value::<Vec<_>>(study.data["status"]["conditions"].clone()).ok()?;
        (status_of(&conditions, "Accepted") == Some("False")).then_some(())
    })
    .await;
    studies.delete("deep", &DeleteParams::default()).await.unwrap();
    until("it is gone", async || studies.get_opt("deep").await.ok()?.is_none().then_some(())).await;
}
