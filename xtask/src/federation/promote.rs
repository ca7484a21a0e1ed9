//! From a release to an answer: the offline signature, the promotion, and a scan sent to each hospital's model.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

use super::{
    Federation, RESEARCH, TASKS, data,
    wait::{self, Answer},
};
use crate::{
    cluster::Cluster,
    error::{Error, IoContext, Result},
    process,
};

/// A signer of the demo: a key pair that never enters a cluster.
pub struct Signer {
    /// Name of the key in the hospitals' policies.
    pub id: &'static str,
    /// The signer's role.
    pub role: &'static str,
    folder: std::path::PathBuf,
    plugin: std::path::PathBuf,
}

impl Signer {
    /// Makes a key with `kubectl consilium keygen`.
    pub fn new(folder: &Path, plugin: &Path) -> Result<Self> {
        fs::create_dir_all(folder).at("make folder", folder)?;
        let signer = Self {
            id: "demo-safety-officer",
            role: "clinical-safety-officer",
            folder: folder.to_owned(),
            plugin: plugin.to_owned(),
        };
        let key = signer.key();
        if key.exists() {
            fs::remove_file(&key).at("remove", &key)?;
        }
        process::output(Command::new(&signer.plugin).args(["keygen", "--out"]).arg(&key))?;
        Ok(signer)
    }

    fn key(&self) -> std::path::PathBuf {
        self.folder.join("safety-officer.key")
    }

    /// The entry for a SitePolicy's `releases.keys`.
    pub fn trusted_key(&self) -> Result<Value> {
        let path = self.key().with_extension("key.pub");
        let public = fs::read_to_string(&path).at("read", &path)?;
        Ok(json!({"id": self.id, "role": self.role, "publicKey": public.trim()}))
    }

    /// Signs with `kubectl consilium sign`, offline: the release is given as a file.
    pub fn sign(&self, release: &Value, stage: &str) -> Result<Value> {
        let file = self.folder.join("release.json");
        fs::write(&file, release.to_string()).at("write", &file)?;
        let mut sign = Command::new(&self.plugin);
        sign.arg("sign").arg("--key").arg(self.key()).arg("--release").arg(&file);
        sign.args([
            "--stage",
            stage,
            "--key-id",
            self.id,
            "--role",
            self.role,
            "--expires-in",
            "720h",
            "--output",
            "json",
            "--yes",
        ]);
        let text = process::output(&mut sign)?;
        serde_json::from_str(&text)
            .map_err(|error| Error::Malformed { path: "kubectl consilium sign".into(), problem: error.to_string() })
    }
}

/// Waits for the release of a study's newest passed round.
pub fn release(federation: &Federation, study: &Value) -> Result<Value> {
    let name = study["status"]["latestRelease"].as_str().ok_or_else(|| Error::Malformed {
        path: "FederatedStudy.status.latestRelease".into(),
        problem: "no round passed the gate, so there is no release".into(),
    })?;
    wait::for_condition(&federation.hub, (RESEARCH, "modelrelease", name), ("Attested", "True"))
}

/// The promotion of a release to a stage in some hospitals.
pub fn promotion(name: &str, release: &Value, stage: &str, sites: &[String], approvals: &[Value]) -> Value {
    json!({
        "apiVersion": "consilium.health/v1alpha1", "kind": "ModelPromotion",
        "metadata": {"name": name, "namespace": RESEARCH},
        "spec": {
            "release": {"name": release["metadata"]["name"], "digest": release["spec"]["model"]},
            "stage": stage, "sites": sites, "approvals": approvals,
        },
    })
}

/// Waits until every hospital of a promotion serves the model.
pub fn rolled_out(federation: &Federation, name: &str) -> Result<Value> {
    let object = (RESEARCH, "modelpromotion", name);
    wait::for_condition(&federation.hub, object, ("RolledOut", "True"))
}

/// One hospital's answer to one of its evaluation scans.
#[derive(Debug)]
pub struct Served {
    /// Who.
    pub site: String,
    /// Which scan.
    pub case: String,
    /// Dice for each class.
    pub dice: Vec<f64>,
    /// Milliseconds from request to answer.
    pub milliseconds: f64,
}

/// Sends one evaluation scan to the hospital's own inference service, from inside its network.
pub fn ask(site: &Cluster, data: &Path) -> Result<Served> {
    let service = wait::until(site, "the model's Service", || {
        let services = wait::list(site, TASKS, "services")?;
        let found = services.into_iter().find(|s| s["spec"]["ports"][0]["port"] == 8080);
        Ok(Answer::of(found, "no Service with port 8080"))
    })?;
    let address = service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    let deployments = wait::list(site, TASKS, "modeldeployments")?;
    let model = deployments.first().map(|d| d["spec"]["release"].as_str().unwrap_or_default().to_owned());
    let (image, label) = data::case(data, &site.name)?;
    let program = data::inference()?;
    let mut ask = site.command(program.get_program());
    for (key, value) in program.get_envs() {
        if let Some(value) = value {
            ask.env(key, value);
        }
    }
    ask.args(["ask", "--url", &format!("http://{address}:8080"), "--model", &model.unwrap_or_default()]);
    ask.arg("--image").arg(&image).arg("--label").arg(&label).arg("--json");
    let text = process::output(&mut ask)?;
    let answer: Value = serde_json::from_str(text.trim())
        .map_err(|error| Error::Malformed { path: "consilium-inference ask".into(), problem: error.to_string() })?;
    let dice = answer["dice"].as_array().map(|list| list.iter().filter_map(Value::as_f64).collect());
    Ok(Served {
        site: site.name.clone(),
        case: image.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        dice: dice.unwrap_or_default(),
        milliseconds: answer["milliseconds"].as_f64().unwrap_or_default(),
    })
}
