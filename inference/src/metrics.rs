//! What an SRE sees of a served model.

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
    pub seconds: Histogram,
    /// Volumes that went through the network together.
    pub batch_volumes: Histogram,
    /// Voxels segmented.
    pub voxels: IntCounter,
    /// Requests waiting for the network.
    pub queued: IntGauge,
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
        Ok(Self { registry, requests, seconds, batch_volumes, voxels, queued })
    }

    /// Counts a request.
    pub fn ended(&self, ending: Ending) {
        self.requests.with_label_values(&[ending.label()]).inc();
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
