//! Models in use beside a real API server: what it refuses is said, and what goes in the wrong order goes.

use consilium_crds::conditions::status_of;
use consilium_crds::{ModelDeployment, ModelHazard, ModelReleaseSpec, RoundTask};
use consilium_federation::Digest;
use consilium_federation::assignment::{DeployWork, Item, ItemState, Work};
use consilium_federation::ladder::Stage;
use consilium_federation::report::RolloutReason;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Secret, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::cluster::Cluster;
use crate::progress::until;
use crate::{Agent, NAMESPACE, item};

const UID: &str = "promotion-1";
/// Admitted as a study's name, and no Service may begin with a digit.
const RELEASE: &str = "3d-hippocampus-r1";
const MODEL: &str = "m-3d-hippocampus-r1";

pub(crate) fn release() -> ModelReleaseSpec {
    let digest = Digest::of(b"served");
    serde_json::from_value(json!({
        "study": "research/3d-hippocampus", "studyUID": "study", "round": 1, "model": digest, "specDigest": digest,
        "baseModel": digest, "trainerImage": format!("registry.example/trainer@{digest}"), "config": {},
        "contributors": ["alder", "birch", "cedar"], "dice": "0.9000", "evidence": [],
        "attestation": {"keyID": "", "signature": ""},
    }))
    .unwrap()
}

fn promoted(state: ItemState) -> Item {
    asked(state, Stage::Shadow)
}

fn asked(state: ItemState, stage: Stage) -> Item {
    let work = DeployWork {
        release: RELEASE.into(),
        release_digest: release().digest(),
        model: release().model,
        stage,
        approvals: vec![],
        plan: None,
        stage_approvals: Vec::new(),
    };
    Item { uid: UID.into(), state, work: Work::Deploy(work) }
}

/// A quota, an admission policy or a name that is none: the hospital reads whose words they are and what of, the hub reads
/// that it was the cluster and not the policy, and neither reads "rolling out" for ever.
pub(crate) async fn what_the_api_server_refuses_stands_on_the_model_and_at_the_hub(
    cluster: &Cluster,
    agent: &mut Agent,
) {
    let name = "no-services";
    cluster.forbid(name, ("", "services"), "ask the network team first").await;
    let probe: Service = serde_json::from_value(json!({
        "metadata": {"name": "probe"}, "spec": {"ports": [{"port": 80}]},
    }))
    .unwrap();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let let_in = || async { cluster.api::<Service>().create(&dry, &probe).await.is_ok() };
    until("the admission policy is in force", || async { (!let_in().await).then_some(()) }).await;

    agent.want(vec![promoted(ItemState::Active)]);
    let conditions = until("the model says what was refused", || async {
        let model: ModelDeployment = cluster.get(MODEL).await?;
        let conditions = model.status?.conditions;
        (status_of(&conditions, "Stalled") == Some("True")).then_some(conditions)
    })
    .await;
    let ready = conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    for part in ["API server refused", &format!("Service {MODEL}"), "ask the network team first"] {
        assert!(ready.message.contains(part), "{part}: {}", ready.message);
    }
    assert_eq!(status_of(&conditions, "Approved"), Some("True"), "the hospital's policy did not say no");
    let told = || agent.ctx.facts.snapshot().1.into_iter().find(|fact| fact.uid == UID);
    let fact = told().unwrap();
    assert_eq!(fact.reason, RolloutReason::DeniedByPolicy);
    let words = fact.message.unwrap();
    assert!(words.contains("API server refuses") && !words.contains("network team"), "{words}");

    cluster.allow(name).await;
    until("the model is built once it is let in", || async {
        let _: Service = cluster.get(MODEL).await?;
        let _: Deployment = cluster.get(MODEL).await?;
        let model: ModelDeployment = cluster.get(MODEL).await?;
        let conditions = model.status?.conditions;
        let told = told()?;
        (status_of(&conditions, "Stalled").is_none() && told.message.is_none()).then_some(())
    })
    .await;
    let secrets = cluster.api::<Secret>().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(secrets.iter().filter(|s| s.name_any().starts_with(MODEL)).count(), 1);
}

/// A hub asks for more than the hospital allows: the model is in use all the same, on the stage that the hospital finds, and
/// its people read which and why. The hub reads which.
pub(crate) async fn a_model_that_is_asked_too_high_stands_where_the_hospital_says(
    cluster: &Cluster,
    agent: &mut Agent,
) {
    agent.want(vec![asked(ItemState::Active, Stage::PrimaryReader)]);
    let because = until("the model is asked high and stands low", || async {
        let model: ModelDeployment = cluster.get(MODEL).await?;
        let (spec, status) = (model.spec, model.status?);
        assert_eq!(status.stage.unwrap_or(Stage::Shadow), Stage::Shadow);
        if spec.stage == Stage::PrimaryReader { status.because } else { None }
    })
    .await;
    assert!(because.contains("SafetyNet needs a higher releases.maxStage"), "{because}");
    agent.want(vec![promoted(ItemState::Active)]);
    until("it stands as asked, and says nothing", || async {
        let model: ModelDeployment = cluster.get(MODEL).await?;
        (model.spec.stage == Stage::Shadow && model.status?.because.is_none()).then_some(())
    })
    .await;
}

