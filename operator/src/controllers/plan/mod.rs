//! The ClinicalPlan controller: says whether a plan can be used, and keeps what hospitals fetch by its digest.

pub mod decide;

use std::sync::Arc;
use std::time::Duration;

use consilium_crds::ClinicalPlan;
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};

use super::context::Context;
use super::error::Error;
use super::write;

/// One turn of a plan.
///
/// # Errors
/// See [`Error`].
pub async fn reconcile(plan: Arc<ClinicalPlan>, context: Arc<Context>) -> Result<Action, Error> {
    let (status, notes) = decide::decide(&plan, context.now());
    let usable = plan.spec.plan();
    if let Ok(content) = &usable {
        // Its digest is over these very bytes.
        context.hub.store().put_json(content).await.map_err(Error::store("storing the plan"))?;
    }
    if plan.status.as_ref() != Some(&status) {
        let api: Api<ClinicalPlan> = Api::namespaced(context.client.clone(), &plan.namespace().unwrap_or_default());
        let wanted = ClinicalPlan { status: Some(status), ..(*plan).clone() };
        write::status(&api, &wanted).await?;
        write::events(&context, &*plan, notes).await;
    }
    // A store that was restored says nothing: what hospitals fetch is put there anew now and then.
    Ok(if usable.is_ok() { Action::requeue(Duration::from_secs(3600)) } else { Action::await_change() })
}
