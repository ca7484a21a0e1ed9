//! What is to run: read from the arguments, checked by the rules of the hub, before anything starts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use consilium_crds::FederatedStudy;
use consilium_crds::roster::key_text;
use consilium_crds::site_policy::SitePolicySpec;
use consilium_crds::study::ProtocolKind;
use consilium_federation::{Digest, SiteName, StudyKey};
use consilium_operator::controllers::study::accept::{self, SiteFacts, Sites};
use consilium_secagg::identity::SiteKey;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Arguments, Failure, Result};

/// Name of the federation in its roster.
pub(super) const FEDERATION: &str = "local";
/// The only member of its governance.
const GOVERNOR: &str = "this-machine";

/// What a hospital's process is told, in `hospital.json` of its folder.
#[derive(Serialize, Deserialize)]
pub(super) struct Setup {
    pub(super) site: SiteName,
    /// `https://127.0.0.1:PORT`.
    pub(super) gateway: String,
    pub(super) policy: SitePolicySpec,
    /// The command that the contract's arguments are added to.
    pub(super) trainer: Vec<String>,
    /// The platform's own, where there is one.
    pub(super) evaluator: Option<Vec<String>>,
    /// Folder with train, eval and labels.
    pub(super) data: PathBuf,
    /// CPU threads of its trainer.
    pub(super) threads: usize,
}

/// A study to run.
pub(super) struct Plan {
    /// With its UID.
    pub(super) study: FederatedStudy,
    pub(super) key: StudyKey,
    pub(super) uid: String,
    pub(super) digest: Digest,
    /// The hospitals that there are, in the order of the study.
    pub(super) sites: Vec<SiteName>,
    /// All that the study names, as the hub's administrators would have them.
    pub(super) facts: Sites,
    pub(super) trainer: Vec<String>,
    pub(super) builtin: Option<PathBuf>,
    pub(super) out: PathBuf,
}

impl Plan {
    /// Reads the study and looks whether it can run here.
    pub(super) fn read(arguments: &Arguments) -> Result<Self> {
        let mut study = crate::objects::study(&arguments.study).map_err(|e| Failure::Refused(e.to_string()))?;
        let (digest, name) = (study.spec.digest(), study.metadata.name.clone().unwrap_or_default());
        let namespace = study.metadata.namespace.get_or_insert_with(|| "default".into()).clone();
        // The same study in the same place is the same one: what lies in --out is carried on.
        let hex = Digest::of(format!("{namespace}/{name}/{digest}").as_bytes()).hex();
        let uid = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32]);
        study.metadata.uid = Some(uid.clone());
        study.metadata.generation = Some(1);
        let named = study.spec.site_names();
        rules(&study)?;
        let count = arguments.hospitals.map_or(named.len(), |n| n as usize);
        if count > named.len() {
            return Err(Failure::Refused(format!(
                "--hospitals is {count}, but spec.sites of {name} names {}: name as many there, or leave --hospitals out",
                named.len()
            )));
        }
        let fact = |(n, site): (usize, &SiteName)| {
            (site.clone(), SiteFacts { accepted: n < count, namespaces: vec![namespace.clone()] })
        };
        let facts: Sites = named.iter().enumerate().map(fact).collect::<BTreeMap<_, _>>();
        let sites: Vec<SiteName> = named.into_iter().take(count).collect();
        accept::accept(&namespace, &study.spec, &facts).map_err(|refusal| Failure::Refused(refusal.message))?;
        let builtin = builtin();
        let trainer = match (&arguments.trainer, &builtin) {
            (Some(command), _) => ["sh", "-c", &format!("exec {command} \"$@\""), "trainer"].map(String::from).to_vec(),
            (None, Some(path)) => vec![path.to_string_lossy().into_owned()],
            (None, None) => return Err(Failure::Refused(NO_TRAINER.into())),
        };
        if study.spec.gate.is_some() && builtin.is_none() {
            return Err(Failure::Refused(format!("spec.gate needs the platform's evaluator. {NO_TRAINER}")));
        }
        let out = arguments.out.clone().unwrap_or_else(|| Path::new("consilium-local").join(&name));
        let key = StudyKey::new(namespace, name);
        Ok(Self { study, key, uid, digest, sites, facts, trainer, builtin, out })
    }

    /// Folder of a hospital.
    pub(super) fn hospital(&self, site: &SiteName) -> PathBuf {
        self.out.join("hospitals").join(site.as_str())
    }

    /// What a hospital of this machine allows: this study, as it is.
    pub(super) fn policy(&self, governor: &SiteKey) -> Result<SitePolicySpec> {
        let (spec, trainer) = (&self.study.spec, &self.study.spec.trainer);
        let secure = &spec.aggregation.secure;
        let card = json!({"product": "this-machine", "count": trainer.gpus.max(1),
            "memory": trainer.min_gpu_memory.as_deref().unwrap_or("1Gi"),
            "computeCapability": trainer.min_compute_capability.as_deref().unwrap_or("7.0")});
        let registry = trainer.image.split('@').next().unwrap_or(&trainer.image);
        let policy = json!({
            "participation": "Enabled",
            "hardware": if trainer.gpus > 0 { vec![card] } else { vec![] },
            "maxGPUs": trainer.gpus,
            "registries": [registry],
            "imageDigests": [],
            "resources": {"cpu": "1", "memory": "1Gi", "workClaim": "work"},
            "governance": {"federation": FEDERATION, "required": 1,
                "keys": [{"id": GOVERNOR, "publicKey": key_text(&governor.public())}]},
            "studies": [{"study": self.key, "uid": self.uid, "specDigest": self.digest, "approval": "Automatic",
                "dataset": {"trainClaim": "train", "evaluateClaim": "eval", "labelsClaim": "labels"},
                "publishMetrics": true, "weightBucket": 1}],
            "aggregation": {"minContributors": 3.max(secure.min_contributors.min(self.sites.len() as u32)),
                "colluders": secure.colluders, "survivorDifference": "Allow",
                "allowPlaintextUpdates": secure.protocol == ProtocolKind::None},
        });
        serde_json::from_value(policy).map_err(|e| Failure::Part(format!("the hospitals' policy: {e}")))
    }
}

