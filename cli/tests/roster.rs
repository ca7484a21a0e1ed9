//! The roster as governance members and administrators handle it: through the program, on files.

// A test: a panic is how it fails.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Standard output, or standard error of a refusal.
    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut program = Command::new(env!("CARGO_BIN_EXE_kubectl-consilium"));
        let output = program.current_dir(&self.0).args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Makes a key pair; the public half.
    fn key(&self, name: &str) -> String {
        self.run(&["keygen", "--out", name]).unwrap();
        fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap().trim().to_owned()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }

    /// A policy that pins these governance keys.
    fn policy(&self, federation: &str, required: u32, keys: &[(&str, &str)]) {
        let text = fs::read_to_string(examples().join("hippocampus/site-policy.yaml")).unwrap();
        let mut policy: Value = serde_yaml_ng::from_str(&text).unwrap();
        let keys: Vec<Value> = keys.iter().map(|(id, key)| json!({"id": id, "publicKey": key})).collect();
        policy["spec"]["governance"] = json!({"federation": federation, "required": required, "keys": keys});
        fs::write(self.path("policy.json"), policy.to_string()).unwrap();
    }

    /// Three hospitals on version 1 of `north`, unsigned; their keys.
    fn first(&self) -> Vec<String> {
        let keys: Vec<String> = ["alder", "birch", "cedar"].iter().map(|name| self.key(name)).collect();
        let sites: Vec<String> =
            ["alder", "birch", "cedar"].iter().zip(&keys).map(|(name, key)| format!("--site={name}={key}")).collect();
        let mut arguments = vec!["roster", "new", "--federation", "north", "--version", "1", "--out", "one.json"];
        arguments.extend(sites.iter().map(String::as_str));
        self.run(&arguments).unwrap();
        keys
    }
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

/// From keys to a ConfigMap: two members sign one file in turn, a hospital that pinned both accepts it, and the hub
/// finds it by its label.
#[test]
fn two_members_sign_and_a_hospital_that_pinned_both_accepts() {
    let desk = Desk::new();
    let keys = desk.first();
    let (chair, trust) = (desk.key("chair"), desk.key("trust"));
    desk.policy("north", 2, &[("chair", &chair), ("trust", &trust)]);
    let signed = desk.run(&["roster", "sign", "--key", "chair", "one.json"]).unwrap();
    for part in [chair.as_str(), "federation  north", "version     1", "sha256:", keys[1].as_str(), "1 signature now"] {
        assert!(signed.contains(part), "{part:?} is not in\n{signed}");
    }
    let show = ["roster", "show", "one.json", "--governance", "policy.json"];
    let error = desk.run(&show).unwrap_err();
    assert!(
        error.contains("1 valid governance signatures, 2 are required") && error.contains("roster sign"),
        "{error}"
    );
    desk.run(&["roster", "sign", "--key", "trust", "one.json"]).unwrap();
    // Again changes nothing: signatures are no tally of how often somebody typed the command.
    assert!(desk.run(&["roster", "sign", "--key", "trust", "one.json"]).unwrap().contains("2 signatures now"));
    let shown = desk.run(&show).unwrap();
    assert!(shown.contains("It holds for this policy"), "{shown}");
    let map: Value = serde_yaml_ng::from_str(&desk.run(&["roster", "configmap", "one.json"]).unwrap()).unwrap();
    assert_eq!(map["metadata"]["name"], "consilium-roster-1");
    assert_eq!(map["metadata"]["labels"]["consilium.health/roster"], "true");
    let inner: Value = serde_json::from_str(map["data"]["roster.json"].as_str().unwrap()).unwrap();
    assert_eq!(inner, desk.json("one.json"));
}

