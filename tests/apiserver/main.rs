//! The API as a real API server sees it: it takes the definitions (structural schemas, CEL costs), takes what is right,
//! and refuses what is wrong in words that name the field, the value and the rule.
//!
//! Needs a server: `cargo xtask apiserver` starts one and runs this.

// A test of its own harness: a panic is how it fails.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use consilium_crds::schema;
use consilium_federation::{ids::SiteName, round::RoundState};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

mod api;
mod drawn;
#[path = "../../crds/testdata/table.rs"]
mod table;
mod wrong;

use api::{Answer, Api};
use table::{Table, merge};

/// What the server says after a refusal by the schema, before it looked at the rules.
const REST: &str = ", <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; \
                    correct the existing errors to complete validation";
const KUBECONFIG: &str = "CONSILIUM_APISERVER_KUBECONFIG";

/// Counts what held and remembers what did not.
#[derive(Default)]
struct Findings {
    held: usize,
    faults: Vec<String>,
}

impl Findings {
    /// Prints a refusal and checks that it is one and says what it must.
    fn refused(&mut self, what: &str, answer: &Answer, says: &[String]) {
        let message = answer.message();
        // The server adds this to every refusal by the schema; it would only be in the way of reading.
        println!("  {what}\n      {}", message.replace(REST, ""));
        if answer.accepted() {
            return self.faults.push(format!("{what}: was accepted"));
        }
        match says.iter().find(|part| !message.contains(part.as_str())) {
            None => self.held += 1,
            Some(part) => self.faults.push(format!("{what}: the message does not say {part:?}: {message}")),
        }
    }

    fn accepted(&mut self, what: &str, answer: &Answer) {
        if answer.accepted() {
            self.held += 1;
        } else {
            self.faults.push(format!("{what}: was refused: {}", answer.message()));
        }
    }
}

/// Where the objects of a kind live.
struct Place {
    collection: String,
    schema: Value,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Ok(path) = std::env::var(KUBECONFIG) else {
        println!(
            "apiserver: not run, since {KUBECONFIG} is not set; `cargo xtask apiserver` starts a server and runs this"
        );
        return ExitCode::SUCCESS;
    };
    if std::env::var("CONSILIUM_APISERVER_SUITE").is_ok_and(|suite| suite != "api") {
        return ExitCode::SUCCESS;
    }
    let kubeconfig = Kubeconfig::read_from(&path).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a config");
    rustls::crypto::ring::default_provider().install_default().ok();
    let api = Api::new(Client::try_from(config).expect("a client"));
    let mut findings = Findings::default();
    let places = install(&api, &mut findings).await;
    let table = Table::read();
    println!("\nrules");
    for case in &table.rules {
        rule(&api, &table, case, &places[&case.kind], &mut findings).await;
    }
    println!("\nfields");
    for (kind, object) in &table.objects {
        let place = &places[kind];
        findings.accepted(&format!("{kind} as it stands"), &api.try_create(&place.collection, object).await);
        for wrong in wrong::every_field(&place.schema, object) {
            let what = format!("{kind} {} {}", wrong.path, wrong.what);
            findings.refused(&what, &api.try_create(&place.collection, &wrong.object).await, &wrong.says);
        }
    }
    println!("\nstatus");
    full_status(&api, &table, &places["TrainingRound"], &mut findings).await;
    println!("\ndrawn");
    drawn::all(&api, &places, &mut findings).await;
    report(&findings)
}

fn report(findings: &Findings) -> ExitCode {
    println!("\napiserver: {} held, {} did not", findings.held, findings.faults.len());
    findings.faults.iter().for_each(|fault| println!("  {fault}"));
    if findings.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Creates the definitions and waits until the server serves them.
async fn install(api: &Api, findings: &mut Findings) -> BTreeMap<String, Place> {
    const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let mut places = BTreeMap::new();
    for crd in schema::all() {
        let object = serde_json::to_value(&crd).expect("JSON");
        let name = crd.metadata.name.clone().unwrap_or_default();
        let created = api.create(DEFINITIONS, &object).await;
        assert!(created.accepted(), "definition {name}: {}", created.message());
        findings.held += 1;
        let namespace = if crd.spec.scope == "Namespaced" { "/namespaces/default" } else { "" };
        let collection = format!("/apis/consilium.health/v1alpha1{namespace}/{}", crd.spec.names.plural);
        established(api, &format!("{DEFINITIONS}/{name}"), &collection).await;
        let schema = object["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
        places.insert(crd.spec.names.kind.clone(), Place { collection, schema });
    }
    places
}

/// Waits until the definition is established and its objects can be listed; the server has no other way to say so.
async fn established(api: &Api, definition: &str, collection: &str) {
    for _ in 0..300 {
        let body = api.get(definition).await.body;
        let conditions = body["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if let Some(bad) = conditions.iter().find(|c| c["type"] == "NonStructuralSchema" && c["status"] == "True") {
            panic!("{definition}: {bad}");
        }
        let served = conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True");
        if served && api.get(collection).await.accepted() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{definition} was not established within 30 s");
}

async fn rule(api: &Api, table: &Table, case: &table::RuleCase, place: &Place, findings: &mut Findings) {
    let what = format!("{} `{}`", case.kind, case.rule);
    let (pass, fail) = (table.object(&case.kind, &case.pass), table.object(&case.kind, &case.fail));
    if !case.looks_back() {
        findings.accepted(&what, &api.try_create(&place.collection, &pass).await);
        findings.refused(&what, &api.try_create(&place.collection, &fail).await, &case.message);
        return;
    }
    let before = &table.objects[&case.kind];
    let path = format!("{}/{}", place.collection, before["metadata"]["name"].as_str().unwrap_or_default());
    let created = api.create(&place.collection, before).await;
    findings.accepted(&format!("{what}: the object before"), &created);
    let version = json!({"metadata": {"resourceVersion": created.body["metadata"]["resourceVersion"]}});
    let with_version = |mut object: Value| {
        merge(&mut object, &version);
        object
    };
    findings.accepted(&what, &api.try_replace(&path, &with_version(pass)).await);
    findings.refused(&what, &api.try_replace(&path, &with_version(fail)).await, &case.message);
    api.delete(&path).await;
}

/// A round with 200 hospitals: what the operator writes is what it reads again, and etcd is not burdened.
async fn full_status(api: &Api, table: &Table, place: &Place, findings: &mut Findings) {
    let created = api.create(&place.collection, &table.objects["TrainingRound"]).await;
    findings.accepted("a round", &created);
    let sites = (0..200).map(|n| format!("hospital-{n}").parse::<SiteName>().expect("a name"));
    let now = "2026-06-01T00:00:00Z".parse().expect("a time");
    let state = serde_json::to_value(RoundState::new(sites, now, now)).expect("JSON");
    let mut object = created.body;
    object["status"] = json!({"observedGeneration": 1, "round": state});
    let path = format!("{}/{}", place.collection, object["metadata"]["name"].as_str().unwrap_or_default());
    let answer = api.replace(&format!("{path}/status"), &object).await;
    findings.accepted("a status with 200 hospitals", &answer);
    if answer.body["status"] == object["status"] {
        findings.held += 1;
    } else {
        findings
            .faults
            .push("the status came back changed: the schema drops or refuses what the round machine writes".into());
    }
    let bytes = object["status"].to_string().len();
    println!("  a status with 200 hospitals is {bytes} bytes");
    if bytes > 200 * 256 {
        findings.faults.push(format!("a status with 200 hospitals is {bytes} bytes, over 256 for each"));
    }
    api.delete(&path).await;
}
