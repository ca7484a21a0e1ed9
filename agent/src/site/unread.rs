//! A SitePolicy that this agent cannot read: told of where its administrator looks.

use std::time::Duration;

use consilium_crds::conditions::{Conditions, READY, UNREADABLE};
use consilium_crds::{SitePolicy, Unread};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams, Request};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource as _};
use serde_json::json;

/// Its own, so that the status that the agent applies otherwise keeps what is in it.
const MANAGER: &str = "consilium-agent-unread";
/// Times that the API server is asked for one version of the policy, and how long between them.
const TRIES: u32 = 30;
const AGAIN: Duration = Duration::from_secs(10);
/// What a policy that cannot be read does.
const CONSEQUENCE: &str = "until then nothing is allowed here, neither training nor models";

/// Sets the condition Ready of its status, and records an Event.
pub(super) async fn tell(client: Client, unread: Unread, now: Timestamp) {
    tracing::error!(error = %unread.why, "SitePolicy default cannot be read, so nothing is allowed");
    for _ in 0..TRIES {
        let Err(error) = turn(&client, &unread, now).await else { return };
        // It has been written anew or is gone: this version has nothing to say any more.
        if matches!(&error, kube::Error::Api(status) if matches!(status.code, 404 | 409)) {
            return;
        }
        tracing::warn!(%error, "that the SitePolicy cannot be read was not told; it is tried again");
        tokio::time::sleep(AGAIN).await;
    }
}

async fn turn(client: &Client, unread: &Unread, now: Timestamp) -> Result<(), kube::Error> {
    let words = format!("{}; {CONSEQUENCE}", unread.why);
    let mut conditions = Conditions::of_unread(&unread.conditions, unread.metadata.generation, now);
    conditions.set(READY, false, UNREADABLE, &words);
    let wanted = conditions.into_list();
    if wanted == unread.conditions {
        return Ok(());
    }
    let ready: Vec<_> = wanted.into_iter().filter(|condition| condition.type_ == READY).collect();
    let patch = json!({
        "apiVersion": SitePolicy::api_version(&()), "kind": SitePolicy::kind(&()),
        "metadata": {"resourceVersion": unread.metadata.resource_version}, "status": {"conditions": ready},
    });
    let name = unread.metadata.name.as_deref().unwrap_or_default();
    let request = Request::new(SitePolicy::url_path(&(), unread.metadata.namespace.as_deref()));
    let params = PatchParams::apply(MANAGER).force();
    let request = request.patch_subresource("status", name, &params, &Patch::Apply(&patch));
    // What comes back cannot be read.
    client.request_text(request.map_err(kube::Error::BuildRequest)?).await?;
    let event = Event {
        type_: EventType::Warning,
        reason: UNREADABLE.into(),
        note: Some(words.chars().take(250).collect()),
        action: "Read".into(),
        secondary: None,
    };
    let reporter = Reporter { controller: "consilium-agent".into(), instance: None };
    Recorder::new(client.clone(), reporter).publish(&event, &reference(unread)).await
}

fn reference(unread: &Unread) -> ObjectReference {
    ObjectReference {
        api_version: Some(SitePolicy::api_version(&()).into_owned()),
        kind: Some(SitePolicy::kind(&()).into_owned()),
        name: unread.metadata.name.clone(),
        namespace: unread.metadata.namespace.clone(),
        uid: unread.metadata.uid.clone(),
        resource_version: unread.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}
