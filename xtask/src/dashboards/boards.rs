//! What is on the dashboards. `@` stands for what is chosen: the cluster, and with a name behind it (`@study`) that too.

use super::{Board, Kind, Panel, Query, Row, Variable};

const GREEN_FROM_ONE: &[(Option<f64>, &str)] = &[(None, "red"), (Some(1.0), "green")];
const RED_FROM_ONE: &[(Option<f64>, &str)] = &[(None, "green"), (Some(1.0), "red")];
const DAYS_LEFT: &[(Option<f64>, &str)] = &[(None, "red"), (Some(3.0), "orange"), (Some(7.0), "green")];
const ROOM_LEFT: &[(Option<f64>, &str)] =
    &[(None, "red"), (Some(1_073_741_824.0), "orange"), (Some(10_737_418_240.0), "green")];
const STEPS: &[(i64, &str, &str)] = &[
    (1, "Training", "blue"),
    (2, "Aggregating", "purple"),
    (3, "Evaluating", "yellow"),
    (4, "Succeeded", "green"),
    (5, "Failed", "red"),
];
const YES: &[(i64, &str, &str)] = &[(0, "no", "red"), (1, "yes", "green")];

const fn panel(
    title: &'static str,
    about: &'static str,
    kind: Kind,
    unit: &'static str,
    queries: &'static [Query],
) -> Panel {
    Panel { title, about, kind, unit, queries, steps: &[], words: &[], runbook: None }
}

impl Panel {
    const fn steps(self, steps: &'static [(Option<f64>, &'static str)]) -> Self {
        Self { steps, ..self }
    }

    const fn words(self, words: &'static [(i64, &'static str, &'static str)]) -> Self {
        Self { words, ..self }
    }

    const fn runbook(self, alert: &'static str) -> Self {
        Self { runbook: Some(alert), ..self }
    }
}

const STUDY: Variable = Variable { name: "study", label: "Study", query: "label_values(consilium_study_round, study)" };
const SITE: Variable =
    Variable { name: "site", label: "Hospital", query: "label_values(consilium_site_connected, site)" };

