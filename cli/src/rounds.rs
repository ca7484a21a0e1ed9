//! `cancel` has the hub end a round; `rollback` prints a study that starts from an earlier round's model.

use consilium_crds::TrainingRound;
use consilium_crds::training_round::CANCEL;
use consilium_federation::Digest;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use crate::cluster;
use crate::error::{CliError, Result};

/// Which round to end, and why.
#[derive(clap::Args)]
pub struct Cancel {
    /// Name of the TrainingRound.
    round: String,
    /// Its namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Why; stands in the round's status.
    #[arg(long)]
    reason: String,
}

/// Ends a round. Doing it twice is doing it once.
pub async fn cancel(arguments: &Cancel) -> Result<String> {
    let Cancel { round, namespace, reason } = arguments;
    let client = cluster::client().await?;
    let rounds: Api<TrainingRound> = Api::namespaced(client, namespace);
    let known = rounds.get_opt(round).await?.ok_or_else(|| missing("TrainingRound", namespace, round))?;
    if let Some(state) = known.status.and_then(|status| status.round).filter(|state| state.is_over()) {
        return Ok(format!("{round} is over already ({:?}); nothing was changed\n", state.outcome));
    }
    let patch = Patch::Merge(json!({"metadata": {"annotations": {CANCEL: reason}}}));
    rounds.patch(round, &PatchParams::default(), &patch).await?;
    Ok(format!(
        "{round} is asked to end: its hospitals are told to stop, and no release is cut from it.\n\
         The study goes on with the next round, from this round's model if it has one already; set spec.suspend to true \
         in the FederatedStudy to hold it, and see `rollback` for a study that starts from an earlier model.\n"
    ))
}

/// Where to go back to, and as what.
#[derive(clap::Args)]
pub struct Rollback {
    /// Name of the FederatedStudy.
    study: String,
    /// Its namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Number of the round whose model is the start.
    #[arg(long)]
    to_round: u32,
    /// Name of the new study.
    #[arg(long)]
    name: String,
}

/// Prints a study that starts from the model of a round. A hospital gives one sum on a model and no other, so that the way
/// back is a new study, which hospitals opt in to as to any other.
pub async fn rollback(arguments: &Rollback) -> Result<String> {
    let Rollback { study, namespace, to_round, name } = arguments;
    let client = cluster::client().await?;
    let kind = GroupVersionKind::gvk("consilium.health", "v1alpha1", "FederatedStudy");
    let kind = ApiResource::from_gvk_with_plural(&kind, "federatedstudies");
    let studies: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind);
    let known = studies.get_opt(study).await?.ok_or_else(|| missing("FederatedStudy", namespace, study))?;
    let rounds = cluster::list::<TrainingRound>(&client, Some(namespace)).await?.unwrap_or_default();
    let uid = known.metadata.uid.as_deref().unwrap_or_default();
    let model = model_of(&rounds, uid, *to_round)?;
    yaml(&restarted(&known.data["spec"], namespace, name, model))
}

fn missing(what: &'static str, namespace: &str, name: &str) -> CliError {
    let way_out = "studies and rounds live in the hub's cluster; name their namespace with --namespace";
    CliError::Missing { what, name: format!("{namespace}/{name}"), way_out }
}

fn model_of(rounds: &[TrainingRound], study_uid: &str, number: u32) -> Result<Digest> {
    let round = rounds.iter().find(|round| round.spec.number == number && round.spec.study_uid == study_uid);
    let model = round.and_then(|round| round.status.as_ref()?.round.as_ref()?.model);
    model.ok_or_else(|| CliError::Missing {
        what: "the model of round",
        name: number.to_string(),
        way_out: "the round has not ended with one, or is beyond spec.rounds.historyLimit; `kubectl get trounds` lists \
                  those that are kept, and a release names its model for ever: write that digest into \
                  spec.initialModel.digest",
    })
}

/// The same study under another name, from another model.
fn restarted(spec: &Value, namespace: &str, name: &str, model: Digest) -> Value {
    let mut spec = spec.clone();
    spec["initialModel"] = json!({"digest": model});
    if let Some(spec) = spec.as_object_mut() {
        spec.remove("suspend");
    }
    json!({
        "apiVersion": "consilium.health/v1alpha1",
        "kind": "FederatedStudy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    })
}

fn yaml(object: &Value) -> Result<String> {
    serde_yaml_ng::to_string(object)
        .map_err(|error| CliError::Cluster(format!("the study does not become YAML: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes back to an old model must be the same study in everything else, also in what this program does not know.
    #[test]
    fn a_restarted_study_differs_in_its_start_alone() {
        let spec =
            json!({"sites": [{"name": "alder"}], "initialModel": {"seed": 7}, "suspend": true, "later": {"x": 1}});
        let model = Digest::of(b"m3");
        let made = restarted(&spec, "research", "again", model);
        assert_eq!(
            made["spec"],
            json!({"sites": [{"name": "alder"}], "initialModel": {"digest": model}, "later": {"x": 1}})
        );
        let text = yaml(&made).unwrap();
        assert_eq!(serde_yaml_ng::from_str::<Value>(&text).unwrap(), made);
        let error = model_of(&[], "u", 3).unwrap_err().to_string();
        assert!(error.contains("round \"3\"") && error.contains("initialModel.digest"), "{error}");
    }
}
