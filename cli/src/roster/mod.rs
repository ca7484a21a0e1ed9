//! `roster`: which hospitals belong to a federation and by which keys, as its governance makes and signs it.
//!
//! Everything here is done offline, on files. Whether a roster holds is judged in each hospital, by the keys that it
//! has pinned; `roster show --governance` judges the same way beforehand.

use std::{
    fs,
    path::{Path, PathBuf},
};

use consilium_crds::roster::{self, DATA_KEY, RosterDocument, RosterSite};
use consilium_crds::values::is_label_value;
use consilium_federation::ids::SiteName;
use consilium_secagg::{
    identity::{SiteKey, verify_bytes},
    roster::{Governance, RosterError, SignedRoster},
    wire::Message as _,
};
use ed25519_dalek::VerifyingKey;
use zeroize::Zeroizing;

use crate::{
    error::{CliError, Result},
    keys, objects,
};

mod show;

/// What is done with a roster.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Write the next version of the roster, unsigned.
    New(New),
    /// Add a governance member's signature to a roster, and print what was signed.
    Sign {
        /// The member's private key, PKCS#8 PEM, as `kubectl consilium keygen` writes it.
        #[arg(long)]
        key: PathBuf,
        /// An earlier version, to see what changed.
        #[arg(long)]
        since: Option<PathBuf>,
        /// The roster; the signature is written into it.
        file: PathBuf,
    },
    /// Print who is on a roster, who signed it, and whether it holds for a hospital's policy.
    Show {
        /// File with a SitePolicy: its spec.governance judges, and the command fails when the roster does not hold.
        #[arg(long)]
        governance: Option<PathBuf>,
        /// An earlier version, to see what changed.
        #[arg(long)]
        since: Option<PathBuf>,
        /// The roster.
        file: PathBuf,
    },
    /// Print the ConfigMap in which the hub looks for a roster, for kubectl or for Git.
    Configmap {
        /// The operator's namespace.
        #[arg(short, long, default_value = "consilium-system")]
        namespace: String,
        /// The roster.
        file: PathBuf,
    },
}

/// What the new version holds.
#[derive(clap::Args)]
pub struct New {
    /// Name of the federation, as hospitals have it in spec.governance.federation.
    #[arg(long, required_unless_present = "from")]
    federation: Option<String>,
    /// Its version; with --from, one more than the last when left out.
    #[arg(long, required_unless_present = "from")]
    version: Option<u64>,
    /// A hospital and its signing key: the name of its TrustSite, and status.signingKey of its SitePolicy. With --from,
    /// joins or gets a new key.
    #[arg(long = "site", value_name = "NAME=KEY", value_parser = site)]
    sites: Vec<RosterSite>,
    /// A hospital that leaves (with --from).
    #[arg(long, value_name = "NAME", requires = "from")]
    remove: Vec<SiteName>,
    /// The last version, to start from.
    #[arg(long)]
    from: Option<PathBuf>,
    /// Where it goes; must not exist.
    #[arg(long)]
    out: PathBuf,
}

/// Does it; what it has to say goes to standard output.
pub fn run(command: &Command) -> Result<String> {
    match command {
        Command::New(new) => {
            let last = new.from.as_deref().map(read).transpose()?;
            let next = next(new, last.as_ref())?;
            create(&new.out, &next)?;
            let text = show::sites(&next, last.as_ref());
            Ok(format!("{text}\n{} is not signed yet: `kubectl consilium roster sign`.\n", new.out.display()))
        }
        Command::Sign { key, since, file } => sign(key, since.as_deref(), file),
        Command::Show { governance, since, file } => judge(governance.as_deref(), since.as_deref(), file),
        Command::Configmap { namespace, file } => config_map(namespace, file),
    }
}

/// `alder=11qYAYKx…URo=` as an argument.
fn site(text: &str) -> std::result::Result<RosterSite, String> {
    let (name, key) = text.split_once('=').ok_or("write NAME=KEY, for example alder=11qY…URo=")?;
    let name: SiteName = name.parse().map_err(|error| format!("{name:?}: {error}"))?;
    let rule = "is no key: write the base64 of 32 bytes that status.signingKey of its SitePolicy shows";
    let public = roster::parse_key(name.as_str(), key).map_err(|_| format!("{key:?} for {name} {rule}"))?;
    strong(&name, &public.0)?;
    Ok(RosterSite { name, public_key: roster::key_text(&public) })
}

