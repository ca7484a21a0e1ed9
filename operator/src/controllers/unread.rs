//! Objects that this version cannot read: left out alone, told of where their owners look, and let go when they are
//! deleted. Nothing here needs their spec.

use std::collections::BTreeMap;
use std::sync::Arc;

use consilium_crds::conditions::{ACCEPTED, Conditions, READY, RECONCILING, STALLED, UNREADABLE};
use consilium_crds::{GROUP, Kind, ModelPromotion, Unread};
use consilium_federation::assignment::{DeployWork, Item, ItemState, RoundWork, Work};
use consilium_federation::ladder::Stage;
use consilium_federation::task::TaskKind;
use consilium_federation::{Digest, SiteName, StudyKey};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, Request};
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use serde_json::{Value, json};

use super::context::{Context, FINALIZER, MANAGER, ask};
use super::error::{Class, Error, not_found, wait};
use super::{fanout, trust_site};

/// Times that the API is asked for one version of an object; after that, its next change or a restart asks again.
const TRIES: u32 = 12;

/// Looks after an object that is there and cannot be read. The cache has dropped what it knew of it.
pub fn found<K: Kind>(context: &Arc<Context>, unread: Unread) {
    tracing::error!(
        kind = %K::kind(&()),
        namespace = unread.metadata.namespace,
        name = unread.metadata.name,
        error = %unread.why,
        "an object cannot be read and is left out, alone"
    );
    context.unread(&unread.metadata);
    concerns::<K>(context, &unread);
    let context = context.clone();
    tokio::spawn(async move {
        for failures in 0..TRIES {
            match turn::<K>(&context, &unread).await {
                Ok(()) => return,
                Err(error) => match error.class() {
                    // Gone, or changed since: then the watch brings the newer one here.
                    Class::Gone | Class::Conflict => return,
                    class => {
                        tracing::warn!(%error, "an object that cannot be read was not looked after");
                        let Some(pause) = wait(class, failures, rand::random()) else { return };
                        tokio::time::sleep(pause).await;
                    }
                },
            }
        }
    });
}

/// Forgets an object that could not be read and is gone, and what hung on it.
pub fn gone<K: Kind>(context: &Arc<Context>, unread: &Unread) {
    let uid = unread.metadata.uid.clone().unwrap_or_default();
    context.no_longer_unread(&uid);
    for round in context.caches.rounds.state_filter(|round| round.spec.study_uid == uid) {
        ask(&context.queues.rounds, ObjectRef::from_obj(&*round));
    }
    context.delivered.forget(&uid);
    context.forget_round(&uid);
    concerns::<K>(context, unread);
    fanout::sweep(context);
}

/// Has everything looked at that the object was a part of: it holds for nothing now.
fn concerns<K: Kind>(context: &Context, unread: &Unread) {
    let meta = &unread.metadata;
    let (name, namespace) = (meta.name.as_deref().unwrap_or_default(), meta.namespace.as_deref().unwrap_or_default());
    match &*K::kind(&()) {
        "TrustSite" => {
            // A hospital whose TrustSite cannot be read may not call: whether it is accepted is not known.
            trust_site::admit(context);
            if let Ok(site) = name.parse() {
                context.forget_site(&site);
                fanout::naming(context, &site);
            }
        }
        "TrainingRound" => {
            let studies = meta.owner_references.iter().flatten().filter(|owner| owner.kind == "FederatedStudy");
            for study in studies {
                ask(&context.queues.studies, ObjectRef::new(&study.name).within(namespace));
            }
        }
        "ClinicalPlan" => fanout::naming_plan(context, namespace, name),
        "ModelRelease" => {
            let names = |p: &ModelPromotion| p.namespace().as_deref() == Some(namespace) && p.spec.release.name == name;
            for promotion in context.caches.promotions.state_filter(names) {
                ask(&context.queues.promotions, ObjectRef::from_obj(&*promotion));
            }
        }
        _ => {}
    }
}

