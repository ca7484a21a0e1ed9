//! What can go wrong, each with what to do.

use std::path::PathBuf;

use consilium_crds::values::ValueError;

/// A command that did not work. The text is the whole message for the person who typed it.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error("{}: {source}; check the path, and that you may read or write there", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} exists already; a signing key is never overwritten: name another file, or move this one away", path.display())]
    KeyExists { path: PathBuf },
    #[error("{} is not an Ed25519 private key in PKCS#8 PEM ({problem}); make one with `kubectl consilium keygen --out FILE`", path.display())]
    Key { path: PathBuf, problem: String },
    #[error("{}: {problem}", path.display())]
    Roster { path: PathBuf, problem: String },
    #[error("{} exists already, and may carry signatures: name another file", path.display())]
    RosterExists { path: PathBuf },
    #[error("{} does not hold for this policy: {problem}; {way_out}", path.display())]
    RosterRefused { path: PathBuf, problem: String, way_out: &'static str },
    #[error("{} is not a {expected}: {problem}; correct the field, or fetch the object again with `kubectl get … -o yaml`", path.display())]
    Object { path: PathBuf, expected: &'static str, problem: String },
    #[error("{} holds a {found}; name a file that holds one {expected}, as `kubectl get {} NAME -o yaml` prints it", path.display(), expected.to_lowercase())]
    Kind { path: PathBuf, expected: &'static str, found: String },
    #[error(
        "{name}: status.evidenceDigest is {said}, but the evidence in spec has {computed}; \
         the object was changed on its way: fetch it again and do not sign it"
    )]
    Evidence { name: String, said: String, computed: String },
    #[error(
        "{name}: status.evidenceDigest is missing, so there is nothing to check the evidence against; fetch the whole \
         object, status included: `kubectl get mrelease {name} -o yaml`"
    )]
    NoEvidenceDigest { name: String },
    #[error("ClinicalPlan {name} is not signed by: {problem}")]
    Plan { name: String, problem: String },
    #[error(
        "--stage is {stage}: an approval without --plan stands for Shadow, whatever it is signed for; name the clinical plan \
         with --plan, the hospital with --hospital and what runs there with --pipeline"
    )]
    NoPlan { stage: &'static str },
    #[error(transparent)]
    Hazard(#[from] consilium_clinical::hazards::HazardError),
    #[error(
        "nothing was signed: there is no terminal at which somebody could be asked; run it where you can read what is \
         signed, or say --yes"
    )]
    NobodyToAsk,
    #[error("nothing was signed")]
    NotSigned,
    #[error(transparent)]
    Value(#[from] ValueError),
    #[error("{field} is {value:?}: {rule}")]
    Argument { field: &'static str, value: String, rule: &'static str },
    #[error("{what} {name:?} is not there; {way_out}")]
    Missing { what: &'static str, name: String, way_out: &'static str },
    #[error("{0}")]
    Ledger(String),
    #[error("{0}")]
    Model(String),
    #[error("{done} changes are made, and these could not be: {failed}; the same command tries them again")]
    NotAll { done: usize, failed: String },
    #[error(
        "the cluster could not be asked: {0}. Which cluster and user this is, says `kubectl config current-context`"
    )]
    Cluster(String),
}

/// Result of a command.
pub type Result<T> = std::result::Result<T, CliError>;

impl From<kube::Error> for CliError {
    fn from(error: kube::Error) -> Self {
        Self::Cluster(error.to_string())
    }
}