/// A key that some message has a signature under that nobody made is no hospital's.
fn strong(name: &SiteName, key: &[u8; 32]) -> std::result::Result<(), String> {
    match VerifyingKey::from_bytes(key) {
        Ok(key) if !key.is_weak() => Ok(()),
        _ => Err(format!("the key of {name} is no Ed25519 public key; take status.signingKey of its SitePolicy")),
    }
}

fn next(new: &New, last: Option<&SignedRoster>) -> Result<SignedRoster> {
    let wrong = |field, value: &dyn ToString, rule| CliError::Argument { field, value: value.to_string(), rule };
    let mut document = match last {
        Some(last) => RosterDocument::of(last),
        None => RosterDocument { federation: String::new(), version: 0, sites: vec![], signatures: vec![] },
    };
    // A signature is over one version and no other.
    document.signatures.clear();
    let newest = document.version;
    document.version = new.version.unwrap_or(newest.saturating_add(1));
    if document.version <= newest {
        let rule = "hospitals never go back: take a number above that of --from, and above 0 for the first";
        return Err(wrong("--version", &document.version, rule));
    }
    if let Some(name) = &new.federation {
        if last.is_some() && *name != document.federation {
            return Err(wrong("--federation", name, "--from is of another federation: leave it out, or begin anew"));
        }
        document.federation.clone_from(name);
    }
    // As SitePolicy spec.governance.federation takes it.
    if !is_label_value(&document.federation) {
        let rule = "use 1 to 63 letters, digits, \"-\", \"_\" and \".\", with a letter or digit at both ends";
        return Err(wrong("--federation", &document.federation, rule));
    }
    for name in &new.remove {
        let before = document.sites.len();
        document.sites.retain(|site| site.name != *name);
        if document.sites.len() == before {
            return Err(wrong("--remove", name, "this hospital is not on the roster of --from"));
        }
    }
    for (i, site) in new.sites.iter().enumerate() {
        if new.sites[..i].iter().any(|other| other.name == site.name) {
            return Err(wrong("--site", &site.name, "is given twice; each hospital has one key"));
        }
        document.sites.retain(|other| other.name != site.name);
        document.sites.push(site.clone());
    }
    let at = |problem| CliError::Roster { path: new.out.clone(), problem };
    let signed = SignedRoster::new(document.signed().map_err(|error| at(error.to_string()))?.roster);
    sound(&signed).map_err(at)?;
    Ok(signed)
}

/// What a hospital would refuse in a roster whoever signed it, before anyone signs it.
fn sound(signed: &SignedRoster) -> std::result::Result<(), String> {
    if signed.roster.entries.len() < 3 {
        return Err(format!(
            "sites lists {} hospitals and needs at least 3, else one could subtract itself and read the other: add some \
             with --site",
            signed.roster.entries.len()
        ));
    }
    for entry in &signed.roster.entries {
        let name: SiteName = entry.site.as_str().parse().map_err(|error| format!("{:?}: {error}", entry.site))?;
        strong(&name, &entry.key.0)?;
    }
    // A governance of one throw-away key over a copy: all rules but whose signatures count.
    let anyone = SiteKey::from_seed(&[1; 32]);
    let mut copy = signed.clone();
    copy.sign(&anyone);
    let federation = signed.roster.federation.clone();
    let governance = Governance { federation, keys: vec![anyone.public()], required: 1 };
    governance.verify(&copy).map(drop).map_err(|error| error.to_string())
}

/// Whether the signatures so far are over this very text: who signs on top of others' must sign what they did.
fn unchanged(signed: &SignedRoster) -> std::result::Result<(), String> {
    let bytes = signed.roster.to_bytes();
    let torn = signed.signatures.iter().find(|(key, signature)| verify_bytes(key, &bytes, signature).is_err());
    match torn {
        None => Ok(()),
        Some((key, _)) => Err(format!(
            "the signature of {} does not fit: the roster was changed after it was signed. Ask for the one that was \
             signed, or make a new version with `kubectl consilium roster new`",
            roster::key_text(key)
        )),
    }
}

fn sign(key: &Path, since: Option<&Path>, file: &Path) -> Result<String> {
    let mut signed = read(file)?;
    sound(&signed).map_err(|problem| CliError::Roster { path: file.into(), problem })?;
    unchanged(&signed).map_err(|problem| CliError::Roster { path: file.into(), problem })?;
    let since = since.map(read).transpose()?;
    let seed = Zeroizing::new(keys::read(key)?.to_bytes());
    let key = SiteKey::from_seed(&seed);
    signed.sign(&key);
    replace(file, &signed)?;
    let count = signed.signatures.len();
    Ok(format!(
        "Signed with the key {}:\n\n{}\n{} carries {count} signature{} now.\n",
        roster::key_text(&key.public()),
        show::sites(&signed, since.as_ref()),
        file.display(),
        if count == 1 { "" } else { "s" },
    ))
}

