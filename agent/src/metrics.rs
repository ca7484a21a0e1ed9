//! Prometheus metrics of the agent: `consilium_agent_*`, and `consilium_build_info` as every component has it. Labels are
//! closed enums.

use consilium_federation::report::{DeployReport, RoundReport};
use prometheus::core::Collector;
use prometheus::{
    Encoder as _, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::deployments::rollout_name;
use crate::policy::reason_name;

/// Name, labels and meaning of one metric, for the documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricInfo {
    /// Full name.
    pub name: String,
    /// Labels, in order.
    pub labels: Vec<String>,
    /// What it says.
    pub help: String,
}

/// The metrics; a cheap clone of one shared set.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    info: Vec<MetricInfo>,
    /// 1 while the watch to the hub is open.
    pub connected: IntGauge,
    /// When the hub was last heard.
    pub last_contact: Gauge,
    /// By how much the hub's clock is ahead of ours.
    pub hub_clock_ahead: Gauge,
    /// The same of the hospital's API server, whose clock is taken where they are apart.
    pub server_clock_ahead: Gauge,
    /// Connection attempts by result.
    pub connects: IntCounterVec,
    /// Reports sent by result.
    pub reports: IntCounterVec,
    /// Assignments received by verdict.
    pub assignments: IntCounterVec,
    /// Bytes of objects fetched from the hub.
    pub object_bytes: IntCounter,
    /// Bytes of updates sent to the hub.
    pub upload_bytes: IntCounter,
    /// Uploads ended by result.
    pub uploads: IntCounterVec,
    /// Changed decisions of the veto ladder by reason.
    pub decisions: IntCounterVec,
    /// Parts in rounds by reason.
    pub rounds: IntGaugeVec,
    /// Models by reason.
    pub models: IntGaugeVec,
    /// Ended tries of tasks by kind and result.
    pub tries: IntCounterVec,
    /// Deliveries of task pods by kind and result.
    pub deliveries: IntCounterVec,
    /// Failed reconciles by controller and class of error.
    pub reconcile_errors: IntCounterVec,
    /// Duration of reconciles by controller.
    pub reconcile_seconds: HistogramVec,
    /// 1 when a probe pod could not reach the network, else 0.
    pub network_enforced: IntGauge,
    /// When the hospital's certificate ends.
    pub certificate_expiry: Gauge,
    /// When the volume was last noticed to have been set back; 0 if never.
    pub rolled_back: Gauge,
    /// Objects that were stopped by the hospital's own word.
    pub stops: IntCounterVec,
    /// What the ledger does not hold yet.
    pub unrecorded: IntGauge,
    /// Folders of tasks that should be gone.
    pub erasures_overdue: IntGauge,
    /// Whether the policy stops all of a kind.
    pub suspended: IntGaugeVec,
    /// 1 while the volume can be used, else 0.
    pub volume_usable: IntGauge,
    /// 1 while the ledger holds together, else 0.
    pub ledger_intact: IntGauge,
    /// Size of the volume.
    pub volume_bytes: Gauge,
    /// What is free of it.
    pub volume_free_bytes: Gauge,
    /// Items of the hub that were not understood.
    pub items_left_out: IntCounter,
    /// Hazards that are open here.
    pub hazards_open: IntGauge,
    /// How often a model came to stand on a lower stage.
    pub stage_falls: IntCounter,
}

struct Maker {
    registry: Registry,
    info: Vec<MetricInfo>,
}

impl Maker {
    fn add<C: Collector + Clone + 'static>(
        &mut self,
        name: &str,
        labels: &[&str],
        help: &str,
        make: impl FnOnce(Opts) -> prometheus::Result<C>,
    ) -> prometheus::Result<C> {
        self.add_named(&format!("consilium_agent_{name}"), labels, help, make)
    }

    fn add_named<C: Collector + Clone + 'static>(
        &mut self,
        name: &str,
        labels: &[&str],
        help: &str,
        make: impl FnOnce(Opts) -> prometheus::Result<C>,
    ) -> prometheus::Result<C> {
        let collector = make(Opts::new(name, help))?;
        self.registry.register(Box::new(collector.clone()))?;
        let labels = labels.iter().map(|&l| l.to_owned()).collect();
        self.info.push(MetricInfo { name: name.to_owned(), labels, help: help.to_owned() });
        Ok(collector)
    }

    fn counters(&mut self, name: &str, labels: &[&str], help: &str) -> prometheus::Result<IntCounterVec> {
        self.add(name, labels, help, |opts| IntCounterVec::new(opts, labels))
    }
}

