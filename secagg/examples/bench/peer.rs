//! Flower 1.42.0's SecAgg+ at the same points in the same run, through `flower.sh`.
use serde_json::Value;
use std::error::Error;
use std::path::Path;
use std::process::Command;

/// CPU seconds of Flower at one point.
pub(crate) struct Peer(Vec<Value>);

impl Peer {
    /// Runs it; sets its environment up the first time.
    pub(crate) fn measure(n: usize, millions: usize) -> Result<Self, Box<dyn Error>> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/bench/flower.sh");
        let output = Command::new(script).args(["measure", &n.to_string(), &millions.to_string()]).output()?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("flower.sh failed: {why}; run without --long to leave Flower out").into());
        }
        let text = String::from_utf8(output.stdout)?;
        Ok(Self(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?))
    }

    /// CPU seconds of one side, with so many hospitals lost.
    pub(crate) fn cpu(&self, side: &str, dropped: usize) -> Option<f64> {
        self.0.iter().find(|v| v["side"] == side && v["dropped"] == dropped)?["cpu"].as_f64()
    }
}