/// A hospital joins, one changes its key, one leaves: the next version says so and starts without signatures, which
/// were over the last one.
#[test]
fn the_next_version_starts_from_the_last_and_says_what_changed() {
    let desk = Desk::new();
    desk.first();
    desk.key("chair");
    desk.run(&["roster", "sign", "--key", "chair", "one.json"]).unwrap();
    let (damson, birch) = (desk.key("damson"), desk.key("birch-2"));
    let (damson, birch) = (format!("damson={damson}"), format!("birch={birch}"));
    let new = ["roster", "new", "--from", "one.json", "--site", &damson, "--site", &birch, "--remove", "cedar"];
    let shown = desk.run(&[&new[..], &["--out", "two.json"]].concat()).unwrap();
    for part in ["version     2", "joins", "has another key", "cedar has left since version 1"] {
        assert!(shown.contains(part), "{part:?} is not in\n{shown}");
    }
    assert_eq!(desk.json("two.json")["signatures"], json!([]));
    let again = desk.run(&["roster", "show", "two.json", "--since", "one.json"]).unwrap();
    assert!(again.contains("Nobody has signed it") && again.contains("joins"), "{again}");
    let unsigned = desk.run(&["roster", "configmap", "two.json"]).unwrap_err();
    assert!(unsigned.contains("nobody has signed it") && unsigned.contains("roster sign"), "{unsigned}");
}

/// Each refusal names the field, the value, the rule and the way out; nothing is written.
#[test]
fn what_no_hospital_would_accept_is_refused_before_it_is_signed() {
    let desk = Desk::new();
    let keys = desk.first();
    let (chair, stranger) = (desk.key("chair"), desk.key("stranger"));
    let refused = |arguments: &[&str], says: &[&str]| {
        let error = desk.run(arguments).unwrap_err();
        for part in says {
            assert!(error.contains(part), "{arguments:?}: {part:?} is not in\n{error}");
        }
    };
    let new = ["roster", "new", "--from", "one.json", "--out", "two.json"];
    let with = |more: &[&'static str]| [&new[..], more].concat();
    refused(&with(&["--version", "1"]), &["--version is \"1\"", "never go back"]);
    refused(&with(&["--federation", "south"]), &["--federation is \"south\"", "--from"]);
    refused(&with(&["--remove", "elder"]), &["--remove is \"elder\"", "not on the roster"]);
    refused(&with(&["--remove", "alder"]), &["2 hospitals", "at least 3"]);
    refused(&with(&["--site", "damson=AAAA"]), &["damson", "base64 of 32 bytes", "status.signingKey"]);
    let weak = "damson=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    refused(&with(&["--site", weak]), &["damson", "no Ed25519 public key"]);
    let shared = format!("damson={}", keys[0]);
    refused(&[&new[..], &["--site", &shared]].concat(), &["alder and damson have the same key"]);
    assert!(!desk.path("two.json").exists());
    refused(&["roster", "new", "--from", "one.json", "--out", "one.json"], &["exists already"]);

    // A roster that was edited between two signatures.
    desk.run(&["roster", "sign", "--key", "chair", "one.json"]).unwrap();
    let mut edited = desk.json("one.json");
    edited["version"] = json!(9);
    fs::write(desk.path("edited.json"), edited.to_string()).unwrap();
    refused(&["roster", "sign", "--key", "stranger", "edited.json"], &["changed after it was signed", &chair]);
    assert_eq!(desk.json("edited.json"), edited);

    // A signature that is valid and not pinned, and a roster of another federation.
    desk.policy("north", 1, &[("stranger", &stranger)]);
    refused(&["roster", "show", "one.json", "--governance", "policy.json"], &["0 valid", "1 are required"]);
    desk.policy("south", 1, &[("chair", &chair)]);
    let says = ["federation \"north\"", "\"south\"", "spec.governance.federation"];
    refused(&["roster", "show", "one.json", "--governance", "policy.json"], &says);
    fs::write(desk.path("no.json"), "{}").unwrap();
    refused(&["roster", "show", "no.json"], &["no.json", "roster new"]);
}

/// People copy the examples: their roster must be one that their policies accept.
#[test]
fn the_examples_roster_holds_for_the_examples_policies() {
    let desk = Desk::new();
    let map = fs::read_to_string(examples().join("gitops/hub/rosters/roster-1.yaml")).unwrap();
    let map: Value = serde_yaml_ng::from_str(&map).unwrap();
    assert_eq!(map["metadata"]["labels"]["consilium.health/roster"], "true");
    fs::write(desk.path("roster.json"), map["data"]["roster.json"].as_str().unwrap()).unwrap();
    for policy in ["hippocampus/site-policy.yaml", "gitops/hospital/site-policy.yaml"] {
        let policy = examples().join(policy);
        let shown = desk.run(&["roster", "show", "roster.json", "--governance", policy.to_str().unwrap()]).unwrap();
        assert!(shown.contains("It holds for this policy"), "{shown}");
    }
}