impl Metrics {
    /// Makes and registers all metrics. Fails only when two have the same name.
    pub fn new() -> prometheus::Result<Self> {
        let mut m = Maker { registry: Registry::new(), info: Vec::new() };
        let build =
            m.add_named("consilium_build_info", &["component", "version"], "Always 1; what is running.", |o| {
                IntGaugeVec::new(o, &["component", "version"])
            })?;
        build.with_label_values(&["agent", crate::VERSION]).set(1);
        let connected = m.add("connected", &[], "1 while the watch to the hub is open.", IntGauge::with_opts)?;
        let last_contact =
            m.add("last_contact_timestamp_seconds", &[], "When the hub was last heard.", Gauge::with_opts)?;
        let hub_clock_ahead = m.add(
            "hub_clock_ahead_seconds",
            &[],
            "By how much the hub's clock is ahead of this agent's; below 0 it is behind.",
            Gauge::with_opts,
        )?;
        let server_clock_ahead = m.add(
            "server_clock_ahead_seconds",
            &[],
            "By how much the clock of the hospital's API server is ahead of the one of the agent's node; below 0 it is behind.",
            Gauge::with_opts,
        )?;
        let connects = m.counters("connects_total", &["result"], "Connection attempts to the hub.")?;
        let reports = m.counters("reports_total", &["result"], "Reports sent to the hub.")?;
        let assignments = m.counters("assignments_total", &["verdict"], "Desired states received from the hub.")?;
        let object_bytes =
            m.add("object_bytes_total", &[], "Bytes of objects fetched from the hub.", IntCounter::with_opts)?;
        let upload_bytes =
            m.add("upload_bytes_total", &[], "Bytes of updates that left this hospital.", IntCounter::with_opts)?;
        let uploads = m.counters("uploads_total", &["result"], "Ended uploads.")?;
        let decisions = m.counters("decisions_total", &["reason"], "Changed decisions of the veto ladder.")?;
        let rounds =
            m.add("rounds", &["reason"], "Parts in rounds by where they are.", |o| IntGaugeVec::new(o, &["reason"]))?;
        let models = m.add("models", &["reason"], "Models that the hub offers by where they are.", |o| {
            IntGaugeVec::new(o, &["reason"])
        })?;
        let tries = m.counters("tries_total", &["kind", "result"], "Ended tries of tasks.")?;
        let deliveries = m.counters("deliveries_total", &["kind", "result"], "Deliveries of task pods.")?;
        let reconcile_errors = m.counters("reconcile_errors_total", &["controller", "class"], "Failed reconciles.")?;
        let reconcile_seconds =
            m.add("reconcile_duration_seconds", &["controller"], "Duration of reconciles.", |o| {
                HistogramVec::new(HistogramOpts::from(o), &["controller"])
            })?;
        let network_enforced = m.add(
            "network_enforced",
            &[],
            "1 when task pods are proven to be kept from the network.",
            IntGauge::with_opts,
        )?;
        let certificate_expiry = m.add(
            "certificate_expiry_timestamp_seconds",
            &[],
            "When this hospital's certificate ends.",
            Gauge::with_opts,
        )?;
        let rolled_back = m.add(
            "state_rolled_back_timestamp_seconds",
            &[],
            "When the agent's volume was last noticed to be older than what others remember of it; 0 if never.",
            Gauge::with_opts,
        )?;
        let items_left_out = m.add(
            "items_left_out_total",
            &[],
            "Items of the hub that make no sense to this version: the hub is ahead of the agent, or hostile.",
            IntCounter::with_opts,
        )?;
        let hazards_open = m.add(
            "hazards_open",
            &[],
            "Hazards of models that are open in this hospital, or cannot be read.",
            IntGauge::with_opts,
        )?;
        let stage_falls = m.add(
            "stage_falls_total",
            &[],
            "How often a model in use came to stand on a lower stage.",
            IntCounter::with_opts,
        )?;
        let stops = m.counters("stops_total", &["kind"], "Objects that were stopped by the hospital's own word.")?;
        let unrecorded = m.add(
            "unrecorded_entries",
            &[],
            "Entries that the ledger does not hold yet, since the volume took none.",
            IntGauge::with_opts,
        )?;
        let erasures_overdue = m.add(
            "erasures_overdue",
            &[],
            "Tasks whose folders are on a work claim for longer than they may be.",
            IntGauge::with_opts,
        )?;
        let suspended = m.add(
            "suspended",
            &["kind"],
            "1 when the SitePolicy lets no task (tasks: trainings and evaluations) or no model (models) run.",
            |o| IntGaugeVec::new(o, &["kind"]),
        )?;
        let volume_usable =
            m.add("volume_usable", &[], "1 while the agent's volume can be used, else 0.", IntGauge::with_opts)?;
        let ledger_intact =
            m.add("ledger_intact", &[], "1 while the ledger holds together, else 0.", IntGauge::with_opts)?;
        let volume_bytes = m.add("volume_size_bytes", &[], "Size of the agent's volume.", Gauge::with_opts)?;
        let volume_free_bytes = m.add("volume_free_bytes", &[], "What is free of it.", Gauge::with_opts)?;
        // Until it has been opened nothing is wrong with it.
        volume_usable.set(1);
        ledger_intact.set(1);
        let Maker { registry, info } = m;
        // Memory, CPU time, open files: the names that every program has them under. Only Linux has them.
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self {
            registry,
            info,
            connected,
            last_contact,
            hub_clock_ahead,
            server_clock_ahead,
            connects,
            reports,
            assignments,
            object_bytes,
            upload_bytes,
            uploads,
            decisions,
            rounds,
            models,
            tries,
            deliveries,
            reconcile_errors,
            reconcile_seconds,
            network_enforced,
            certificate_expiry,
            rolled_back,
            stops,
            unrecorded,
            erasures_overdue,
            suspended,
            volume_usable,
            ledger_intact,
            volume_bytes,
            volume_free_bytes,
            items_left_out,
            hazards_open,
            stage_falls,
        })
    }

    /// All metrics, in order of name, for the documentation.
    pub fn list(&self) -> Vec<MetricInfo> {
        let mut info = self.info.clone();
        info.sort_by(|a, b| a.name.cmp(&b.name));
        info
    }

    /// Counts the parts in rounds anew.
    pub fn set_rounds(&self, rounds: &[RoundReport]) {
        self.rounds.reset();
        for round in rounds {
            self.rounds.with_label_values(&[reason_name(round.reason)]).inc();
        }
    }

    /// Counts the models anew.
    pub fn set_models(&self, models: &[DeployReport]) {
        self.models.reset();
        for model in models {
            self.models.with_label_values(&[rollout_name(model.reason)]).inc();
        }
    }

    /// The exposition in Prometheus' text format.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dashboards and alerts are written against these names; the build info is one metric over all components.
    #[test]
    fn names_are_unique_and_prefixed() {
        let list = Metrics::new().unwrap().list();
        assert!(list.windows(2).all(|pair| pair[0].name < pair[1].name));
        let shared = |m: &MetricInfo| m.name == "consilium_build_info";
        assert!(list.iter().all(|m| shared(m) || m.name.starts_with("consilium_agent_")));
        assert!(list.iter().all(|m| m.help.ends_with('.')));
        let text = String::from_utf8(Metrics::new().unwrap().render().unwrap()).unwrap();
        assert!(text.contains("consilium_agent_connected 0"), "{text}");
        assert!(text.contains("consilium_build_info{component=\"agent\",version=\""), "{text}");
    }

    /// The alert on models that do not serve would go on for ever, or never come.
    #[test]
    fn models_are_counted_by_where_they_are_now() {
        use consilium_federation::report::RolloutReason::{Serving, VerificationFailed};
        let metrics = Metrics::new().unwrap();
        let model = |reason| DeployReport { uid: "u".into(), reason, serving: None, stage: None, message: None };
        metrics.set_models(&[model(VerificationFailed), model(Serving)]);
        metrics.set_models(&[model(Serving), model(Serving)]);
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(text.contains("consilium_agent_models{reason=\"Serving\"} 2"), "{text}");
        assert!(!text.contains("VerificationFailed"), "{text}");
    }
}