/// A safety officer opens a hazard that withdraws the model: its object stays and says why, the hub reads that the hospital
/// says no. Somebody deletes the hazard: it is there again. It ends by being closed with proof, and stays in the log.
pub(crate) async fn a_hazard_withdraws_a_model_until_it_is_closed(cluster: &Cluster, agent: &mut Agent) {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let own = json!({"metadata": {"name": agent.ctx.config.namespace}});
    namespaces.create(&PostParams::default(), &serde_json::from_value(own).unwrap()).await.unwrap();
    let hazards: Api<ModelHazard> = Api::namespaced(cluster.client.clone(), &agent.ctx.config.namespace);
    let hazard: ModelHazard = serde_json::from_value(json!({
        "apiVersion": "consilium.health/v1alpha1", "kind": "ModelHazard", "metadata": {"name": "wrong-plane"},
        "spec": {
            "of": {"line": release().study}, "hazard": "a scan of another plane is read", "causes": ["too wide a rule"],
            "effect": "a finding is missed", "harm": "late treatment", "initial": {"severity": 4, "likelihood": 2},
            "owner": "clinical-safety-officer", "lowers": "Withdraw", "opened": "2026-06-01T00:00:00Z",
        },
    }))
    .unwrap();
    hazards.create(&PostParams::default(), &hazard).await.unwrap();
    let held = || async {
        let model: ModelDeployment = cluster.get(MODEL).await?;
        let status = model.status?;
        let ready = status.conditions.into_iter().find(|c| c.type_ == "Ready")?;
        (ready.reason == "DeniedByPolicy").then_some((ready.message, status.stage))
    };
    let (why, stage) = until("the model is withdrawn", held).await;
    assert!(why.contains("the hospital's hazard wrong-plane closed") && stage.is_none(), "{why} {stage:?}");
    let told = || agent.ctx.facts.snapshot().1.into_iter().find(|fact| fact.uid == UID);
    until("the hub reads it", || async { (told()?.reason == RolloutReason::DeniedByPolicy).then_some(()) }).await;
    assert_eq!((told().unwrap().message, told().unwrap().serving), (None, None), "why stays in the hospital");

    hazards.delete("wrong-plane", &DeleteParams::default()).await.unwrap();
    let again = until("an open hazard that was deleted is there again", || async {
        hazards.get_opt("wrong-plane").await.unwrap()
    })
    .await;
    assert_eq!(again.spec, hazard.spec);
    assert!(held().await.is_some());

    let close = |proof: serde_json::Value| {
        json!({"spec": {
            "controls": [{"control": "the rule names the plane", "proof": proof}],
            "residual": {"severity": 4, "likelihood": 1},
            "closed": {"at": "2026-06-02T00:00:00Z", "by": "clinical-safety-officer", "why": "it cannot happen any more"},
        }})
    };
    let patch = |change: serde_json::Value| async {
        hazards.patch("wrong-plane", &PatchParams::default(), &Patch::Merge(change)).await
    };
    let refused = patch(close(serde_json::Value::Null)).await.unwrap_err().to_string();
    assert!(refused.contains("each with its proof"), "{refused}");
    patch(close("test 12 passes".into())).await.unwrap();
    until("the model comes back when it is closed", || async {
        let model: ModelDeployment = cluster.get(MODEL).await?;
        (model.status?.stage == Some(Stage::Shadow)).then_some(())
    })
    .await;
    let reopened = patch(json!({"spec": {"closed": null}})).await.unwrap_err().to_string();
    assert!(reopened.contains("a closed hazard cannot be changed"), "{reopened}");
}

/// Someone removes the definitions before the agent, or the agent before them: nothing of ours may hold them up, and what
/// ran goes with its owner.
pub(crate) async fn a_definition_that_goes_first_takes_all_along(cluster: &Cluster, agent: &mut Agent) {
    let clock = agent.ctx.clock.clone();
    agent.want(vec![item("round-4", 4, ItemState::Active, &clock), promoted(ItemState::Active)]);
    until("a task stands", || async { cluster.get::<RoundTask>("hippocampus-r4-train").await }).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    for plural in ["roundtasks", "modeldeployments", "sitepolicies"] {
        let name = format!("{plural}.consilium.health");
        definitions.delete(&name, &DeleteParams::default()).await.unwrap();
        until("the definition is gone with its objects", || async {
            definitions.get_opt(&name).await.unwrap().is_none().then_some(())
        })
        .await;
    }
    // The garbage collector of a real cluster takes what they owned, pods and models among it; here it must only be owned.
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    let left = deployments.list(&ListParams::default()).await.unwrap().items;
    assert!(!left.is_empty() && left.iter().all(|d| !d.owner_references().is_empty() && d.finalizers().is_empty()));
}