async fn turn<K: Kind>(context: &Context, unread: &Unread) -> Result<(), Error> {
    if let Some(finalizers) = without_ours(unread) {
        return let_go::<K>(context, unread, &finalizers).await;
    }
    if unread.metadata.deletion_timestamp.is_some() || K::group(&()) != GROUP {
        return Ok(());
    }
    let wanted =
        conditions(unread, K::kind(&()) == "FederatedStudy" || K::kind(&()) == "ModelPromotion", context.now());
    if wanted == unread.conditions {
        return Ok(());
    }
    let patch =
        json!({"metadata": {"resourceVersion": unread.metadata.resource_version}, "status": {"conditions": wanted}});
    send::<K>(context, unread, Some("status"), &patch).await.map_err(Error::kube("writing the status"))?;
    let event = Event {
        type_: EventType::Warning,
        reason: UNREADABLE.into(),
        note: Some(unread.why.to_string().chars().take(250).collect()),
        action: UNREADABLE.into(),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, &reference::<K>(unread)).await {
        tracing::warn!(%error, "an Event was not recorded");
    }
    Ok(())
}

/// Its finalizers without the operator's, when it is being deleted and the operator's holds it.
fn without_ours(unread: &Unread) -> Option<Vec<&str>> {
    unread.metadata.deletion_timestamp.as_ref()?;
    let all = unread.metadata.finalizers.as_ref()?;
    all.iter().any(|f| f == FINALIZER).then(|| all.iter().map(String::as_str).filter(|f| *f != FINALIZER).collect())
}

