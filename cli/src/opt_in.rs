//! `opt-in`: the entry by which a hospital allows a study, ready to be pasted into its SitePolicy.

use std::path::PathBuf;

use clap::ValueEnum;
use consilium_crds::{FederatedStudy, SitePolicy, site_policy::OfferedStudy, study::ProtocolKind};
use consilium_federation::{digest::Digest, ids::StudyKey};
use kube::Api;

use crate::{
    cluster,
    error::{CliError, Result},
    objects,
    text::quoted,
};

/// Which study, and how it is allowed.
#[derive(clap::Args)]
pub struct Arguments {
    /// `namespace/name` of a study that the hub offers to this hospital (SitePolicy status.studies).
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    study: Option<StudyKey>,
    /// File with the FederatedStudy as the hub has it (with metadata.uid), in place of asking this hospital's cluster.
    #[arg(short = 'f', long)]
    file: Option<PathBuf>,
    /// Namespace of the SitePolicy.
    #[arg(short, long, default_value = "consilium-agent")]
    namespace: String,
    /// How rounds are approved.
    #[arg(long, value_enum, default_value_t = Approval::PerRound)]
    approval: Approval,
    /// Last round to approve, with per-round approval.
    #[arg(long, default_value_t = 0)]
    through: u32,
    /// Claim with the training scans.
    #[arg(long)]
    train_claim: String,
    /// Claim with the evaluation scans.
    #[arg(long)]
    evaluate_claim: String,
    /// Claim with the labels of the evaluation scans.
    #[arg(long)]
    labels_claim: String,
}

/// How rounds are approved.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Approval {
    /// Every round.
    Automatic,
    /// Up to `--through`.
    PerRound,
}

/// What identifies a study to a hospital.
struct Offer {
    study: StudyKey,
    uid: String,
    spec_digest: Digest,
    note: Option<&'static str>,
}

/// Returns the entry; what else the policy has to say for the study to run goes to standard error.
pub async fn run(arguments: &Arguments) -> Result<String> {
    let offer = match (&arguments.file, &arguments.study) {
        (Some(path), _) => from_study(&objects::study(path)?)?,
        (None, Some(study)) => offered(study, &arguments.namespace).await?,
        // Safety: clap requires one of the two.
        (None, None) => return Err(CliError::Argument { field: "STUDY", value: String::new(), rule: "name a study" }),
    };
    if let Some(note) = offer.note {
        eprintln!("note: {note}");
    }
    Ok(entry(&offer, arguments))
}

/// What a hospital must know before it opts in to a study with this protocol.
const fn plainly(protocol: ProtocolKind) -> Option<&'static str> {
    match protocol {
        ProtocolKind::SecAgg => None,
        ProtocolKind::None => Some(
            "this study has protocol None: the hub can read this hospital's update. It is refused unless SitePolicy \
             spec.aggregation.allowPlaintextUpdates is true",
        ),
    }
}

fn from_study(study: &FederatedStudy) -> Result<Offer> {
    let missing =
        |what, way_out| CliError::Missing { what, name: study.metadata.name.clone().unwrap_or_default(), way_out };
    let way_out = "take the object from the hub: `kubectl get fstudy NAME -o yaml`";
    let uid = study.metadata.uid.clone().ok_or_else(|| missing("metadata.uid of study", way_out))?;
    let namespace = study.metadata.namespace.clone().ok_or_else(|| missing("metadata.namespace of study", way_out))?;
    let name = study.metadata.name.clone().unwrap_or_default();
    let note = plainly(study.spec.aggregation.secure.protocol);
    Ok(Offer { study: StudyKey::new(namespace, name), uid, spec_digest: study.spec.digest(), note })
}

async fn offered(study: &StudyKey, namespace: &str) -> Result<Offer> {
    let policies: Api<SitePolicy> = Api::namespaced(cluster::client().await?, namespace);
    let policy = policies.get_opt("default").await?.ok_or_else(|| CliError::Missing {
        what: "SitePolicy",
        name: format!("{namespace}/default"),
        way_out: "this is done in the hospital's cluster; name the agent's namespace with --namespace",
    })?;
    let studies = policy.status.map(|status| status.studies).unwrap_or_default();
    let mut offer = find(&studies, study)?;
    // What the study's protocol is, only its text says; but without governance there is only one that can run.
    if policy.spec.governance.is_none() {
        offer.note = Some(
            "this policy pins no governance (spec.governance), so the study runs here only if it does not mask its \
             updates; see the guide for hospital administrators",
        );
    }
    Ok(offer)
}

