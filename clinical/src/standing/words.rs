//! A standing in words, for `explain` and for the hospital's people.

use super::Standing;

/// Where the model stands, why no higher, and what the next rung lacks, a line each. `name` is the model's, as people
/// know it.
pub fn explain(name: &str, standing: &Standing) -> String {
    let Standing { asked, effective, because, next, missing, until, faults } = standing;
    let stands = match effective {
        Some(stage) if *stage >= *asked => format!("{name} stands on {stage}, as asked.\n"),
        Some(stage) => format!("{name} stands on {stage}. Asked is {asked}.\n"),
        None => format!("{name} is not served. Asked is {asked}.\n"),
    };
    let mut text = stands;
    if let Some(until) = until {
        text.push_str(&format!("If nothing else changes, it falls at {until}.\n"));
    }
    match next {
        Some(next) if missing.is_empty() => text.push_str(&format!("Nothing is missing for {next}.\n")),
        Some(next) => {
            let why = if because.is_empty() { "For" } else { "It stands no higher because for" };
            text.push_str(&format!("{why} {next} it needs:\n"));
            missing.iter().for_each(|lack| text.push_str(&format!("  - {lack}\n")));
        }
        None => text.push_str("There is no higher stage.\n"),
    }
    if !faults.is_empty() {
        text.push_str("Approvals that do not count:\n");
        faults.iter().for_each(|fault| text.push_str(&format!("  - {fault}\n")));
    }
    text
}
