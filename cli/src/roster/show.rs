//! A roster as text: what a governance member reads before signing, and an administrator before pinning.

use consilium_crds::roster::key_text;
use consilium_secagg::{
    identity::verify_bytes,
    ids::PublicKey,
    roster::{RosterEntry, SignedRoster},
    wire::Message as _,
};

use crate::{table, text::visible};

/// The federation, version, digest and hospitals with their keys; beside an earlier version, what changed.
///
/// Keys stand there whole: a hospital compares its line with `status.signingKey` and with its agent's log, and a
/// shortened one could be matched by somebody else's.
pub fn sites(signed: &SignedRoster, since: Option<&SignedRoster>) -> String {
    let roster = &signed.roster;
    let mut text = format!(
        "federation  {}\nversion     {}\ndigest      sha256:{}\nhospitals   {}\n\n",
        visible(&roster.federation),
        roster.version,
        roster.digest(),
        roster.entries.len()
    );
    let row = |entry: &RosterEntry| vec![entry.site.to_string(), key_text(&entry.key), change(entry, since).into()];
    let rows: Vec<Vec<String>> = roster.entries.iter().map(row).collect();
    text.push_str(&table::lay_out(&["HOSPITAL", "SIGNING KEY", ""], &rows));
    if let Some(since) = since {
        let left = |entry: &&RosterEntry| roster.entries.iter().all(|now| now.site != entry.site);
        for entry in since.roster.entries.iter().filter(left) {
            text.push_str(&format!("{} has left since version {}.\n", entry.site, since.roster.version));
        }
    }
    text
}

fn change(entry: &RosterEntry, since: Option<&SignedRoster>) -> &'static str {
    let Some(since) = since else { return "" };
    match since.roster.entries.iter().find(|before| before.site == entry.site) {
        None => "joins",
        Some(before) if before.key != entry.key => "has another key",
        Some(_) => "",
    }
}

/// Who signed; with the keys that a policy pins, by their names there.
pub fn signatures(signed: &SignedRoster, pinned: &[(String, PublicKey)]) -> String {
    let bytes = signed.roster.to_bytes();
    let mut rows = Vec::new();
    for (key, signature) in &signed.signatures {
        let name = pinned.iter().find(|(_, pinned)| pinned == key).map(|(name, _)| name.clone());
        let says = match (verify_bytes(key, &bytes, signature), &name) {
            (Err(_), _) => "does not fit this roster",
            (Ok(()), None) if !pinned.is_empty() => "valid, not pinned in this policy",
            (Ok(()), _) => "valid",
        };
        rows.push(vec![name.unwrap_or_else(|| "-".into()), key_text(key), says.into()]);
    }
    for (name, key) in pinned.iter().filter(|(_, key)| signed.signatures.iter().all(|(signer, _)| signer != key)) {
        rows.push(vec![name.clone(), key_text(key), "has not signed".into()]);
    }
    if rows.is_empty() {
        return "\nNobody has signed it.\n".into();
    }
    format!("\n{}", table::lay_out(&["MEMBER", "GOVERNANCE KEY", "SIGNATURE"], &rows))
}
