//! The governance of a federation on one machine: two members, each with a key that never enters a cluster, who sign
//! which hospitals belong to it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use super::{
    AGENT, Federation, SYSTEM, study,
    wait::{self, Answer},
};
use crate::{
    cluster::Cluster,
    error::{IoContext, Result},
    process,
};

/// Name of the federation, in every roster and policy.
pub const FEDERATION: &str = "demo";
/// The members, each in a file of its own; both must sign.
const MEMBERS: [&str; 2] = ["chair", "trusts"];
/// The governance members' keys, and the tool that they use.
pub struct Governance {
    folder: PathBuf,
    plugin: PathBuf,
}

impl Governance {
    /// Makes the members' keys with `kubectl consilium keygen`.
    pub fn new(folder: &Path, plugin: &Path) -> Result<Self> {
        let folder = folder.join("governance");
        // Keys and rosters of an earlier run belong to clusters that are gone.
        if folder.exists() {
            fs::remove_dir_all(&folder).at("remove", &folder)?;
        }
        fs::create_dir_all(&folder).at("make folder", &folder)?;
        let governance = Self { folder, plugin: plugin.to_owned() };
        for member in MEMBERS {
            governance.consilium(&["keygen", "--out", &governance.key(member)])?;
        }
        Ok(governance)
    }

    /// What every hospital pins in its SitePolicy's `spec.governance`.
    pub fn pinned(&self) -> Result<Value> {
        let key = |member: &&str| -> Result<Value> {
            let path = format!("{}.pub", self.key(member));
            let public = fs::read_to_string(&path).at("read", &path)?;
            Ok(json!({"id": member, "publicKey": public.trim()}))
        };
        let keys = MEMBERS.iter().map(key).collect::<Result<Vec<_>>>()?;
        Ok(json!({"federation": FEDERATION, "required": MEMBERS.len(), "keys": keys}))
    }

    /// From policies that pin the governance to a roster that every hospital has accepted.
    pub fn establish(&self, federation: &Federation) -> Result<()> {
        let policy = study::policy(federation, &[], &study::Pins { governance: self.pinned()?, keys: json!([]) })?;
        federation.sites.iter().try_for_each(|site| study::apply_policy(site, &policy))?;
        let mut listed = Vec::new();
        for site in &federation.sites {
            listed.push((site.name.clone(), signing_key(site)?));
        }
        fs::write(self.policy(), policy.to_string()).at("write", self.policy())?;
        let mut new = vec!["--federation".to_owned(), FEDERATION.to_owned()];
        new.extend(listed.iter().map(|(name, key)| format!("--site={name}={key}")));
        self.publish(federation, 1, &new)
    }

    /// Publishes `version`, made from the one before with these arguments of `roster new`; returns when every hospital
    /// has accepted it. The version before stays beside it.
    pub fn next(&self, federation: &Federation, version: u64, changes: &[String]) -> Result<()> {
        let mut new = vec!["--from".to_owned(), self.file(version - 1)];
        new.extend(changes.iter().cloned());
        self.publish(federation, version, &new)
    }

    /// Writes a version, has every member sign it, judges it as the hospitals will, and applies its ConfigMap.
    fn publish(&self, federation: &Federation, version: u64, new: &[String]) -> Result<()> {
        let (out, number) = (self.file(version), version.to_string());
        let mut arguments = vec!["roster", "new", "--version", &number, "--out", &out];
        arguments.extend(new.iter().map(String::as_str));
        self.consilium(&arguments)?;
        for member in MEMBERS {
            self.consilium(&["roster", "sign", "--key", &self.key(member), &out])?;
        }
        self.consilium(&["roster", "show", &out, "--governance", &self.policy().to_string_lossy()])?;
        let map = self.consilium(&["roster", "configmap", "--namespace", SYSTEM, &out])?;
        federation.hub.apply_yaml(&map)?;
        federation.sites.iter().try_for_each(|site| accepted(site, version))
    }

    fn file(&self, version: u64) -> String {
        self.folder.join(format!("roster-{version}.json")).to_string_lossy().into_owned()
    }

    fn policy(&self) -> PathBuf {
        self.folder.join("policy.json")
    }

    fn key(&self, member: &str) -> String {
        self.folder.join(format!("{member}.key")).to_string_lossy().into_owned()
    }

    /// The plugin, away from every cluster.
    fn consilium(&self, args: &[&str]) -> Result<String> {
        process::output(Command::new(&self.plugin).args(args))
    }
}

/// The hospital's public signing key, as its agent shows it.
pub fn signing_key(site: &Cluster) -> Result<String> {
    wait::until(site, &format!("the signing key of {}", site.name), || {
        let policy = wait::get(site, AGENT, "sitepolicy", "default")?;
        let key = policy["status"]["signingKey"].as_str().map(str::to_owned);
        Ok(Answer::of(key, &policy["status"]))
    })
}

/// Waits until a version of the roster holds in a hospital.
fn accepted(site: &Cluster, version: u64) -> Result<()> {
    wait::until(site, &format!("roster version {version} in {}", site.name), || {
        let policy = wait::get(site, AGENT, "sitepolicy", "default")?;
        let holds = policy["status"]["rosters"].as_array().into_iter().flatten().any(|r| r["version"] == version);
        let seen = wait::condition(&policy, "RosterAccepted");
        Ok(Answer::of(holds.then_some(()), format!("{} {seen:?}", policy["status"]["rosters"])))
    })
}
