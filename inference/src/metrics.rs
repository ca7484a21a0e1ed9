//! What an SRE sees of a served model, and what a client of the protocol may ask for as its statistics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Answered.
    Ok,
    /// The client's fault.
    Invalid,
    /// Turned away because the queue was full.
    Overloaded,
    /// The server's fault.
    Failed,
}

impl Ending {
    const ALL: [Self; 4] = [Self::Ok, Self::Invalid, Self::Overloaded, Self::Failed];

    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Invalid => "invalid",
            Self::Overloaded => "overloaded",
            Self::Failed => "failed",
        }
    }
}

/// All metrics of the server.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    /// Seconds from a request's last byte to its answer.
    seconds: Histogram,
    batch_volumes: Histogram,
    /// Voxels segmented.
    pub voxels: IntCounter,
    /// Requests waiting for the network.
    pub queued: IntGauge,
    tally: Arc<Tally>,
}

/// Counts and times since the server started, as the protocol's statistics have them.
#[derive(Debug, Default)]
pub struct Tally {
    answered: [AtomicU64; 2],
    failed: [AtomicU64; 2],
    executions: AtomicU64,
    last: AtomicU64,
}

impl Tally {
    fn add([count, nanoseconds]: &[AtomicU64; 2], took: Duration) {
        count.fetch_add(1, Ordering::Relaxed);
        nanoseconds.fetch_add(took.as_nanos().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn read([count, nanoseconds]: &[AtomicU64; 2]) -> (u64, u64) {
        (count.load(Ordering::Relaxed), nanoseconds.load(Ordering::Relaxed))
    }

    /// Requests that were answered, and the nanoseconds that they took together.
    pub fn answered(&self) -> (u64, u64) {
        Self::read(&self.answered)
    }

    /// The same of those that were not.
    pub fn failed(&self) -> (u64, u64) {
        Self::read(&self.failed)
    }

    /// How often volumes went through the network together.
    pub fn executions(&self) -> u64 {
        self.executions.load(Ordering::Relaxed)
    }

    /// When the last request was answered, in milliseconds since 1970; 0 before the first.
    pub fn last_milliseconds(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }
}

impl Metrics {
    /// Registers everything; all results are there from the start, so that a rate over them is never missing.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let build = IntGaugeVec::new(
            Opts::new("consilium_build_info", "Always 1; what is running."),
            &["component", "version"],
        )?;
        build.with_label_values(&["inference", env!("CARGO_PKG_VERSION")]).set(1);
        let requests = IntCounterVec::new(
            Opts::new("consilium_inference_requests_total", "Inference requests by how they ended."),
            &["result"],
        )?;
        for ending in Ending::ALL {
            let _ = requests.with_label_values(&[ending.label()]);
        }
        let seconds = Histogram::with_opts(
            HistogramOpts::new(
                "consilium_inference_request_duration_seconds",
                "From a request's last byte to its answer.",
            )
            .buckets(vec![0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]),
        )?;
        let batch_volumes = Histogram::with_opts(
            HistogramOpts::new("consilium_inference_batch_volumes", "Volumes that went through the network together.")
                .buckets(vec![1.0, 2.0, 4.0, 8.0, 16.0]),
        )?;
        let voxels = IntCounter::new("consilium_inference_voxels_total", "Voxels segmented.")?;
        let queued = IntGauge::new("consilium_inference_queued_requests", "Requests waiting for the network.")?;
        registry.register(Box::new(build))?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(batch_volumes.clone()))?;
        registry.register(Box::new(voxels.clone()))?;
        registry.register(Box::new(queued.clone()))?;
        Ok(Self { registry, requests, seconds, batch_volumes, voxels, queued, tally: Arc::default() })
    }

    /// Counts a request.
    pub fn ended(&self, ending: Ending, took: Duration) {
        self.requests.with_label_values(&[ending.label()]).inc();
        if ending != Ending::Ok {
            return Tally::add(&self.tally.failed, took);
        }
        self.seconds.observe(took.as_secs_f64());
        Tally::add(&self.tally.answered, took);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.tally.last.store(now.as_millis().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Counts volumes that go through the network together.
    pub fn executed(&self, volumes: usize) {
        self.batch_volumes.observe(volumes as f64);
        self.tally.executions.fetch_add(1, Ordering::Relaxed);
    }

    /// The statistics.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        String::from_utf8(out).map_err(|e| prometheus::Error::Msg(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After an upgrade an SRE must see which server still runs in which hospital.
    #[test]
    fn what_runs_is_one_metric_over_all_components() {
        let text = Metrics::new().unwrap().text().unwrap();
        let line =
            concat!("consilium_build_info{component=\"inference\",version=\"", env!("CARGO_PKG_VERSION"), "\"} 1");
        assert!(text.contains(line), "{text}");
    }
}
