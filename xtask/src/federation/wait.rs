//! Waiting for a condition, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    cluster::Cluster,
    error::{Error, Result},
};

/// How long what is seen may stay as it is. A limit on the whole would fail on a busy machine and tell nothing of us.
pub const STILL: Duration = Duration::from_secs(300);
/// How long it may go on changing: a loop that gets nowhere ends as well.
const LONGEST: Duration = Duration::from_secs(3000);

/// Asks until there is an answer, for as long as what is seen instead still changes; the error tells what was seen last.
///
/// An error of the question itself counts as "not yet": an API server that is being restarted refuses for a while.
pub fn until<T>(cluster: &Cluster, what: &str, mut ask: impl FnMut() -> Result<Answer<T>>) -> Result<T> {
    let start = Instant::now();
    let (mut before, mut moved) = (String::new(), start);
    loop {
        let last = match ask() {
            Ok(Answer::Yes(value)) => return Ok(value),
            Ok(Answer::NotYet(seen)) => seen,
            Err(error) => error.to_string(),
        };
        if last != before {
            (before, moved) = (last.clone(), Instant::now());
        }
        let still = moved.elapsed();
        if still > STILL || start.elapsed() > LONGEST {
            let logs = cluster.logs.clone();
            return Err(Error::Timeout { what: what.to_owned(), seconds: still.as_secs(), logs, last });
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// What was seen.
pub enum Answer<T> {
    /// The condition holds.
    Yes(T),
    /// It does not hold yet; what was seen instead.
    NotYet(String),
}

impl<T> Answer<T> {
    /// Yes if there is a value, else what was seen.
    pub fn of(value: Option<T>, seen: impl ToString) -> Self {
        value.map_or_else(|| Self::NotYet(seen.to_string()), Self::Yes)
    }
}

/// One object as JSON.
pub fn get(cluster: &Cluster, namespace: &str, kind: &str, name: &str) -> Result<Value> {
    parse(&cluster.kubectl(&["get", kind, name, "-n", namespace, "-o", "json"])?)
}

/// All objects of a kind in a namespace.
pub fn list(cluster: &Cluster, namespace: &str, kind: &str) -> Result<Vec<Value>> {
    let list = parse(&cluster.kubectl(&["get", kind, "-n", namespace, "-o", "json"])?)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text)
        .map_err(|error| Error::Malformed { path: "kubectl get -o json".into(), problem: error.to_string() })
}

/// `(status, reason, message)` of a condition.
pub fn condition(object: &Value, type_: &str) -> Option<(String, String, String)> {
    let list = object["status"]["conditions"].as_array()?;
    let found = list.iter().find(|c| c["type"] == type_)?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

/// Waits until a condition has a status.
pub fn for_condition(
    cluster: &Cluster,
    (namespace, kind, name): (&str, &str, &str),
    (type_, status): (&str, &str),
) -> Result<Value> {
    until(cluster, &format!("{kind}/{name} {type_}={status}"), || {
        let object = get(cluster, namespace, kind, name)?;
        let seen = condition(&object, type_);
        let holds = seen.as_ref().is_some_and(|(found, ..)| found == status);
        Ok(Answer::of(holds.then_some(object), format!("{seen:?}")))
    })
}

/// Waits for the rollout of a workload.
pub fn rollout(cluster: &Cluster, namespace: &str, workload: &str) -> Result<()> {
    let timeout = format!("--timeout={}s", STILL.as_secs());
    cluster.kubectl(&["rollout", "status", workload, "-n", namespace, &timeout]).map(drop)
}