/// Tells the hospitals that were given work for it to stop, durably, and takes the finalizer off.
async fn let_go<K: Kind>(context: &Context, unread: &Unread, finalizers: &[&str]) -> Result<(), Error> {
    let uid = unread.metadata.uid.clone().unwrap_or_default();
    let known = context.book().tombstones(&uid);
    context.bury(tombstones(&K::kind(&()), &uid, unread, known)).await?;
    if K::kind(&()) == "TrainingRound" {
        let gone = context.hub.store().delete_round_uploads(&uid).await;
        gone.map_err(Error::store("deleting the uploads of a round that cannot be read"))?;
    }
    let patch = json!({"metadata": {"resourceVersion": unread.metadata.resource_version, "finalizers": finalizers}});
    match send::<K>(context, unread, None, &patch).await {
        Err(error) if !not_found(&error) => Err(Error::kube("removing the finalizer")(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What the book has, and the same for every other hospital that the object names: after a restart the book has nothing of
/// an object that cannot be read. In a tombstone its UID alone counts.
fn tombstones(kind: &str, uid: &str, unread: &Unread, mut known: BTreeMap<SiteName, Item>) -> BTreeMap<SiteName, Item> {
    let none = Digest::of(b"");
    let work = match kind {
        "ModelPromotion" => Work::Deploy(DeployWork {
            release: "unreadable".into(),
            release_digest: none,
            model: none,
            stage: Stage::Shadow,
            approvals: Vec::new(),
            plan: None,
            stage_approvals: Vec::new(),
        }),
        "TrainingRound" => Work::Round(RoundWork {
            study: StudyKey::new(unread.metadata.namespace.clone().unwrap_or_default(), "unreadable".to_owned()),
            study_uid: uid.to_owned(),
            spec_digest: none,
            round: 1,
            kind: TaskKind::Train,
            model: none,
            schema: none,
            roster_size: 1,
            attempt: 0,
            step: None,
            roster: None,
            inputs: None,
            deadline: Timestamp::UNIX_EPOCH,
        }),
        _ => return known,
    };
    for site in &unread.hospitals {
        let item = || Item { uid: uid.to_owned(), state: ItemState::Cancelled, work: work.clone() };
        known.entry(site.clone()).or_insert_with(item);
    }
    known
}

fn conditions(unread: &Unread, accepts: bool, now: Timestamp) -> Vec<Condition> {
    let words = unread.why.to_string();
    let mut conditions = Conditions::of_unread(&unread.conditions, unread.metadata.generation, now);
    conditions.set(READY, false, UNREADABLE, &words).set(STALLED, true, UNREADABLE, &words).clear(RECONCILING);
    if accepts {
        conditions.set(ACCEPTED, false, UNREADABLE, &words);
    }
    conditions.into_list()
}

/// Sends a patch, and reads nothing of the object that comes back: it cannot be read.
async fn send<K: Kind>(
    context: &Context,
    unread: &Unread,
    subresource: Option<&str>,
    patch: &Value,
) -> Result<(), kube::Error> {
    let name = unread.metadata.name.as_deref().unwrap_or_default();
    let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    let request = Request::new(K::url_path(&(), unread.metadata.namespace.as_deref()));
    let patch = Patch::Merge(patch);
    let request = match subresource {
        Some(subresource) => request.patch_subresource(subresource, name, &params, &patch),
        None => request.patch(name, &params, &patch),
    };
    context.client.request_text(request.map_err(kube::Error::BuildRequest)?).await.map(drop)
}

fn reference<K: Kind>(unread: &Unread) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: unread.metadata.name.clone(),
        namespace: unread.metadata.namespace.clone(),
        uid: unread.metadata.uid.clone(),
        resource_version: unread.metadata.resource_version.clone(),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use consilium_crds::Unreadable;
    use consilium_crds::conditions::status_of;

    use super::*;

    fn unread(meta: Value) -> Unread {
        Unread {
            metadata: serde_json::from_value(meta).unwrap(),
            conditions: Vec::new(),
            hospitals: ["alder", "birch"].map(|name| name.parse().unwrap()).into(),
            why: Unreadable::Unknown { field: "spec.privacy".into() },
        }
    }

    /// GitOps and people look at Ready; a write on each look would bring the next look, for ever.
    #[test]
    fn its_owner_reads_why_and_it_is_written_once() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut object = unread(json!({"name": "a", "generation": 3}));
        let first = conditions(&object, true, at(10));
        assert_eq!(
            ["Accepted", "Ready", "Stalled"].map(|t| status_of(&first, t)),
            [Some("False"), Some("False"), Some("True")]
        );
        assert!(first.iter().all(|c| c.message.contains("spec.privacy") && c.observed_generation == Some(3)));
        object.conditions = first.clone();
        assert_eq!(conditions(&object, true, at(20)), first);
    }

    /// A model that was taken back must stop in every hospital that serves it, also when the hub was started anew since and
    /// cannot read the promotion: nothing else ever tells them.
    #[test]
    fn every_hospital_that_the_object_names_hears_that_it_goes() {
        let object = unread(json!({"name": "a", "namespace": "research"}));
        for kind in ["ModelPromotion", "TrainingRound"] {
            let all = tombstones(kind, "u-1", &object, BTreeMap::new());
            assert_eq!(all.keys().map(SiteName::as_str).collect::<Vec<_>>(), ["alder", "birch"], "{kind}");
            assert!(all.values().all(|item| item.uid == "u-1" && item.state == ItemState::Cancelled));
            // What is known is better.
            let mut known = all.clone();
            known.retain(|site, item| {
                item.uid = "known".into();
                site.as_str() == "alder"
            });
            assert_eq!(tombstones(kind, "u-1", &object, known).values().next().unwrap().uid, "known");
        }
        assert!(tombstones("TrustSite", "u-1", &object, BTreeMap::new()).is_empty());
    }

    /// An object that cannot be read must not hang for ever; another's finalizer is not ours to take.
    #[test]
    fn only_our_finalizer_is_taken_and_only_on_deletion() {
        let finalizers = json!(["other/x", FINALIZER]);
        assert_eq!(without_ours(&unread(json!({"finalizers": finalizers}))), None);
        let going = json!({"finalizers": finalizers, "deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert_eq!(without_ours(&unread(going)), Some(vec!["other/x"]));
        let others = json!({"finalizers": ["other/x"], "deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert_eq!(without_ours(&unread(others)), None);
    }
}
