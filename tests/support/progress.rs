//! Waiting in tests beside a real API server: patient for as long as anything moves.
//!
//! A limit on the wall clock fails on a busy machine and says nothing about the code. Here a wait ends in a failure only
//! when nothing that a test can see has changed for [`STILL`]: no object of ours, no Job, no pod.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DynamicObject, ListParams, Request};
use kube::core::ApiResource;
use kube::{Client, Resource as _};
use serde::Deserialize;

/// How long everything may stand still.
const STILL: Duration = Duration::from_secs(120);
/// How often it is looked whether anything moves.
const GLANCE: Duration = Duration::from_secs(5);
/// Between two looks at what is waited for.
const PAUSE: Duration = Duration::from_millis(50);
const OURS: [(&str, &str); 8] = [
    ("TrustSite", "trustsites"),
    ("FederatedStudy", "federatedstudies"),
    ("TrainingRound", "trainingrounds"),
    ("ModelRelease", "modelreleases"),
    ("ModelPromotion", "modelpromotions"),
    ("ClinicalPlan", "clinicalplans"),
    ("RoundTask", "roundtasks"),
    ("ModelDeployment", "modeldeployments"),
];

static WATCHED: OnceLock<Client> = OnceLock::new();

/// Says which API server the tests of this program run beside.
pub fn beside(client: Client) {
    WATCHED.set(client).ok();
}

/// Looks until there is an answer. Name what is new in the condition waited for (a generation, a UID, a try): what held
/// before the step under test holds at the first look.
///
/// # Panics
/// When nothing changes any more and there is no answer.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let (mut seen, mut moved, mut glanced) = (None, Instant::now(), Instant::now());
    loop {
        if let Some(answer) = look().await {
            return answer;
        }
        tokio::time::sleep(PAUSE).await;
        if glanced.elapsed() >= GLANCE {
            let signs = Some(signs(WATCHED.get().expect("`beside` was called first")).await);
            if signs != seen {
                (seen, moved) = (signs, Instant::now());
            }
            glanced = Instant::now();
        }
        assert!(moved.elapsed() < STILL, "nothing has changed for {} s, and still not: {what}", STILL.as_secs());
    }
}

/// What is looked at, and nothing beside it: who wrote a field nests as deep as the field, deeper than JSON is read.
#[derive(Deserialize)]
struct List {
    /// Go writes an empty list as null.
    items: Option<Vec<Item>>,
}

#[derive(Deserialize)]
struct Item {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    uid: String,
    resource_version: String,
}

/// A number that changes with every object that comes, changes or goes.
async fn signs(client: &Client) -> u64 {
    let mut kinds: Vec<ApiResource> = OURS.iter().map(|(kind, plural)| resource(kind, plural)).collect();
    kinds.push(ApiResource::erase::<Job>(&()));
    kinds.push(ApiResource::erase::<Pod>(&()));
    let mut hasher = DefaultHasher::new();
    for kind in &kinds {
        let list = Request::new(DynamicObject::url_path(kind, None)).list_metadata(&ListParams::default());
        // A kind that is not served yet is a sign as well, once it is.
        let found = client.request::<List>(list.expect("a request")).await.ok().and_then(|list| list.items);
        for object in found.unwrap_or_default() {
            (&object.metadata.uid, &object.metadata.resource_version).hash(&mut hasher);
        }
    }
    hasher.finish()
}

fn resource(kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: "consilium.health".into(),
        version: "v1alpha1".into(),
        api_version: "consilium.health/v1alpha1".into(),
        kind: kind.into(),
        plural: plural.into(),
    }
}
