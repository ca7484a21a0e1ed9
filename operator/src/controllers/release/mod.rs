//! The ModelRelease controller: verifies the attestation, and keeps what hospitals fetch by the release's digest.

pub mod cut;
pub mod decide;

use std::sync::Arc;
use std::time::Duration;

use consilium_crds::ModelRelease;
use consilium_crds::conditions::{READY, status_of};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};

use super::context::Context;
use super::error::Error;
use super::write;

/// One turn of a release.
///
/// # Errors
/// See [`Error`].
pub async fn reconcile(release: Arc<ModelRelease>, context: Arc<Context>) -> Result<Action, Error> {
    let store = context.hub.store();
    let looked = store.has_object(release.spec.model).await;
    let stored = looked.map_err(Error::store("looking for the release's model"))?;
    let (status, notes) = decide::decide(&release, &context.key.verifying_key(), stored, context.now());
    let ready = status_of(&status.conditions, READY) == Some("True");
    if ready {
        // A hospital fetches the release itself by its digest and checks the model against it.
        store.put_json(&release.spec).await.map_err(Error::store("storing the release"))?;
    }
    if release.status.as_ref() != Some(&status) {
        let api: Api<ModelRelease> = Api::namespaced(context.client.clone(), &release.namespace().unwrap_or_default());
        let wanted = ModelRelease { status: Some(status), ..(*release).clone() };
        write::status(&api, &wanted).await?;
        write::events(&context, &*release, notes).await;
    }
    // A store that is restored says nothing: what is missing is looked for again now and then.
    Ok(if ready { Action::await_change() } else { Action::requeue(Duration::from_secs(300)) })
}
