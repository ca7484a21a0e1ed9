//! Objects drawn from every schema, given to the server: what it admits, operator and agent read, each of them and all of
//! them in one list. An object that hides another stops a hub for everybody.

use consilium_crds::study::CONFIG_DEPTH;
use consilium_crds::{
    ClinicalPlan, FederatedStudy, Kind, ModelDeployment, ModelPromotion, ModelRelease, RoundTask, SitePolicy,
    TrainingRound, TrustSite, Watched,
};
use futures::StreamExt as _;
use kube::core::ObjectList;
use serde_json::{Value, json};

use crate::api::Api;
use crate::{Findings, Place};

#[path = "../support/drawn.rs"]
mod draw;

/// Objects of each kind; with CONSILIUM_LONG as many as the types alone are tried with.
fn objects() -> usize {
    if std::env::var_os("CONSILIUM_LONG").is_some() { 2_000 } else { 150 }
}

/// At a time.
const CALLS: usize = 8;

/// All kinds, one after the other.
pub async fn all(api: &Api, places: &std::collections::BTreeMap<String, Place>, findings: &mut Findings) {
    kind::<TrustSite>(api, places, findings).await;
    kind::<FederatedStudy>(api, places, findings).await;
    kind::<TrainingRound>(api, places, findings).await;
    kind::<ModelRelease>(api, places, findings).await;
    kind::<ModelPromotion>(api, places, findings).await;
    kind::<ClinicalPlan>(api, places, findings).await;
    kind::<SitePolicy>(api, places, findings).await;
    kind::<RoundTask>(api, places, findings).await;
    kind::<ModelDeployment>(api, places, findings).await;
}

async fn kind<K: Kind>(api: &Api, places: &std::collections::BTreeMap<String, Place>, findings: &mut Findings) {
    let (name, mut draw) = (K::kind(&()).into_owned(), draw::Draw::new(CONFIG_DEPTH));
    let place = &places[&name];
    let drawn: Vec<Value> = (0..objects())
        .map(|n| {
            let mut object = draw::object(&mut draw, &name, &format!("drawn-{n}"), &place.schema);
            fit(&name, &mut object);
            object
        })
        .collect();
    // There is one policy and no second.
    let one = name == "SitePolicy";
    let sent = futures::stream::iter(&drawn).map(|object| async move {
        let answer = match one {
            true => api.try_create(&place.collection, object).await,
            false => api.create(&place.collection, object).await,
        };
        if !answer.accepted() {
            return (0, 0, None);
        }
        let mut held = answer.body;
        let mut statuses = 0;
        if let (Some(status), false) = (object.get("status"), one) {
            held["status"] = status.clone();
            let path =
                format!("{}/{}/status", place.collection, object["metadata"]["name"].as_str().unwrap_or_default());
            let answer = api.replace(&path, &held).await;
            statuses = usize::from(answer.accepted());
            held = if answer.accepted() { answer.body } else { api.get(path.trim_end_matches("/status")).await.body };
        }
        (1, statuses, Some(held))
    });
    let answers: Vec<(usize, usize, Option<Value>)> = sent.buffer_unordered(CALLS).collect().await;
    let (admitted, statuses) = answers.iter().fold((0, 0), |(a, s), (admitted, status, _)| (a + admitted, s + status));
    let mut unread = 0;
    for held in answers.iter().filter_map(|(.., held)| held.as_ref()) {
        if let Some(why) = why_unread::<K>(held) {
            unread += 1;
            findings.faults.push(format!("{name}: admitted and not read: {why}: {held}"));
        }
    }
    let mut listed = 0;
    if !one {
        let body = api.get(&place.collection).await.body;
        match serde_json::from_value::<ObjectList<Watched<K>>>(body) {
            Ok(list) => listed = list.items.iter().filter(|item| item.0.is_ok()).count(),
            Err(error) => findings.faults.push(format!("{name}: the list of {admitted} is not read: {error}")),
        }
        if listed != admitted {
            findings.faults.push(format!("{name}: {admitted} were admitted, {listed} are read in the list"));
        }
        let gone = api.delete(&place.collection).await;
        findings.accepted(&format!("{name}: deleting what was drawn"), &gone);
    }
    println!(
        "  {name}: {} drawn, {admitted} admitted, {statuses} statuses admitted, {unread} not read, {listed} read in the list",
        drawn.len()
    );
    // A generator that draws nothing that the rules take shows nothing.
    if admitted * 20 < drawn.len() {
        findings.faults.push(format!("{name}: only {admitted} of {} drawn objects are admitted", drawn.len()));
    }
    findings.held += admitted;
}

fn why_unread<K: Kind>(object: &Value) -> Option<String> {
    match serde_json::from_value::<Watched<K>>(object.clone()) {
        Ok(Watched(Ok(_))) => None,
        Ok(Watched(Err(unread))) => Some(unread.why.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

/// Makes of a drawn object, field by field, one that holds to the rules across fields; most would break one of them.
fn fit(kind: &str, object: &mut Value) {
    let spec = &mut object["spec"];
    match kind {
        "FederatedStudy" => {
            let sites = spec["sites"].as_array().map_or(0, Vec::len) as u64;
            let quorum = spec["rounds"]["quorum"].as_u64().unwrap_or(3).min(sites).max(3);
            spec["rounds"]["quorum"] = json!(quorum);
            let secure = &mut spec["aggregation"]["secure"];
            secure["minContributors"] = json!(secure["minContributors"].as_u64().unwrap_or(3).min(quorum));
            let least = secure["minContributors"].as_u64().unwrap_or(3);
            if secure["colluders"].as_u64().is_some_and(|colluders| colluders + 2 > least) {
                secure["colluders"] = json!(least - 2);
            }
            if let Some(initial) = spec["initialModel"].as_object_mut() {
                if initial.contains_key("digest") {
                    initial.remove("seed");
                } else {
                    initial.entry("seed").or_insert(json!(7));
                }
            }
        }
        "SitePolicy" => {
            for study in spec["studies"].as_array_mut().into_iter().flatten() {
                if study["approval"] == "PerRound" && study.get("approvedThroughRound").is_none() {
                    study["approvedThroughRound"] = json!(1);
                }
            }
            let keys = spec["governance"]["keys"].as_array().map(Vec::len);
            if let (Some(keys), Some(required)) = (keys, spec["governance"]["required"].as_u64()) {
                spec["governance"]["required"] = json!(required.min(keys as u64));
            }
            if spec["limits"]["modelLease"].is_string() {
                spec["limits"]["modelLease"] = json!("5m");
            }
            object["metadata"]["name"] = json!("default");
        }
        _ => {}
    }
}