fn find(studies: &[OfferedStudy], study: &StudyKey) -> Result<Offer> {
    let found = studies.iter().find(|offered| offered.study == *study).ok_or_else(|| CliError::Missing {
        what: "offered study",
        name: study.to_string(),
        way_out: "the hub offers it once a round begins that names this hospital; see `kubectl get sitepolicy default -o yaml`",
    })?;
    Ok(Offer { study: found.study.clone(), uid: found.uid.clone(), spec_digest: found.spec_digest, note: None })
}

fn entry(offer: &Offer, arguments: &Arguments) -> String {
    let approval = match arguments.approval {
        Approval::Automatic => "  approval: Automatic\n".to_owned(),
        Approval::PerRound => format!("  approval: PerRound\n  approvedThroughRound: {}\n", arguments.through),
    };
    format!(
        "- study: {}\n  uid: {}\n  specDigest: {}\n{approval}  dataset:\n    trainClaim: {}\n    evaluateClaim: {}\n    \
         labelsClaim: {}\n",
        quoted(&offer.study.to_string()),
        quoted(&offer.uid),
        quoted(&offer.spec_digest.to_string()),
        quoted(&arguments.train_claim),
        quoted(&arguments.evaluate_claim),
        quoted(&arguments.labels_claim),
    )
}

#[cfg(test)]
mod tests {
    use consilium_crds::site_policy::{StudyApproval, StudyOptIn};

    use super::*;

    fn arguments(approval: Approval) -> Arguments {
        Arguments {
            study: None,
            file: None,
            namespace: "consilium-agent".into(),
            approval,
            through: 3,
            train_claim: "train".into(),
            evaluate_claim: "evaluate".into(),
            labels_claim: "labels".into(),
        }
    }

    fn read(offer: &Offer, approval: Approval) -> Vec<StudyOptIn> {
        serde_yaml_ng::from_str(&entry(offer, &arguments(approval))).unwrap()
    }

    /// A hub that writes YAML into what it offers must not approve itself in the administrator's policy.
    #[test]
    fn a_hostile_offer_stays_a_scalar() {
        let uid = "u\n  approval: Automatic\n  dataset: {trainClaim: everything}\n- study: research/other";
        let offer = Offer {
            study: StudyKey::new("r: [x", "h # y"),
            uid: uid.into(),
            spec_digest: Digest::of(b"s"),
            note: None,
        };
        let text = entry(&offer, &arguments(Approval::PerRound));
        let tree: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
        assert_eq!(tree.as_array().unwrap().len(), 1);
        assert_eq!((&tree[0]["uid"], &tree[0]["study"]), (&uid.into(), &"r: [x/h # y".into()));
        assert_eq!((&tree[0]["approval"], &tree[0]["dataset"]["trainClaim"]), (&"PerRound".into(), &"train".into()));
    }

    /// What is printed is what the policy's own type reads.
    #[test]
    fn the_entry_is_a_policy_entry() {
        let offer = Offer {
            study: "research/hippocampus".parse().unwrap(),
            uid: "1234".into(),
            spec_digest: Digest::of(b"spec"),
            note: None,
        };
        let parse = |approval| read(&offer, approval);
        let per_round = parse(Approval::PerRound).remove(0);
        assert_eq!((per_round.approval, per_round.approved_through_round), (StudyApproval::PerRound, Some(3)));
        assert_eq!((per_round.uid.as_str(), per_round.spec_digest), ("1234", offer.spec_digest));
        assert_eq!(per_round.dataset.labels_claim, "labels");
        assert_eq!(parse(Approval::Automatic).remove(0).approval, StudyApproval::Automatic);
    }

    /// Who opts in to a study without masks must not have to find that out in its YAML.
    #[test]
    fn a_study_without_masks_is_pointed_out() {
        let text = include_str!("../../examples/hippocampus/study.yaml");
        let mut study: FederatedStudy = serde_yaml_ng::from_str(text).unwrap();
        study.metadata.uid = Some("1234".into());
        assert_eq!(from_study(&study).unwrap().note, None);
        study.spec.aggregation.secure.protocol = ProtocolKind::None;
        assert!(from_study(&study).unwrap().note.unwrap().contains("allowPlaintextUpdates"));
    }

    /// A study file from Git has no UID, and an opt-in without the right one would never match.
    #[test]
    fn a_study_that_was_never_applied_cannot_be_opted_in_to() {
        let text = include_str!("../../examples/hippocampus/study.yaml");
        let study: FederatedStudy = serde_yaml_ng::from_str(text).unwrap();
        let error = from_study(&study).err().unwrap().to_string();
        assert!(error.contains("metadata.uid") && error.contains("from the hub"), "{error}");
    }
}