/// What the API server holds a study to beyond its schema.
fn rules(study: &FederatedStudy) -> Result<()> {
    let (spec, name) = (&study.spec, study.metadata.name.as_deref().unwrap_or_default());
    let (secure, rounds, sites) = (&spec.aggregation.secure, &spec.rounds, spec.sites.len());
    let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let named = name.len() <= 49 && name.chars().all(|c| label(c) || c == '-');
    let faults = [
        (named && name.starts_with(label) && name.ends_with(label)).then_some(()).ok_or_else(|| {
            format!("metadata.name is {name:?}: use at most 49 lower-case letters, digits and \"-\", no dots")
        }),
        (rounds.quorum as usize <= sites).then_some(()).ok_or_else(|| {
            format!("spec.rounds.quorum is {} and must be at most the number of spec.sites, which is {sites}", rounds.quorum)
        }),
        (3 <= secure.min_contributors && secure.min_contributors <= rounds.quorum).then_some(()).ok_or_else(|| {
            format!(
                "spec.aggregation.secure.minContributors is {} and must be at least 3 and at most spec.rounds.quorum, which is {}",
                secure.min_contributors, rounds.quorum
            )
        }),
        (secure.min_contributors >= secure.colluders + 2).then_some(()).ok_or_else(|| {
            format!(
                "spec.aggregation.secure.minContributors is {} and must be at least colluders + 2, which is {}",
                secure.min_contributors,
                secure.colluders + 2
            )
        }),
        (spec.initial_model.seed.is_some() != spec.initial_model.digest.is_some()).then_some(()).ok_or_else(|| {
            "spec.initialModel needs one of seed and digest".to_owned()
        }),
    ];
    faults.into_iter().collect::<std::result::Result<Vec<()>, String>>().map(drop).map_err(Failure::Refused)
}

const NO_TRAINER: &str = "consilium-trainer was not found beside this program, on the PATH, or by CONSILIUM_TRAINER: build \
                          it with `cargo xtask local`, which fetches libtorch, or name your own by --trainer COMMAND";

/// The platform's own trainer and evaluator.
fn builtin() -> Option<PathBuf> {
    const NAME: &str = "consilium-trainer";
    if let Some(named) = std::env::var_os("CONSILIUM_TRAINER") {
        return Some(named.into());
    }
    let beside = std::env::current_exe().ok()?.with_file_name(NAME);
    if beside.is_file() {
        return Some(beside);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(NAME)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn read(from: &str, to: &str, more: &[&str]) -> Result<Plan> {
        let text = include_str!("../../../examples/hippocampus/study.yaml");
        assert!(text.contains(from), "{from}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("study.yaml");
        std::fs::write(&file, text.replacen(from, to, 1)).unwrap();
        let words = ["local", file.to_str().unwrap(), "--trainer", "true"].into_iter().chain(more.iter().copied());
        Plan::read(&Words::parse_from(words).arguments)
    }

    /// A study that a hub would refuse must not take a researcher's evening first.
    #[test]
    fn what_the_hub_would_refuse_is_refused_before_anything_starts() {
        for (from, to, part) in [
            ("quorum: 3", "quorum: 5", "spec.rounds.quorum is 5"),
            ("minContributors: 3", "minContributors: 4", "at most spec.rounds.quorum, which is 3"),
            ("minContributors: 3", "minContributors: 3, colluders: 2", "at least colluders + 2, which is 4"),
            ("    seed: 7", "    {}", "one of seed and digest"),
            ("  name: hippocampus", "  name: hippo.campus", "metadata.name"),
            ("deadline: 12h", "deadline: 0s", "spec.rounds.deadline"),
        ] {
            let error = read(from, to, &[]).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(part), "{to}: {error}");
        }
        let error = read("quorum", "quorum", &["--hospitals", "9"]).err().unwrap().to_string();
        assert!(error.contains("--hospitals is 9") && error.contains("names 4"), "{error}");
        let error = read("quorum", "quorum", &["--hospitals", "2"]).err().unwrap().to_string();
        assert!(error.contains("spec.rounds.quorum is 3, but only 2"), "{error}");
    }
}