fn judge(governance: Option<&Path>, since: Option<&Path>, file: &Path) -> Result<String> {
    let signed = read(file)?;
    let since = since.map(read).transpose()?;
    let mut text = show::sites(&signed, since.as_ref());
    let Some(path) = governance else {
        text.push_str(&show::signatures(&signed, &[]));
        return Ok(text);
    };
    let policy = objects::policy(path)?;
    let pinned = policy.spec.governance.ok_or_else(|| CliError::Missing {
        what: "spec.governance in",
        name: path.display().to_string(),
        way_out: "without it this hospital accepts no roster: pin the governance members' keys there",
    })?;
    let mut keys = Vec::new();
    for key in &pinned.keys {
        let parsed = roster::parse_key(&key.id, &key.public_key);
        let fault = |problem| CliError::Object { path: path.into(), expected: "SitePolicy", problem };
        keys.push((key.id.clone(), parsed.map_err(|error| fault(error.to_string()))?));
    }
    text.push_str(&show::signatures(&signed, &keys));
    let governance = Governance {
        federation: pinned.federation,
        keys: keys.iter().map(|(_, key)| *key).collect(),
        required: pinned.required as usize,
    };
    match governance.verify(&signed) {
        Ok(_) => {
            text.push_str(&format!("\nIt holds for this policy: {} signatures are required.\n", pinned.required));
            Ok(text)
        }
        Err(error) => {
            // Both are wanted: what is there, and that it is not enough.
            print!("{text}");
            Err(CliError::RosterRefused { path: file.into(), way_out: way_out(&error), problem: error.to_string() })
        }
    }
}

fn way_out(error: &RosterError) -> &'static str {
    match error {
        RosterError::Unsigned { .. } => "have more of the pinned members sign it with `kubectl consilium roster sign`",
        RosterError::Federation { .. } => {
            "compare --federation of `roster new` with spec.governance.federation of the policy"
        }
        RosterError::Governance { .. } => "correct spec.governance in the policy",
        _ => "make a new version with `kubectl consilium roster new`",
    }
}

fn config_map(namespace: &str, file: &Path) -> Result<String> {
    let signed = read(file)?;
    if signed.signatures.is_empty() {
        let problem = "nobody has signed it, and the hub publishes no such roster: run `kubectl consilium roster sign`";
        return Err(CliError::Roster { path: file.into(), problem: problem.into() });
    }
    let document: String = written(&signed)?.lines().map(|line| format!("    {line}\n")).collect();
    Ok(format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: consilium-roster-{}\n  namespace: {namespace}\n  labels:\n    \
         {}: \"true\"\ndata:\n  {}: |\n{document}",
        signed.roster.version,
        roster::LABEL,
        DATA_KEY,
    ))
}

fn read(path: &Path) -> Result<SignedRoster> {
    let text = fs::read_to_string(path).map_err(io(path))?;
    let problem = |error: roster::DocumentError| CliError::Roster { path: path.into(), problem: error.to_string() };
    RosterDocument::parse(&text).and_then(|document| document.signed()).map_err(problem)
}

fn written(signed: &SignedRoster) -> Result<String> {
    let text = serde_json::to_string_pretty(&RosterDocument::of(signed));
    let mut text = text.map_err(|error| CliError::Roster { path: DATA_KEY.into(), problem: error.to_string() })?;
    text.push('\n');
    Ok(text)
}

fn create(path: &Path, signed: &SignedRoster) -> Result<()> {
    let text = written(signed)?;
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => CliError::RosterExists { path: path.into() },
            _ => CliError::Io { path: path.into(), source },
        })?;
    std::io::Write::write_all(&mut file, text.as_bytes()).map_err(io(path))
}

/// Writes beside and renames: a roster that other members have signed is not lost to a full disk.
fn replace(path: &Path, signed: &SignedRoster) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    fs::write(&beside, written(signed)?).map_err(io(&beside))?;
    fs::rename(&beside, path).map_err(io(path))
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CliError {
    let path = path.to_owned();
    move |source| CliError::Io { path, source }
}