pub static ALL: &[Board] = &[
    Board {
        file: "consilium-hub/dashboards/overview.json",
        uid: "consilium-overview",
        title: "Consilium: overview",
        about: "Does the federation work? Every study and hospital in a line; the other dashboards say more of each.",
        variables: &[],
        rows: &[
            Row { height: 4, panels: &[
                panel("Operator", "1 while the operator answers Prometheus. Without it no round goes on; nothing is lost meanwhile.", Kind::Stat, "short",
                    &[("count(consilium_build_info{@, component=\"operator\"})", "operators")]).steps(GREEN_FROM_ONE).runbook("OperatorAbsent"),
                panel("Hospitals absent", "Hospitals that may call and are not connected now.", Kind::Stat, "short",
                    &[("sum(consilium_sites_accepted{@}) - sum(consilium_site_connected{@})", "absent")]).steps(RED_FROM_ONE).runbook("SiteSilent"),
                panel("Studies", "FederatedStudies at this hub.", Kind::Stat, "short", &[("sum(consilium_studies{@})", "studies")]),
                panel("Studies that wait for somebody", "Studies whose condition Stalled is true: its message says who has to do what.", Kind::Stat, "short",
                    &[("sum(consilium_study_stalled{@})", "stalled")]).steps(RED_FROM_ONE).runbook("StudyStalled"),
                panel("Room in the store", "Free bytes of the hub's volume that are not promised to uploads under way.", Kind::Stat, "bytes",
                    &[("sum(consilium_store_free_bytes{@} - consilium_store_promised_bytes{@})", "free")]).steps(ROOM_LEFT).runbook("StoreFull"),
                panel("Gateway's certificate", "Days until the gateway's own certificate ends; hospitals cannot connect after it.", Kind::Stat, "d",
                    &[("min(consilium_gateway_certificate_expiry_timestamp_seconds{@} - time()) / 86400", "days")]).steps(DAYS_LEFT).runbook("GatewayCertExpiring"),
            ] },
            Row { height: 8, panels: &[
                panel("Where each study is", "Step of each study's newest round over time. A long Training is a slow hospital; a long Aggregating a slow link.", Kind::States, "short",
                    &[("consilium_study_step{@}", "{{study}}")]).words(STEPS).runbook("RoundStuck"),
                panel("Dice by study", "Mean Dice over all hospitals of each study's newest scored model. A fall is a bad round: see its TrainingRound.", Kind::Lines, "percentunit",
                    &[("consilium_study_dice{@}", "{{study}}")]),
            ] },
            Row { height: 8, panels: &[
                panel("Rounds done", "Share of its planned rounds that each study has begun.", Kind::Lines, "percentunit",
                    &[("consilium_study_round{@} / consilium_study_rounds{@}", "{{study}}")]),
                panel("Rounds that ended in the last day", "By outcome; anything but Completed has a reason in its TrainingRound.", Kind::Bars, "short",
                    &[("sum by (outcome) (increase(consilium_rounds_finished_total{@}[1d]))", "{{outcome}}")]).runbook("RoundStuck"),
            ] },
        ],
    },
    Board {
        file: "consilium-hub/dashboards/study.json",
        uid: "consilium-study",
        title: "Consilium: a study",
        about: "How far a study is, whom it waits for, and how good its models are.",
        variables: &[STUDY],
        rows: &[
            Row { height: 4, panels: &[
                panel("Round", "The round under way, or the last one.", Kind::Stat, "short", &[("consilium_study_round{@study}", "{{study}}")]),
                panel("Of", "Rounds that the study plans.", Kind::Stat, "short", &[("consilium_study_rounds{@study}", "{{study}}")]),
                panel("Step", "What its hospitals do now.", Kind::Stat, "short", &[("consilium_study_step{@study}", "{{study}}")]).words(STEPS),
                panel("In this step for", "Time since the step began.", Kind::Stat, "s",
                    &[("time() - consilium_study_step_since_timestamp_seconds{@study}", "{{study}}")]),
                panel("Until its deadline", "Time until the step ends at the latest; below 0 something holds it up.", Kind::Stat, "s",
                    &[("consilium_study_step_deadline_timestamp_seconds{@study} - time()", "{{study}}")])
                    .steps(&[(None, "red"), (Some(0.0), "orange"), (Some(600.0), "green")]).runbook("RoundStuck"),
                panel("In its model", "Updates in the sum of the newest round.", Kind::Stat, "short", &[("consilium_study_contributors{@study}", "{{study}}")]),
            ] },
            Row { height: 9, panels: &[
                panel("Hospitals by where they are", "What each hospital of the newest round said last. AwaitingApproval, SpecChanged and DeniedByPolicy are theirs to change; `kubectl consilium explain` names them.", Kind::Bars, "short",
                    &[("sum by (reason) (consilium_study_sites{@study})", "{{reason}}")]).runbook("RoundStuck"),
                panel("Ready, and waited for", "Hospitals that are ready or further, and those that the round waits for until its deadline because they were left out too often.", Kind::Lines, "short",
                    &[("sum by (study) (consilium_study_sites{@study, reason=~\"Ready|Submitted|Evaluated\"})", "{{study}} ready"),
                      ("consilium_study_waited_for{@study}", "{{study}} waited for")]),
            ] },
            Row { height: 8, panels: &[
                panel("Mean Dice", "Over all cases that its hospitals held back, of each scored model.", Kind::Lines, "percentunit", &[("consilium_study_dice{@study}", "{{study}}")]),
                panel("Step over time", "Where the study's time goes.", Kind::States, "short", &[("consilium_study_step{@study}", "{{study}}")]).words(STEPS),
                panel("Refusals", "Hospitals that say no to the newest round, by reason. No justification is owed.", Kind::Lines, "short",
                    &[("sum by (study, reason) (consilium_study_sites{@study, reason=~\"AwaitingApproval|AwaitingRoster|DeniedByPolicy|SpecChanged|IncompatibleGPU|NetworkPolicyNotEnforced\"})", "{{study}} {{reason}}")]),
            ] },
        ],
    },
    Board {
        file: "consilium-hub/dashboards/hub.json",
        uid: "consilium-hub",
        title: "Consilium: the hub",
        about: "The operator's own work: gateway, controllers, store and process.",
        variables: &[SITE],
        rows: &[
            Row { height: 8, panels: &[
                panel("Hospitals connected", "Hospitals with an open watch, beside those that may call.", Kind::Lines, "short",
                    &[("sum(consilium_site_connected{@site})", "connected"), ("sum(consilium_sites_accepted{@})", "accepted")]).runbook("QuorumAtRisk"),
                panel("Seconds since each hospital was heard", "A hospital calls at least every minute; more than five is silence.", Kind::Lines, "s",
                    &[("time() - consilium_site_last_contact_timestamp_seconds{@site}", "{{site}}")]).runbook("SiteSilent"),
            ] },
            Row { height: 8, panels: &[
                panel("Gateway calls", "Calls of hospitals by method and gRPC code; Unavailable and ResourceExhausted come back by themselves.", Kind::Lines, "reqps",
                    &[("sum by (method, code) (rate(consilium_gateway_requests_total{@}[5m]))", "{{method}} {{code}}")]),
                panel("Refused calls", "Calls refused because of who called or for which work.", Kind::Lines, "reqps",
                    &[("sum by (reason) (rate(consilium_gateway_refused_total{@}[5m]))", "{{reason}}")]).runbook("TwoAgents"),
                panel("Bytes from and to hospitals", "Masked updates that come in, and models that go out.", Kind::Lines, "Bps",
                    &[("sum by (site) (rate(consilium_uploads_bytes_total{@site}[5m]))", "from {{site}}"),
                      ("sum by (site) (rate(consilium_downloads_bytes_total{@site}[5m]))", "to {{site}}")]),
            ] },
            Row { height: 8, panels: &[
                panel("Reconciles that did not succeed", "By controller and class of the error; Bug is one of ours.", Kind::Lines, "ops",
                    &[("sum by (controller, result) (rate(consilium_reconcile_total{@, result!=\"Ok\"}[5m]))", "{{controller}} {{result}}")]).runbook("RoundStuck"),
                panel("Time of a reconcile, 99th percentile", "By controller; seconds mean a slow API server or a slow volume.", Kind::Lines, "s",
                    &[("histogram_quantile(0.99, sum by (controller, le) (rate(consilium_reconcile_duration_seconds_bucket{@}[5m])))", "{{controller}}")]),
                panel("Requests that wait", "Objects that a controller was asked to look at and has not; a queue that grows is a hub that does not keep up.", Kind::Lines, "short",
                    &[("sum by (controller) (consilium_reconcile_queue_length{@})", "{{controller}}")]),
            ] },
            Row { height: 8, panels: &[
                panel("Store", "Size of the hub's volume, what is free of it, and what is promised to uploads under way.", Kind::Lines, "bytes",
                    &[("consilium_store_volume_bytes{@}", "size"), ("consilium_store_free_bytes{@}", "free"), ("consilium_store_promised_bytes{@}", "promised")]).runbook("StoreFull"),
                panel("Time of rounds by stage, median", "Over six hours: training, summing, scoring.", Kind::Lines, "s",
                    &[("histogram_quantile(0.5, sum by (stage, le) (rate(consilium_round_stage_duration_seconds_bucket{@}[6h])))", "{{stage}}")]),
                panel("Days until certificates end", "Of hospitals, as they last showed them, and of the gateway.", Kind::Lines, "d",
                    &[("(consilium_site_certificate_expiry_timestamp_seconds{@site} - time()) / 86400", "{{site}}"),
                      ("(consilium_gateway_certificate_expiry_timestamp_seconds{@} - time()) / 86400", "gateway")]).runbook("CertExpiring"),
            ] },
            Row { height: 8, panels: &[
                panel("Memory of the operator", "Resident memory; the chart's limit is 512 MiB.", Kind::Lines, "bytes",
                    &[("process_resident_memory_bytes{@} and on(instance, job) consilium_build_info{component=\"operator\"}", "{{instance}}")]),
                panel("CPU of the operator", "Cores that the operator uses, over five minutes.", Kind::Lines, "short",
                    &[("rate(process_cpu_seconds_total{@}[5m]) and on(instance, job) consilium_build_info{component=\"operator\"}", "{{instance}}")]),
                panel("Clocks apart", "By how much each hospital's clock is ahead of the hub's.", Kind::Lines, "s",
                    &[("consilium_site_clock_ahead_seconds{@site}", "{{site}}")]).runbook("ClockApart"),
            ] },
        ],
    },
    Board {
        file: "consilium-site/dashboards/hospital.json",
        uid: "consilium-site",
        title: "Consilium: a hospital",
        about: "The hospital's own side: what its agent decides, runs, serves and lets out.",
        variables: &[],
        rows: &[
            Row { height: 4, panels: &[
                panel("Agent", "1 while the agent answers Prometheus. Without it nothing is judged, and models end with their lease.", Kind::Stat, "short",
                    &[("count(consilium_build_info{@, component=\"agent\"})", "agents")]).steps(GREEN_FROM_ONE).runbook("AgentAbsent"),
                panel("Connected to the hub", "Whether the agent's watch to the hub is open.", Kind::Stat, "short", &[("max(consilium_agent_connected{@})", "connected")]).words(YES).runbook("HubUnreachable"),
                panel("Tasks kept from the network", "Whether it is proven that task pods reach nothing but the agent.", Kind::Stat, "short",
                    &[("min(consilium_agent_network_enforced{@})", "proven")]).words(YES).runbook("NetworkNotEnforced"),
                panel("Ledger whole", "Whether the hospital's ledger holds together.", Kind::Stat, "short", &[("min(consilium_agent_ledger_intact{@})", "whole")]).words(YES).runbook("LedgerTrouble"),
                panel("Open hazards", "Hazards of models that are open here, or cannot be read.", Kind::Stat, "short",
                    &[("sum(consilium_agent_hazards_open{@})", "open")]).steps(RED_FROM_ONE).runbook("HazardOpen"),
                panel("Certificate", "Days until the hospital's certificate ends.", Kind::Stat, "d",
                    &[("min(consilium_agent_certificate_expiry_timestamp_seconds{@} - time()) / 86400", "days")]).steps(DAYS_LEFT).runbook("CertExpiring"),
            ] },
            Row { height: 8, panels: &[
                panel("Parts in rounds", "The hospital's parts in rounds, by where they are.", Kind::Bars, "short", &[("sum by (reason) (consilium_agent_rounds{@})", "{{reason}}")]),
                panel("Changed decisions", "Decisions of the hospital's policy that changed, by reason, in an hour.", Kind::Bars, "short",
                    &[("sum by (reason) (increase(consilium_agent_decisions_total{@}[1h]))", "{{reason}}")]),
                panel("Tries of tasks", "Tries that ended in an hour, by kind and result.", Kind::Bars, "short",
                    &[("sum by (kind, result) (increase(consilium_agent_tries_total{@}[1h]))", "{{kind}} {{result}}")]),
            ] },
            Row { height: 8, panels: &[
                panel("Bytes that left this hospital", "Masked updates, in an hour. Nothing else leaves but a closed set of words and figures.", Kind::Bars, "bytes",
                    &[("sum(increase(consilium_agent_upload_bytes_total{@}[1h]))", "updates")]),
                panel("Models by state", "Models that the hub asks for here, by what became of them.", Kind::Bars, "short",
                    &[("sum by (reason) (consilium_agent_models{@})", "{{reason}}")]).runbook("ModelNotServing"),
                panel("Failed reconciles", "By controller and class of the error.", Kind::Lines, "ops",
                    &[("sum by (controller, class) (rate(consilium_agent_reconcile_errors_total{@}[5m]))", "{{controller}} {{class}}")]),
            ] },
            Row { height: 8, panels: &[
                panel("The agent's volume", "Its size, and what is free of it; at a tenth nothing new starts.", Kind::Lines, "bytes",
                    &[("consilium_agent_volume_size_bytes{@}", "size"), ("consilium_agent_volume_free_bytes{@}", "free")]).runbook("VolumeFull"),
                panel("Inference requests", "Answers of models served here, by result.", Kind::Lines, "reqps",
                    &[("sum by (model, result) (rate(consilium_inference_requests_total{@}[5m]))", "{{model}} {{result}}")]),
                panel("Time to an answer, 95th percentile", "From the request to its mask, by model.", Kind::Lines, "s",
                    &[("histogram_quantile(0.95, sum by (model, le) (rate(consilium_inference_request_duration_seconds_bucket{@}[5m])))", "{{model}}")]),
                panel("Inference requests that wait", "Scans in the queue of each model.", Kind::Lines, "short",
                    &[("sum by (model) (consilium_inference_queued_requests{@})", "{{model}}")]),
            ] },
            Row { height: 8, panels: &[
                panel("Versions", "What runs here, by component and version.", Kind::Table, "short", &[("count by (component, version) (consilium_build_info{@})", "{{component}} {{version}}")]),
                panel("Memory of the agent", "Resident memory; the chart's limit is 512 MiB.", Kind::Lines, "bytes",
                    &[("process_resident_memory_bytes{@} and on(instance, job) consilium_build_info{component=\"agent\"}", "{{instance}}")]),
                panel("Clocks apart", "By how much the hub's clock, and the API server's, are ahead of the agent's.", Kind::Lines, "s",
                    &[("consilium_agent_hub_clock_ahead_seconds{@}", "hub"), ("consilium_agent_server_clock_ahead_seconds{@}", "API server")]).runbook("ClockApart"),
            ] },
        ],
    },
];
